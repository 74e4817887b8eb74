package source_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tarlift/tarlift/internal/source"
)

const archiveSize = 1 << 20

// Go's own file server sends Last-Modified and no ETag, and is what many people serve files with.
func TestHTTPFileServer(t *testing.T) {
	data := randomBytes(archiveSize)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.tar"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	var sent atomic.Int64
	files := http.FileServer(http.Dir(dir))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		files.ServeHTTP(&countingWriter{w, &sent}, r)
	}))
	defer srv.Close()

	b := openHTTP(t, quick(srv.URL+"/a.tar"))
	if !b.RandomAccess() || b.Size() != archiveSize || b.Validator() == "" || source.WhyStream(b) != "" {
		t.Fatalf("random access %v, size %d, validator %q", b.RandomAccess(), b.Size(), b.Validator())
	}
	wantSection(t, b, 500_000, 100_000, data[500_000:600_000])
	wantSection(t, b, archiveSize-10, -1, data[archiveSize-10:])
	wantSection(t, b, archiveSize-10, 100, data[archiveSize-10:])
	wantSection(t, b, archiveSize, -1, nil)
	wantSection(t, b, 0, -1, data)

	buf := make([]byte, 1000)
	if n, err := b.ReadAt(buf, 300_000); n != 1000 || err != nil || !bytes.Equal(buf, data[300_000:301_000]) {
		t.Errorf("ReadAt: %d bytes, %v", n, err)
	}
	if n, err := b.ReadAt(buf, archiveSize-1); n != 1 || err != io.EOF { //nolint:errorlint // io.ReaderAt gives it bare
		t.Errorf("ReadAt over the end: %d bytes, %v", n, err)
	}
	if got, want := b.BytesRead(), sent.Load(); got != want {
		t.Errorf("BytesRead is %d, the server sent %d", got, want)
	}
}

// Walking an archive header by header must not read the layers between the headers, and what was read
// for a header is not read again.
func TestHTTPReadAtReadsLittle(t *testing.T) {
	const step, size = 1 << 20, 64 << 20
	data := make([]byte, size)
	copy(data[size-1000:], "the end")
	srv := newServer(t, data, nil)
	b := openHTTP(t, quick(srv.URL))
	header := make([]byte, 512)
	for pass := range 2 {
		before := len(srv.seen())
		for off := int64(0); off < size; off += step {
			if _, err := b.ReadAt(header, off); err != nil {
				t.Fatal(err)
			}
		}
		if n := len(srv.seen()) - before; pass == 1 && n > 0 {
			t.Errorf("the second walk sent %d requests", n)
		}
	}
	if limit := int64(512 << 10); b.BytesRead() > limit {
		t.Errorf("read %d bytes for %d headers, more than %d", b.BytesRead(), size/step, limit)
	}
	if b.BytesRead() != srv.sent.Load() {
		t.Errorf("BytesRead is %d, the server sent %d", b.BytesRead(), srv.sent.Load())
	}
}

// Sequential reads become larger, so that metadata in one piece takes few requests.
func TestHTTPReadAtReadsAhead(t *testing.T) {
	data := randomBytes(archiveSize)
	srv := newServer(t, data, nil)
	b := openHTTP(t, quick(srv.URL))
	got, err := io.ReadAll(io.NewSectionReader(b, 200_000, 600_000))
	if err != nil || !bytes.Equal(got, data[200_000:800_000]) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if n := len(srv.seen()); n > 20 {
		t.Errorf("%d requests for 600 kB", n)
	}
}

// Several sections are read at once, with ReadAt between them.
func TestHTTPConcurrentSections(t *testing.T) {
	data := randomBytes(archiveSize)
	srv := newServer(t, data, nil)
	b := openHTTP(t, quick(srv.URL))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			off := int64(i) * 100_000
			r, err := b.Section(t.Context(), off, 100_000)
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Close()
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data[off:off+100_000]) {
				t.Errorf("section at %d: %d bytes, %v", off, len(got), err)
			}
			if _, err := b.ReadAt(make([]byte, 10), off+50_000); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// What decides between random access and a stream, and what a stream still gives.
