package source_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

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
	if limit := int64(firstWindow + size/step*(16<<10)); b.BytesRead() > limit {
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
		opts.Anywhere, opts.AllowAddresses = false, []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
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
