package source

import (
	"errors"
	"net/http"
	"net/netip"
	"testing"
	"time"
)

func TestCheckAddr(t *testing.T) {
	for addr, refused := range map[string]bool{
		"127.0.0.1":                false, // a server on the node
		"::1":                      false,
		"10.0.0.1":                 false, // air-gapped networks
		"192.168.1.1":              false,
		"fd12:3456::1":             false,
		"203.0.113.7":              false,
		"64:ff9b::c000:201":        false, // 192.0.2.1 by NAT64
		"169.254.169.254":          true,  // AWS, Azure, Google, …
		"169.254.0.1":              true,
		"::ffff:169.254.169.254":   true, // the same, mapped
		"64:ff9b::a9fe:a9fe":       true, // the same, by NAT64
		"fe80::1":                  true,
		"fe80::1%eth0":             true,
		"fd00:ec2::254":            true, // AWS
		"fd20:ce::254":             true, // Google
		"100.100.100.200":          true, // Alibaba
		"168.63.129.16":            true, // Azure
		"192.0.0.192":              true, // Oracle
		"0.0.0.0":                  true, // reaches loopback services under another name
		"::":                       true,
		"224.0.0.1":                true,
		"ff02::1":                  true,
		"::ffff:0.0.0.0":           true,
		"100.100.100.201":          false,
		"64:ff9b:1::169.254.169.1": false, // another prefix: somebody's own network
	} {
		if err := checkAddr(netip.MustParseAddr(addr)); errors.Is(err, ErrInvalid) != refused {
			t.Errorf("%s: %v", addr, err)
		}
	}
}

// The check must hold for what a name resolves to, at the moment of dialling.
func TestDialerChecksAfterLookUp(t *testing.T) {
	d := newDialer()
	if err := d.ControlContext(t.Context(), "tcp4", "169.254.169.254:80", nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("control: %v", err)
	}
	conn, err := d.DialContext(t.Context(), "tcp", "169.254.169.254:80")
	if err == nil {
		conn.Close()
	}
	if !errors.Is(err, ErrInvalid) {
		t.Errorf("dial: %v", err)
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