func TestHTTPKindOfAccess(t *testing.T) {
	data := randomBytes(200_000)
	withHeaders := func(headers ...string) func(int, http.ResponseWriter, *http.Request) bool {
		return func(_ int, w http.ResponseWriter, r *http.Request) bool {
			for i := 0; i < len(headers); i += 2 {
				w.Header().Set(headers[i], headers[i+1])
			}
			date, _ := http.ParseTime(w.Header().Get("Last-Modified"))
			http.ServeContent(w, r, "", date, bytes.NewReader(data))
			return true
		}
	}
	rewrite := func(status int, contentRange string) func(int, http.ResponseWriter, *http.Request) bool {
		return func(_ int, w http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("Range") == "" {
				serveData(w, r, data)
				return true
			}
			w.Header().Set("ETag", strongETag)
			w.Header().Set("Content-Range", contentRange)
			w.WriteHeader(status)
			w.Write(data[:firstWindow])
			return true
		}
	}
	for name, tc := range map[string]struct {
		why    string
		fault  func(int, http.ResponseWriter, *http.Request) bool
		random bool
	}{
		"strong ETag":        {"RFC 9110 13.1.5 allows it", withHeaders("ETag", strongETag), true},
		"Last-Modified":      {"what file servers send", withHeaders("Last-Modified", lastModified), true},
		"weak ETag and date": {"the date is still good", withHeaders("ETag", `W/"v1"`, "Last-Modified", lastModified), true},
		"weak ETag":          {"If-Range needs a strong one", withHeaders("ETag", `W/"v1"`), false},
		"no validator":       {"later ranges could be of another file", withHeaders(), false},
		"malformed date":     {"no validator either", withHeaders("Last-Modified", "yesterday"), false},
		"ignored Range": {"a server may (RFC 9110 14.2)", func(_ int, w http.ResponseWriter, r *http.Request) bool {
			r.Header.Del("Range")
			return withHeaders("ETag", strongETag)(0, w, r)
		}, false},
		"unknown total":       {"the size is needed to find things", rewrite(206, "bytes 0-65535/*"), false},
		"other first bytes":   {"not what was asked for", rewrite(206, "bytes 5-65540/200000"), false},
		"no Content-Range":    {"which bytes are these?", rewrite(206, ""), false},
		"multipart":           {"not to be sent for one range", rewrite(206, "multipart/byteranges"), false},
		"range not satisfied": {"some servers do so for files below the range", rewrite(416, "bytes */5"), false},
	} {
		t.Run(name, func(t *testing.T) {
			srv := newServer(t, data, tc.fault)
			b := openHTTP(t, quick(srv.URL))
			if b.RandomAccess() != tc.random {
				t.Fatalf("random access is %v (%s); want %v: %s", b.RandomAccess(), source.WhyStream(b), tc.random, tc.why)
			}
			if (source.WhyStream(b) == "") != tc.random {
				t.Errorf("reason for a stream: %q", source.WhyStream(b))
			}
			if b.Size() != int64(len(data)) {
				t.Errorf("size is %d", b.Size())
			}
			wantSection(t, b, 0, -1, data)
			if !tc.random {
				if _, err := b.Section(t.Context(), 0, -1); !errors.Is(err, source.ErrInvalid) {
					t.Errorf("a second section of a stream: %v", err)
				}
				if _, err := b.ReadAt(make([]byte, 1), 0); !errors.Is(err, source.ErrInvalid) {
					t.Errorf("ReadAt of a stream: %v", err)
				}
			}
		})
	}
}

const firstWindow = 64 << 10

func TestHTTPEmptyFile(t *testing.T) {
	srv := newServer(t, nil, func(_ int, w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Range") != "" {
			w.Header().Set("Content-Range", "bytes */0")
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return true
		}
		return false
	})
	b := openHTTP(t, quick(srv.URL))
	wantSection(t, b, 0, -1, nil)
}

// Each server here would break a simple client, which the test shows first; a section comes through.
func TestHTTPResume(t *testing.T) {
	data := randomBytes(300_000)
	const off, n = 100_000, 150_000
	for name, tc := range map[string]struct {
		why   string
		idle  time.Duration
		fault func(i int, w http.ResponseWriter, r *http.Request)
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
			if got := srv.sent.Load() - sent; got != n && tc.idle == 0 {
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

// A caller that gives up gets its own error back, at once, wherever the server hangs.
func TestHTTPCancel(t *testing.T) {
	data := randomBytes(300_000)
	reached := make(chan struct{}, 10)
	var hang atomic.Bool
	srv := newServer(t, data, func(_ int, _ http.ResponseWriter, r *http.Request) bool {
		if !hang.Load() {
			return false
		}
		reached <- struct{}{}
		<-r.Context().Done()
		return true
	})
	b := openHTTP(t, quick(srv.URL))
	hang.Store(true)

	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-reached; cancel() }()
	r, err := b.Section(ctx, 100_000, 1000)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadAll(r); !errors.Is(err, context.Canceled) || errors.Is(err, source.ErrUnavailable) {
		t.Errorf("section: %v", err)
	}

	ctx, cancel = context.WithCancel(t.Context())
	go func() { <-reached; cancel() }()
	if _, err := source.OpenHTTP(ctx, quick(srv.URL)); !errors.Is(err, context.Canceled) || errors.Is(err, source.ErrUnavailable) {
		t.Errorf("open: %v", err)
	}

	go func() { <-reached; b.Close() }()
	if _, err := b.ReadAt(make([]byte, 1), 200_000); err == nil {
		t.Error("ReadAt of a closed blob")
	}
}

// Errors and names end up in status: nothing in them may be a secret, a response, or vary.
func TestHTTPTextsGiveNothingAway(t *testing.T) {
	srv := newServer(t, nil, func(_ int, w http.ResponseWriter, r *http.Request) bool {
		switch r.URL.Path {
		case "/redirect":
			http.Redirect(w, r, "http://169.254.169.254/x?sig=s3cr3t", http.StatusFound)
		case "/garbage":
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				conn.Write([]byte("s3cr3t\x1b[31m\r\n\r\n"))
				conn.Close()
			}
		case "/break":
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				conn.Close()
			}
		default:
			http.Error(w, "s3cr3t", http.StatusForbidden)
		}
		return true
	})
	port := srv.URL[strings.LastIndex(srv.URL, ":")+1:]
	for _, path := range []string{"/redirect", "/garbage", "/break", "/denied"} {
		opts := quick(srv.URL + path + "?sig=s3cr3t#s3cr3t")
		opts.BearerToken = "s3cr3t"
		var texts [2]string
		for i := range texts {
			_, err := source.OpenHTTP(t.Context(), opts)
			if err == nil {
				t.Fatalf("%s was opened", path)
			}
			texts[i] = err.Error()
		}
		if texts[0] != texts[1] {
			t.Errorf("%s: two texts for one cause: %q, %q", path, texts[0], texts[1])
		}
		if strings.Contains(texts[0], "s3cr3t") || strings.ContainsRune(texts[0], 0x1b) {
			t.Errorf("%s: %q", path, texts[0])
		}
		if strings.Count(texts[0], "127.0.0.1:") != strings.Count(texts[0], "127.0.0.1:"+port) {
			t.Errorf("%s: a local port in %q", path, texts[0])
		}
	}
}
