package source

import (
	"bytes"
	"errors"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// Addresses that no test connects to; the others are in TestForbiddenAddresses.
func TestCheckAddr(t *testing.T) {
	allowed := HTTPOptions{AllowAddresses: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("64:ff9b::7f00:2/128")}}
	for _, tc := range []struct {
		r       HTTPOptions
		addr    string
		refused bool
		why     string
	}{
		{HTTPOptions{}, "10.0.0.1", false, "air-gapped networks"},
		{HTTPOptions{}, "172.16.0.1", false, "the same"},
		{HTTPOptions{}, "192.168.1.1", false, "the same"},
		{HTTPOptions{}, "100.64.0.1", false, "carriers' networks"},
		{HTTPOptions{}, "fd12:3456::1", false, "unique local addresses"},
		{HTTPOptions{}, "203.0.113.7", false, "anywhere"},
		{HTTPOptions{}, "2600:1f18::1", false, "anywhere"},
		{HTTPOptions{}, "100.100.100.201", false, "only its neighbour is metadata"},
		{HTTPOptions{}, "fd00:ec3::23", false, "the neighbouring network"},
		{HTTPOptions{}, "::ffff:10.0.0.1", false, "mapped"},
		{HTTPOptions{}, "::ffff:0:10.0.0.1", false, "translated"},
		{HTTPOptions{}, "64:ff9b::c000:201", false, "192.0.2.1 by NAT64"},
		{HTTPOptions{}, "64:ff9b:1::192.0.2.1", false, "by a local NAT64 of 96 bits"},
		{HTTPOptions{}, "64:ff9b:1:c000:2:100::", false, "by a local NAT64 of 48 bits"},
		{HTTPOptions{}, "2002:c000:201::1", false, "by 6to4"},
		{HTTPOptions{}, "2001:0:1:2:3:4:3fff:fdfe", false, "192.0.2.1 by Teredo"},
		{HTTPOptions{}, "2001:db8::7f00:1", false, "the end of an ordinary address says nothing"},
		{HTTPOptions{}, "127.0.0.1", true, "loopback"},
		{HTTPOptions{}, "fe80::1%eth0", true, "link-local with a zone"},
		{HTTPOptions{}, "fd00::200:5efe:169.254.169.254", true, "ISATAP with its universal bit"},
		{allowed, "127.0.0.1", false, "allowed"},
		{allowed, "::ffff:127.0.0.1", false, "the same, mapped"},
		{allowed, "64:ff9b::127.0.0.1", false, "the same by NAT64"},
		{allowed, "64:ff9b::127.0.0.2", false, "allowed in this form"},
		{allowed, "127.0.0.2", true, "not allowed in this"},
		{allowed, "::1", true, "not allowed"},
		{HTTPOptions{Anywhere: true}, "169.254.169.254", false, "nothing is refused"},
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
		if got, ok := parseContentRange(value); !ok || got != want {
			t.Errorf("%q: %+v, %v", value, got, ok)
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
		if got, ok := parseContentRange(value); ok {
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
	for b.pause(t.Context(), &temporaryError{}) == nil {
		n++
	}
	if n != 70 {
		t.Errorf("%d attempts", n)
	}
	b.failed = 0
	if err := b.pause(t.Context(), &temporaryError{}); err != nil {
		t.Errorf("no attempt after progress: %v", err)
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

func TestReadAheadIsBounded(t *testing.T) {
	a := readAhead{most: maxCached}
	for i := range int64(100) {
		a.add(i*mostWindow, make([]byte, mostWindow))
	}
	if a.bytes > maxCached || len(a.windows) != maxCached/mostWindow {
		t.Errorf("%d bytes in %d windows", a.bytes, len(a.windows))
	}
	if a.copy(make([]byte, 1), 99*mostWindow) != 1 || a.copy(make([]byte, 1), 0) != 0 {
		t.Error("the oldest must go first")
	}
}

// countedFile counts what the file system is asked for.
type countedFile struct {
	*os.File
	reads int
}

func (c *countedFile) ReadAt(p []byte, off int64) (int, error) {
	c.reads++
	return c.File.ReadAt(p, off)
}

// Headers that lie closely come several with one read of a page, others with one read each, however small the pieces are.
func TestFileIsReadByPages(t *testing.T) {
	for name, tc := range map[string]struct{ step, most int64 }{
		"headers of small members": {1536, 400},
		"headers of large members": {1 << 20, 1000},
	} {
		f, err := os.Create(filepath.Join(t.TempDir(), "a.tar"))
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(1000 * tc.step); err != nil {
			t.Fatal(err)
		}
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		c := &countedFile{File: f}
		b := newFileBlob(t.Context(), c, info, name)
		for off := int64(0); off < b.Size(); off += tc.step {
			for k := range int64(4) {
				if _, err := b.ReadAt(make([]byte, 128), off+k*128); err != nil {
					t.Fatal(err)
				}
			}
		}
		closing(t, b)
		if int64(c.reads) > tc.most {
			t.Errorf("%s: %d reads, want at most %d", name, c.reads, tc.most)
		}
	}
}

// Readers at the same time see the file, whatever room is used again.
func TestPagesAreReadAtTheSameTime(t *testing.T) {
	data := make([]byte, 100*filePage)
	for i := range data {
		data[i] = byte(i / 100)
	}
	path := filepath.Join(t.TempDir(), "a.tar")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := OpenFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	var readers sync.WaitGroup
	for start := range 4 {
		readers.Go(func() {
			p := make([]byte, 100)
			for off := start * 50; off+len(p) <= len(data); off += 250 {
				if _, err := b.ReadAt(p, int64(off)); err != nil || !bytes.Equal(p, data[off:off+len(p)]) {
					t.Errorf("at %d: %v", off, err)
					return
				}
			}
		})
	}
	readers.Wait()
	closing(t, b.(*fileBlob))
}

// The rule: what takes less time than a request is read through, within bounds.
func TestReadThrough(t *testing.T) {
	for name, tc := range map[string]struct {
		roundTrip time.Duration
		rate      int64 // bytes a second
		through   int64
	}{
		"next door":      {100 * time.Microsecond, 100 << 20, leastGap},
		"in the house":   {time.Millisecond, 100 << 20, 100 << 10},
		"over a modem":   {150 * time.Millisecond, 500 << 10, 75 << 10},
		"by satellite":   {600 * time.Millisecond, 1 << 20, mostGap},
		"over the ocean": {100 * time.Millisecond, 100 << 20, mostGap},
	} {
		b := &httpBlob{}
		b.pace.began(tc.roundTrip)
		b.pace.began(10 * tc.roundTrip) // once the server had to work
		for range 200 {
			b.pace.came(1<<20, time.Duration(float64(1<<20)/float64(tc.rate)*float64(time.Second)))
		}
		if !readThrough(b, tc.through*95/100) || readThrough(b, tc.through*105/100) {
			t.Errorf("%s: a round trip is worth %d bytes, %d are to be read through", name, b.roundTripBytes(), tc.through)
		}
	}
	if !readThrough(nil, leastGap) || readThrough(nil, leastGap+1) {
		t.Error("of a source that knows nothing of its pace, headers are read through")
	}
}

// What one window takes depends on the gap behind the one before.
func TestWindowSizes(t *testing.T) {
	b := &httpBlob{blob: blob{size: 1 << 30, ahead: readAhead{most: maxCached}}}
	b.pace.began(time.Millisecond) // and the rate to start with: 1 KiB is worth a round trip
	fetch := func(off, least int64) int64 {
		n := min(b.window(off, least), b.size-off)
		b.ahead.add(off, make([]byte, n))
		return n
	}
	at := int64(0)
	for _, tc := range []struct {
		why              string
		gap, least, want int64
	}{
		{"the first", 0, 512, leastWindow},
		{"reading on", 0, 512, 2 * leastWindow},
		{"a small gap", leastGap, 512, 4 * leastWindow},
		{"again", leastGap, 512, 8 * leastWindow},
		{"and again", leastGap, 512, firstWindow},
		{"bounded", leastGap, 512, firstWindow},
		{"a wide gap", leastGap + 1, 512, leastWindow},
		{"what is wanted", leastGap + 1, 50_000, 50_000},
	} {
		at += tc.gap
		if n := fetch(at, tc.least); n != tc.want {
			t.Errorf("%s: %d bytes, want %d", tc.why, n, tc.want)
		}
		at = b.ahead.windows[len(b.ahead.windows)-1].end()
	}
	if n := fetch(at-51_000, 512); n != 1000 {
		t.Errorf("what is there is fetched again: %d", n)
	}
	if n := fetch(b.size-100, 512); n != 100 {
		t.Errorf("behind the end: %d", n)
	}
}
