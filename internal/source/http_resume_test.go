package source_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tarlift/tarlift/internal/source"
)

// Each server here would break a simple client, which the test shows first; a section comes through.
func TestHTTPResume(t *testing.T) {
	data := randomBytes(300_000)
	const off, n = 100_000, 150_000
	for name, tc := range map[string]struct {
		why     string
		idle    time.Duration
		surplus bool // the server sends more, or what it sends cannot be counted
		fault   func(i int, w http.ResponseWriter, r *http.Request)
	}{
		"breaks every 10,000 bytes": {why: "a bad link", fault: func(_ int, w http.ResponseWriter, r *http.Request) {
			cut(w, r, data, 10_000)
		}},
		"breaks before the first byte, twice": {why: "a proxy that restarts", fault: func(i int, w http.ResponseWriter, r *http.Request) {
			if i <= 2 {
				cut(w, r, data, 0)
			}
			serveData(w, r, data)
		}},
		"503, then good": {why: "an overloaded server", fault: func(i int, w http.ResponseWriter, r *http.Request) {
			if i <= 3 {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			serveData(w, r, data)
		}},
		"429 with Retry-After": {why: "a rate limit", fault: func(i int, w http.ResponseWriter, r *http.Request) {
			if i == 1 {
				w.Header().Set("Retry-After", "1")
				w.WriteHeader(http.StatusTooManyRequests)
				return
			}
			serveData(w, r, data)
		}},
		"gives half of each range": {why: "RFC 9110 15.3.7 allows a part of it", fault: func(_ int, w http.ResponseWriter, r *http.Request) {
			first, last := rangeOf(r)
			r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", first, (first+last)/2))
			serveData(w, r, data)
		}},
		"short body": {why: "Content-Length promises more", fault: func(_ int, w http.ResponseWriter, r *http.Request) {
			cut(w, r, data, 60_000)
		}},
		"short body without a length": {why: "a clean end that comes too early", fault: func(_ int, w http.ResponseWriter, r *http.Request) {
			first, last := rangeOf(r)
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, len(data)))
			w.WriteHeader(http.StatusPartialContent)
			http.NewResponseController(w).Flush()
			w.Write(data[first:min(first+60_000, last+1)])
		}},
		"Content-Length below the range": {why: "a proxy that cuts", fault: func(_ int, w http.ResponseWriter, r *http.Request) {
			first, last := rangeOf(r)
			part(w, data, first, last, data[first:min(first+60_000, last+1)])
		}},
		"Content-Length above the range": {why: "what follows are bytes from nowhere", surplus: true, fault: func(_ int, w http.ResponseWriter, r *http.Request) {
			first, last := rangeOf(r)
			last = min(first+60_000-1, last)
			part(w, data, first, last, append(slices.Clone(data[first:last+1]), make([]byte, 10_000)...))
		}},
		"more than was asked for": {why: "the end is not where it was wanted", surplus: true, fault: func(_ int, w http.ResponseWriter, r *http.Request) {
			first, last := rangeOf(r)
			if r.Header.Set("Range", fmt.Sprintf("bytes=%d-", first)); last-first == n-1 {
				cut(w, r, data, 60_000)
			}
			serveData(w, r, data)
		}},
		"resets": {why: "a firewall that lost its table", surplus: true, fault: func(i int, w http.ResponseWriter, r *http.Request) {
			if i == 1 {
				reset(w, r, data, 50_000)
				return
			}
			serveData(w, r, data)
		}},
		"stalls": {why: "a switch that lost the connection", idle: 300 * time.Millisecond, fault: func(i int, w http.ResponseWriter, r *http.Request) {
			if i == 1 {
				stall(w, r, data, 50_000)
			}
			serveData(w, r, data)
		}},
		"stalls before its head": {why: "a server that accepts and hangs", idle: 300 * time.Millisecond, fault: func(i int, w http.ResponseWriter, r *http.Request) {
			if i == 1 {
				<-r.Context().Done()
				return
			}
			serveData(w, r, data)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			var faulty atomic.Int64
			var armed atomic.Bool
			srv := newServer(t, data, func(_ int, w http.ResponseWriter, r *http.Request) bool {
				if !armed.Load() {
					return false
				}
				w.Header().Set("ETag", strongETag)
				tc.fault(int(faulty.Add(1)), w, r)
				return true
			})
			opts := quick(srv.URL)
			if tc.idle > 0 {
				opts.IdleTimeout = tc.idle
			}
			b := openHTTP(t, opts)
			armed.Store(true)
			if got, err := plainGet(t, srv.URL, off, n); err == nil && len(got) == n {
				t.Fatalf("the fault does not happen: %s", tc.why)
			}
			faulty.Store(0)
			before, sent := b.BytesRead(), srv.sent.Load()
			wantSection(t, b, off, n, data[off:off+n])
			if got := b.BytesRead() - before; got != n {
				t.Errorf("BytesRead grew by %d for %d bytes: it did not continue at the exact byte", got, n)
			}
			if got := srv.sent.Load() - sent; got != n && tc.idle == 0 && !tc.surplus {
				t.Errorf("the server sent %d bytes for %d", got, n)
			}
			if faulty.Load() < 2 {
				t.Errorf("%d requests", faulty.Load())
			}
			for _, r := range srv.seen()[2:] {
				if r.Header.Get("If-Range") != strongETag || r.Method != http.MethodGet {
					t.Fatalf("%s with If-Range %q", r.Method, r.Header.Get("If-Range"))
				}
			}
		})
	}
}

