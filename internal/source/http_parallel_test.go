package source_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tarlift/tarlift/internal/source"
)

// parallel is how many sections an importer may have open, and then some.
const parallel = 8

// openSections opens sections side by side and reads the first bytes of each, so that all have a connection.
func openSections(t *testing.T, b source.Blob, data []byte, size, first int) []io.ReadCloser {
	t.Helper()
	sections := make([]io.ReadCloser, parallel)
	for i := range sections {
		off := i * size
		r, err := b.Section(t.Context(), int64(off), int64(size))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		head := make([]byte, first)
		if _, err := io.ReadFull(r, head); err != nil || !bytes.Equal(head, data[off:off+first]) {
			t.Fatalf("section %d: %v", i, err)
		}
		sections[i] = r
	}
	return sections
}

// readRests reads all sections to their ends at the same time.
func readRests(sections []io.ReadCloser) (rests [parallel][]byte, errs [parallel]error) {
	var all sync.WaitGroup
	for i, r := range sections {
		all.Go(func() {
			rests[i], errs[i] = io.ReadAll(r)
			r.Close()
		})
	}
	all.Wait()
	return rests, errs
}

// Each range needs a connection, and one that is there already costs no round trips. With the two that net/http
// keeps by itself there would be six new ones in each round.
func TestHTTPConnectionsAreKept(t *testing.T) {
	const size, first, rounds = 300_000, 100_000, 5
	data := randomBytes(parallel * size)
	var sent atomic.Int64
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", strongETag)
		serveData(&countingWriter{w, &sent}, r, data)
	}))
	l := &countingListener{Listener: srv.Listener}
	srv.Listener = l
	srv.Start()
	t.Cleanup(srv.Close)

	b := openHTTP(t, quick(srv.URL))
	for off := int64(200_000); off < int64(len(data)); off += 100_000 {
		if _, err := b.ReadAt(make([]byte, 512), off); err != nil {
			t.Fatal(err)
		}
	}
	if n := l.accepted.Load(); n != 1 {
		t.Errorf("%d connections for one reader", n)
	}
	for range rounds {
		rests, errs := readRests(openSections(t, b, data, size, first))
		for i, rest := range rests {
			if off := i * size; errs[i] != nil || !bytes.Equal(rest, data[off+first:off+size]) {
				t.Fatalf("section %d: %d bytes, %v", i, len(rest), errs[i])
			}
		}
	}
	if n := l.accepted.Load(); n > parallel {
		t.Errorf("%d connections for %d readers", n, parallel)
	}
	if b.BytesRead() != sent.Load() {
		t.Errorf("BytesRead is %d, the server sent %d", b.BytesRead(), sent.Load())
	}
}

// breaking serves data, of which each first answer to a section ends after cutAt bytes, once gate is open.
func breaking(t *testing.T, data []byte, cutAt int64, after func(w http.ResponseWriter, r *http.Request)) (b source.Blob, srv *server, gate chan struct{}) {
	t.Helper()
	gate = make(chan struct{})
	var armed atomic.Bool
	srv = newServer(t, data, func(_ int, w http.ResponseWriter, r *http.Request) bool {
		if !armed.Load() {
			return false
		}
		select {
		case <-gate:
			after(w, r)
		default:
			w.Header().Set("ETag", strongETag)
			serveData(&gatedWriter{w, r.Context(), gate, cutAt}, r, data)
		}
		return true
	})
	b = openHTTP(t, quick(srv.URL))
	armed.Store(true)
	return b, srv, gate
}

// gatedWriter writes some bytes, waits, and breaks the connection.
type gatedWriter struct {
	http.ResponseWriter
	ctx  context.Context
	gate <-chan struct{}
	left int64
}

func (w *gatedWriter) Write(p []byte) (int, error) {
	if int64(len(p)) < w.left {
		w.left -= int64(len(p))
		return w.ResponseWriter.Write(p)
	}
	w.ResponseWriter.Write(p[:w.left])
	http.NewResponseController(w.ResponseWriter).Flush()
	select {
	case <-w.gate:
	case <-w.ctx.Done():
	}
	panic(http.ErrAbortHandler)
}

