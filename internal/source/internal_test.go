package source

import (
	"errors"
	"net/http"
	"net/netip"
	"testing"
	"time"
)

// Addresses that no test connects to; the others are in TestForbiddenAddresses.
func TestCheckAddr(t *testing.T) {
	allowed := reach{allowed: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("64:ff9b::7f00:2/128")}}
	for _, tc := range []struct {
		r       reach
		addr    string
		refused bool
		why     string
	}{
		{reach{}, "10.0.0.1", false, "air-gapped networks"},
		{reach{}, "172.16.0.1", false, "the same"},
		{reach{}, "192.168.1.1", false, "the same"},
		{reach{}, "100.64.0.1", false, "carriers' networks"},
		{reach{}, "fd12:3456::1", false, "unique local addresses"},
		{reach{}, "203.0.113.7", false, "anywhere"},
		{reach{}, "2600:1f18::1", false, "anywhere"},
		{reach{}, "100.100.100.201", false, "only its neighbour is metadata"},
		{reach{}, "fd00:ec3::23", false, "the neighbouring network"},
		{reach{}, "::ffff:10.0.0.1", false, "mapped"},
		{reach{}, "::ffff:0:10.0.0.1", false, "translated"},
		{reach{}, "64:ff9b::c000:201", false, "192.0.2.1 by NAT64"},
		{reach{}, "64:ff9b:1::192.0.2.1", false, "by a local NAT64 of 96 bits"},
		{reach{}, "64:ff9b:1:c000:2:100::", false, "by a local NAT64 of 48 bits"},
		{reach{}, "2002:c000:201::1", false, "by 6to4"},
		{reach{}, "2001:0:1:2:3:4:3fff:fdfe", false, "192.0.2.1 by Teredo"},
		{reach{}, "2001:db8::7f00:1", false, "the end of an ordinary address says nothing"},
		{reach{}, "127.0.0.1", true, "loopback"},
		{reach{}, "fe80::1%eth0", true, "link-local with a zone"},
		{reach{}, "fd00::200:5efe:169.254.169.254", true, "ISATAP with its universal bit"},
		{allowed, "127.0.0.1", false, "allowed"},
		{allowed, "::ffff:127.0.0.1", false, "the same, mapped"},
		{allowed, "64:ff9b::127.0.0.1", false, "the same by NAT64"},
		{allowed, "64:ff9b::127.0.0.2", false, "allowed in this form"},
		{allowed, "127.0.0.2", true, "not allowed in this"},
		{allowed, "::1", true, "not allowed"},
		{reach{anywhere: true}, "169.254.169.254", false, "nothing is refused"},
	} {
		if err := tc.r.checkAddr(netip.MustParseAddr(tc.addr)); errors.Is(err, ErrInvalid) != tc.refused {
			t.Errorf("%s: %v: %s", tc.addr, err, tc.why)
		}
	}
}

func TestEndsInNumber(t *testing.T) {
	for host, want := range map[string]bool{
		"127.1": true, "1": true, "0x7f": true, "a.0x": true, "host.0177": true, "1.2.3.4.5": true,
		"a1": false, "1a": false, "1.example": false, "0x7g": false, "": false, "x.0xyz": false, "123-4": false,
	} {
		if endsInNumber(host) != want {
			t.Errorf("%q: %v", host, !want)
		}
	}
}