// The first answer may break too: what arrived of it is kept, the rest is fetched.
func TestHTTPBrokenFirstWindow(t *testing.T) {
	data := randomBytes(300_000)
	srv := newServer(t, data, func(n int, w http.ResponseWriter, r *http.Request) bool {
		if n == 1 {
			w.Header().Set("ETag", strongETag)
			cut(w, r, data, 10_000)
		}
		return false
	})
	b := openHTTP(t, quick(srv.URL))
	wantSection(t, b, 0, -1, data)
	if b.BytesRead() != int64(len(data)) {
		t.Errorf("BytesRead is %d", b.BytesRead())
	}
}

// What no resuming helps against ends with the right error.
func TestHTTPSectionErrors(t *testing.T) {
	data, other := randomBytes(300_000), make([]byte, 300_000)
	status := func(code int) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	part := func(etag, contentRange string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("ETag", etag)
			w.Header().Set("Content-Range", contentRange)
			w.WriteHeader(http.StatusPartialContent)
			w.Write(other[:1000])
		}
	}
	for name, tc := range map[string]struct {
		why   string
		fault func(w http.ResponseWriter, r *http.Request)
		want  error
	}{
		"replaced": {"If-Range answers 200 with the new file", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"v2"`)
			serveData(w, r, other)
		}, source.ErrChanged},
		"replaced, If-Range ignored":  {"the new ETag tells", part(`"v2"`, "bytes 100000-249999/300000"), source.ErrChanged},
		"replaced, ETag left out":     {"nothing says that it is the same", part("", "bytes 100000-249999/300000"), source.ErrChanged},
		"replaced, no validator":      {"the whole of something cannot be a part", func(w http.ResponseWriter, _ *http.Request) { w.Write(other) }, source.ErrChanged},
		"other total size":            {"cannot be the same file", part(strongETag, "bytes 100000-249999/300001"), source.ErrChanged},
		"416":                         {"it became shorter", status(http.StatusRequestedRangeNotSatisfiable), source.ErrChanged},
		"404":                         {"deleted", status(http.StatusNotFound), source.ErrNotFound},
		"410":                         {"deleted for good", status(http.StatusGone), source.ErrNotFound},
		"401":                         {"the token expired", status(http.StatusUnauthorized), source.ErrDenied},
		"403":                         {"the signature expired", status(http.StatusForbidden), source.ErrDenied},
		"400":                         {"trying again changes nothing", status(http.StatusBadRequest), source.ErrUnavailable},
		"always 503":                  {"attempts are bounded", status(http.StatusServiceUnavailable), source.ErrUnavailable},
		"wrong place":                 {"bytes from elsewhere", part(strongETag, "bytes 100001-249999/300000"), source.ErrUnavailable},
		"malformed Content-Range":     {"bytes from anywhere", part(strongETag, "bytes a-b/c"), source.ErrUnavailable},
		"no Content-Range":            {"bytes from anywhere", part(strongETag, ""), source.ErrUnavailable},
		"Content-Range beyond int64":  {"must not overflow", part(strongETag, "bytes 100000-99999999999999999999/300000"), source.ErrUnavailable},
		"always breaks without bytes": {"no progress, bounded", func(w http.ResponseWriter, r *http.Request) { cut(w, r, data, 0) }, source.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			var armed atomic.Bool
			srv := newServer(t, data, func(_ int, w http.ResponseWriter, r *http.Request) bool {
				if !armed.Load() {
					return false
				}
				w.Header().Set("ETag", strongETag)
				tc.fault(w, r)
				return true
			})
			b := openHTTP(t, quick(srv.URL))
			wantSection(t, b, 250_000, 1000, data[250_000:251_000])
			armed.Store(true)
			r, err := b.Section(t.Context(), 100_000, 150_000)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			got, err := io.ReadAll(r)
			if !errors.Is(err, tc.want) {
				t.Fatalf("error %v, want %v: %s", err, tc.want, tc.why)
			}
			if len(got) > 0 {
				t.Errorf("%d bytes were given away first", len(got))
			}
			if _, again := r.Read(make([]byte, 1)); !errors.Is(again, tc.want) {
				t.Errorf("the next read: %v", again)
			}
		})
	}
}

// A stream cannot be resumed, and says so.
func TestHTTPStreamErrors(t *testing.T) {
	data := randomBytes(300_000)
	for name, tc := range map[string]struct {
		why   string
		fault func(w http.ResponseWriter, r *http.Request)
	}{
		"breaks": {"no range to ask for the rest", func(w http.ResponseWriter, r *http.Request) { cut(w, r, data, 100_000) }},
		"stalls": {"counts as broken", func(w http.ResponseWriter, r *http.Request) { stall(w, r, data, 100_000) }},
	} {
		t.Run(name, func(t *testing.T) {
			srv := newServer(t, data, func(_ int, w http.ResponseWriter, r *http.Request) bool {
				r.Header.Del("Range")
				tc.fault(w, r)
				return true
			})
			opts := quick(srv.URL)
			opts.IdleTimeout = 300 * time.Millisecond
			b := openHTTP(t, opts)
			if b.RandomAccess() {
				t.Fatal("random access without ranges")
			}
			got, err := readSection(t, b, 0, -1)
			if !errors.Is(err, source.ErrUnavailable) {
				t.Errorf("error %v: %s", err, tc.why)
			}
			if !bytes.Equal(got, data[:len(got)]) || b.BytesRead() != int64(len(got)) {
				t.Errorf("%d bytes, BytesRead %d", len(got), b.BytesRead())
			}
		})
	}
}
