package source_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tarlift/tarlift/internal/source"
)

// Servers that never get on with it, each of which holds a client without a limit for as long as it likes: opening
// the source ends, within some idle timeouts.
func TestHTTPOpenStalls(t *testing.T) {
	data := randomBytes(200_000)
	head := fmt.Sprintf("HTTP/1.1 206 Partial Content\r\nETag: %s\r\nContent-Range: bytes 0-65535/200000\r\nContent-Length: 65536\r\n\r\n", strongETag)
	for name, tc := range map[string]struct {
		why   string
		fault func(w http.ResponseWriter, r *http.Request)
	}{
		"silent":           {"accepts and hangs", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }},
		"half a head":      {"never ends its head", func(w http.ResponseWriter, _ *http.Request) { fallSilent(w, head[:40]) }},
		"trickling a head": {"each byte comes in time, the head does not", func(w http.ResponseWriter, _ *http.Request) { trickle(w, []byte(head), 1, 50*time.Millisecond) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // it is waiting
			srv := newServer(t, data, func(_ int, w http.ResponseWriter, r *http.Request) bool {
				tc.fault(w, r)
				return true
			})
			if got, err := plainGet(t, srv.URL, 0, 1000); err == nil {
				t.Fatalf("the fault does not happen: %d bytes", len(got))
			}
			opts := quick(srv.URL)
			opts.IdleTimeout = 300 * time.Millisecond
			before := len(srv.seen())
			if _, err := source.OpenHTTP(t.Context(), opts); !errors.Is(err, source.ErrUnavailable) {
				t.Errorf("error %v: %s", err, tc.why)
			}
			if n := len(srv.seen()) - before; n != 6 {
				t.Errorf("%d attempts", n)
			}
		})
	}
}

// The first answer's body may stall as well: what is missing of it is fetched when it is read.
func TestHTTPFirstWindowStalls(t *testing.T) {
	data := randomBytes(300_000)
	srv := newServer(t, data, func(n int, w http.ResponseWriter, r *http.Request) bool {
		if n == 1 {
			w.Header().Set("ETag", strongETag)
			stall(w, r, data, 10_000)
		}
		return false
	})
	opts := quick(srv.URL)
	opts.IdleTimeout = 300 * time.Millisecond
	wantSection(t, openHTTP(t, opts), 0, -1, data)
}

// A link that is slow but never silent is no fault: no limit on the whole, which a simple client would have to set.
func TestHTTPSlowLink(t *testing.T) {
	const off, n = 100_000, 3_000
	data := randomBytes(200_000)
	var slow atomic.Int64
	srv := newServer(t, data, func(_ int, w http.ResponseWriter, r *http.Request) bool {
		if first, _ := rangeOf(r); first != off {
			return false
		}
		slow.Add(1)
		head := fmt.Sprintf("HTTP/1.1 206 Partial Content\r\nETag: %s\r\nContent-Range: bytes %d-%d/%d\r\nContent-Length: %d\r\n\r\n",
			strongETag, off, off+n-1, len(data), n)
		trickle(w, append([]byte(head), data[off:off+n]...), 150, 100*time.Millisecond)
		return true
	})
	opts := quick(srv.URL)
	opts.IdleTimeout = time.Second // less than the whole takes
	b := openHTTP(t, opts)
	if got, err := plainGet(t, srv.URL, off, n); err == nil {
		t.Fatalf("the fault does not happen: %d bytes in a second", len(got))
	}
	slow.Store(0)
	wantSection(t, b, off, n, data[off:off+n])
	if slow.Load() != 1 {
		t.Errorf("%d requests", slow.Load())
	}
}

// A server that asks for time gets it, when a source is opened and in the middle of it.
func TestHTTPRetryAfter(t *testing.T) {
	data := randomBytes(200_000)
	var refuse atomic.Bool
	srv := newServer(t, data, func(_ int, w http.ResponseWriter, _ *http.Request) bool {
		if !refuse.Swap(false) {
			return false
		}
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusTooManyRequests)
		return true
	})
	timed := func(f func()) {
		t.Helper()
		refuse.Store(true)
		start := time.Now()
		f()
		if took := time.Since(start); took < time.Second {
			t.Errorf("asked again after %s, a second was wished for", took)
		}
	}
	var b source.Blob
	timed(func() { b = openHTTP(t, quick(srv.URL)) })
	timed(func() { wantSection(t, b, 100_000, 1000, data[100_000:101_000]) })
}

// Three redirects in a row are followed, of each request anew, and no more.
func TestHTTPRedirectsAreBounded(t *testing.T) {
	data := randomBytes(200_000)
	srv := newServer(t, data, func(_ int, w http.ResponseWriter, r *http.Request) bool {
		if next, more := strings.CutPrefix(r.URL.Path, "/hop"); more {
			http.Redirect(w, r, next, http.StatusFound)
			return true
		}
		return false
	})
	b := openHTTP(t, quick(srv.URL+"/hop/hop/hop/a.tar"))
	wantSection(t, b, 0, -1, data)
	before := len(srv.seen())
	if _, err := source.OpenHTTP(t.Context(), quick(srv.URL+"/hop/hop/hop/hop/a.tar")); !errors.Is(err, source.ErrUnavailable) {
		t.Errorf("four redirects: %v", err)
	}
	if n := len(srv.seen()) - before; n != 4 {
		t.Errorf("four redirects: %d requests", n)
	}
}

// The limit of all this: a file of the same size under the same validator cannot be told from the old one here. What
// was pinned or is named by its digest is verified later; the documentation says so.
func TestHTTPReplacedUnderSameValidator(t *testing.T) {
	data, other := randomBytes(200_000), make([]byte, 200_000)
	var replaced atomic.Bool
	srv := newServer(t, data, func(_ int, w http.ResponseWriter, r *http.Request) bool {
		if !replaced.Load() {
			return false
		}
		w.Header().Set("ETag", strongETag)
		serveData(w, r, other)
		return true
	})
	b := openHTTP(t, quick(srv.URL))
	replaced.Store(true)
	if got, err := readSection(t, b, 100_000, 1000); err != nil || !bytes.Equal(got, other[:1000]) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// A stream ends where its Content-Length says, whatever follows, and not before.
func TestHTTPStreamLength(t *testing.T) {
	data := randomBytes(100_000)
	for name, tc := range map[string]struct {
		length int
		want   error
	}{
		"right":     {len(data), nil},
		"too short": {60_000, nil}, // an archive that is cut short, which the archive's own end tells
		"too long":  {100_001, source.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			srv := newServer(t, data, func(_ int, w http.ResponseWriter, _ *http.Request) bool {
				trickle(w, append(fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", tc.length), data...), 1<<20, 0)
				return true
			})
			b := openHTTP(t, quick(srv.URL))
			got, err := readSection(t, b, 0, -1)
			if !errors.Is(err, tc.want) || !bytes.Equal(got, data[:min(tc.length, len(data))]) {
				t.Errorf("%d bytes, error %v, want %v", len(got), err, tc.want)
			}
		})
	}
}