func (w *gatedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// A server that restarts breaks all connections at once. Each section goes on at its own byte.
func TestHTTPSectionsResumeTogether(t *testing.T) {
	const size, first, cutAt = 300_000, 100_000, 150_000
	data := randomBytes(parallel * size)
	b, srv, gate := breaking(t, data, cutAt, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", strongETag)
		serveData(w, r, data)
	})
	before, sent := b.BytesRead(), srv.sent.Load()
	sections := openSections(t, b, data, size, first)
	close(gate)
	rests, errs := readRests(sections)
	for i, rest := range rests {
		if off := i * size; errs[i] != nil || !bytes.Equal(rest, data[off+first:off+size]) {
			t.Fatalf("section %d: %d bytes, %v", i, len(rest), errs[i])
		}
	}
	// The first window was there before.
	const want = parallel*size - firstWindow
	if read, sent := b.BytesRead()-before, srv.sent.Load()-sent; read != want || sent != want {
		t.Errorf("BytesRead grew by %d, the server sent %d; want %d", read, sent, want)
	}
	if n := len(srv.seen()) - 1; n != 2*parallel {
		t.Errorf("%d requests; each section needs two", n)
	}
}

// The file is replaced while sections are open: none of them ends well, and none gives a byte of the new file.
func TestHTTPReplacedUnderSections(t *testing.T) {
	const size, first, cutAt = 300_000, 100_000, 150_000
	data, other := randomBytes(parallel*size), make([]byte, parallel*size)
	for name, after := range map[string]func(w http.ResponseWriter, r *http.Request){
		"If-Range honoured": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"v2"`)
			serveData(w, r, other)
		},
		"If-Range ignored": func(w http.ResponseWriter, r *http.Request) {
			r.Header.Del("If-Range")
			w.Header().Set("ETag", `"v2"`)
			serveData(w, r, other)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b, _, gate := breaking(t, data, cutAt, after)
			sections := openSections(t, b, data, size, first)
			close(gate)
			rests, errs := readRests(sections)
			for i, rest := range rests {
				if !errors.Is(errs[i], source.ErrChanged) {
					t.Errorf("section %d: %v", i, errs[i])
				}
				if off := i*size + first; !bytes.Equal(rest, data[off:off+len(rest)]) {
					t.Errorf("section %d gave other bytes", i)
				}
			}
			if _, err := b.ReadAt(make([]byte, 10), size-10); !errors.Is(err, source.ErrChanged) {
				t.Errorf("ReadAt: %v", err)
			}
		})
	}
}

// Windows are shared by concurrent readers, and thrown away while others copy from them.
func TestHTTPConcurrentReadAt(t *testing.T) {
	data := randomBytes(16 << 20)
	srv := newServer(t, data, nil)
	b := openHTTP(t, quick(srv.URL))
	var all sync.WaitGroup
	for i := range uint64(parallel) {
		all.Go(func() {
			r := rand.New(rand.NewPCG(i, 0))
			for range 300 {
				buf := make([]byte, 1+r.IntN(20_000))
				off := r.IntN(len(data) - len(buf))
				if _, err := b.ReadAt(buf, int64(off)); err != nil || !bytes.Equal(buf, data[off:off+len(buf)]) {
					t.Errorf("%d bytes at %d: %v", len(buf), off, err)
					return
				}
			}
		})
	}
	all.Wait()
	if b.BytesRead() != srv.sent.Load() {
		t.Errorf("BytesRead is %d, the server sent %d", b.BytesRead(), srv.sent.Load())
	}
}

// Who closes a section early gives its connection up: what is on the way arrives, the rest is never sent.
func TestHTTPSectionClosedEarly(t *testing.T) {
	const size, read, limit = 256 << 20, 100_000, 1 << 20
	ended := make(chan struct{})
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", strongETag)
		http.ServeContent(w, r, "", time.Time{}, io.NewSectionReader(zeros{}, 0, size))
		if first, _ := rangeOf(r); first > 0 {
			<-r.Context().Done() // the client is gone
			close(ended)
		}
	}))
	l := &countingListener{Listener: srv.Listener}
	srv.Listener = l
	srv.Start()
	t.Cleanup(srv.Close)

	b := openHTTP(t, quick(srv.URL))
	before := l.sent.Load()
	r, err := b.Section(t.Context(), firstWindow, -1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, read)); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	<-ended
	if got := l.sent.Load() - before; got > read+limit {
		t.Errorf("the server sent %d bytes of %d, of which %d were read", got, size, read)
	}
	if got := b.BytesRead(); got != firstWindow+read {
		t.Errorf("BytesRead is %d", got)
	}
}