func TestParseContentRange(t *testing.T) {
	for value, want := range map[string]contentRange{
		"bytes 0-9/10":  {byteRange{0, 10}, 10},
		"bytes 5-5/10":  {byteRange{5, 1}, 10},
		"bytes 0-9/*":   {byteRange{0, 10}, -1},
		"bytes 00-09/*": {byteRange{0, 10}, -1},
	} {
		if got, err := parseContentRange(value); err != nil || got != want {
			t.Errorf("%q: %+v, %v", value, got, err)
		}
	}
	for value, why := range map[string]string{
		"":                                "absent",
		"bytes */10":                      "of a 416",
		"0-9/10":                          "no unit",
		"bytes 9-0/10":                    "backwards",
		"bytes 0-10/10":                   "beyond the total",
		"bytes -1-9/10":                   "negative",
		"bytes +0-9/10":                   "a sign",
		"bytes 0-9":                       "no total",
		"bytes 0-9/x":                     "no number",
		"bytes 0-9223372036854775807/*":   "its length overflows",
		"bytes 0-9/99999999999999999999":  "overflows",
		"items 0-9/10":                    "another unit",
		"bytes 0-9/10, bytes 20-29/10000": "two",
	} {
		if got, err := parseContentRange(value); err == nil {
			t.Errorf("%q is accepted as %+v: %s", value, got, why)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 7, 1, 10, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"":                              0,
		"0":                             0,
		"7":                             7 * time.Second,
		"86400":                         maxRetryAfter, // an import does not hold on that long
		"99999999999999999999":          0,
		"-1":                            0,
		"soon":                          0,
		"Wed, 01 Jul 2026 10:00:09 GMT": 9 * time.Second,
		"Wed, 01 Jul 2026 09:00:00 GMT": 0,
		"Wed, 01 Jul 2027 10:00:00 GMT": maxRetryAfter,
	} {
		if got := retryAfter(http.Header{"Retry-After": {value}}, now); got != want {
			t.Errorf("%q: %s, want %s", value, got, want)
		}
	}
}

func TestBackoffIsBounded(t *testing.T) {
	b := &backoff{base: time.Nanosecond, max: time.Microsecond, attempts: 70}
	n := 1
	for b.again(t.Context(), 0) {
		n++
	}
	if n != 70 {
		t.Errorf("%d attempts", n)
	}
	b.progress()
	if !b.again(t.Context(), 0) {
		t.Error("no attempt after progress")
	}
}

// A server's wish is granted within a bound, whatever the backoff says.
func TestBackoffWaitsAsAsked(t *testing.T) {
	b := &backoff{base: time.Nanosecond, max: time.Microsecond, failed: 1}
	for asked, want := range map[time.Duration]time.Duration{7 * time.Second: 7 * time.Second, time.Hour: maxRetryAfter} {
		if got := b.next(asked); got != want {
			t.Errorf("asked for %s it waits %s, want %s", asked, got, want)
		}
	}
	if got := b.next(0); got > b.max {
		t.Errorf("asked for nothing it waits %s", got)
	}
}

func TestWindowCacheIsBounded(t *testing.T) {
	var c windowCache
	for i := range 1000 {
		c.add(int64(i)*maxWindow, make([]byte, maxWindow), 0)
	}
	if c.bytes > maxCached || len(c.windows) != maxCached/maxWindow {
		t.Errorf("%d bytes in %d windows", c.bytes, len(c.windows))
	}
	if c.copy(make([]byte, 1), 999*maxWindow) != 1 || c.copy(make([]byte, 1), 0) != 0 {
		t.Error("the oldest must go first")
	}
}

// What one window may cost depends on what others have cost, and on how far the walk has come.
func TestWindowSizes(t *testing.T) {
	const far = 1 << 20
	var c windowCache
	fetch := func(off, least int64) int64 {
		n := c.take(off, least)
		c.add(off, make([]byte, n), int(least))
		return n
	}
	if n := fetch(0, 512); n != newWindow {
		t.Errorf("the first is %d", n)
	}
	if n := fetch(newWindow, 512); n != 2*newWindow {
		t.Errorf("reading on gives %d", n)
	}
	if n := fetch(far, 50_000); n != 50_000 {
		t.Errorf("50,000 are wanted, it is %d", n)
	}
	if n := fetch(far-1000, 512); n != 1000 {
		t.Errorf("what is there is fetched again: %d", n)
	}
	if n := fetch(2*far, 512); n > newWindow || n <= minWindow {
		t.Errorf("at a new place %d", n)
	}
	latest := func() *window { return c.windows[len(c.windows)-1] }
	if n := fetch(latest().end()+1000, 512); n > newWindow {
		t.Errorf("behind a window that saved nothing %d", n)
	}
	near := latest()
	for i := range int64(3) {
		c.copy(make([]byte, 10), near.off+1000*(i+1))
	}
	if n := fetch(near.end()+1000, 512); n <= newWindow {
		t.Errorf("behind a window that saved three requests %d", n)
	}
}

// However many places are read, windows cost little more than the least.
func TestWindowsCostLittle(t *testing.T) {
	const places, step = 1000, 80_000 // as far apart as the largest window is long
	var c windowCache
	sum, last := int64(0), int64(0)
	for off := int64(0); off < places*step; off += step {
		last = c.take(off, 512)
		c.add(off, make([]byte, last), 512)
		sum += last
	}
	if limit := int64(startCredit + places*minWindow + places*step/passedPart); sum > limit || last != minWindow {
		t.Errorf("%d bytes, more than %d; the last window is %d", sum, limit, last)
	}
}
