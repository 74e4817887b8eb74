package source_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tarlift/tarlift/internal/source"
)

const (
	strongETag   = `"v1"`
	lastModified = "Wed, 01 Jul 2026 10:00:00 GMT"
)

// server serves one archive as http.ServeContent does, and misbehaves where a test wants it to.
type server struct {
	*httptest.Server
	data []byte
	// fault looks at the n-th request (from 1) first; true means that it has answered it.
	fault func(n int, w http.ResponseWriter, r *http.Request) bool

	mu       sync.Mutex
	requests []*http.Request
	sent     atomic.Int64 // bytes of bodies
}

func newServer(t *testing.T, data []byte, fault func(int, http.ResponseWriter, *http.Request) bool) *server {
	t.Helper()
	s := &server{data: data, fault: fault}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests = append(s.requests, r)
	n := len(s.requests)
	s.mu.Unlock()
	w = &countingWriter{w, &s.sent}
	if s.fault != nil && s.fault(n, w, r) {
		return
	}
	w.Header().Set("ETag", strongETag)
	serveData(w, r, s.data)
}

func (s *server) seen() []*http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests
}

func serveData(w http.ResponseWriter, r *http.Request, data []byte) {
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
}

// countingListener counts connections, and all that is sent over them, but for what the kernel holds back.
type countingListener struct {
	net.Listener
	accepted atomic.Int64
	sent     atomic.Int64
}

func (l *countingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.accepted.Add(1)
	if err := conn.(*net.TCPConn).SetWriteBuffer(sendBuffer); err != nil {
		return nil, err
	}
	return &countingConn{conn, l}, nil
}

// sendBuffer bounds what the kernel holds back, in bytes; by itself it takes megabytes.
const sendBuffer = 64 << 10

type countingConn struct {
	net.Conn
	l *countingListener
}

func (c *countingConn) Write(p []byte) (int, error) {
	c.l.sent.Add(int64(len(p))) // before the client can have it
	return c.Conn.Write(p)
}

type countingWriter struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (w *countingWriter) Write(p []byte) (int, error) {
	w.n.Add(int64(len(p))) // before the client can have it
	return w.ResponseWriter.Write(p)
}

func (w *countingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// cut answers like serveData, but the connection ends after k bytes of the body.
func cut(w http.ResponseWriter, r *http.Request, data []byte, k int64) {
	serveData(&cuttingWriter{w, k}, r, data)
	abort(w)
}

// abort breaks the connection; what was written before is sent.
func abort(w http.ResponseWriter) {
	http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

type cuttingWriter struct {
	http.ResponseWriter
	left int64
}

func (w *cuttingWriter) Write(p []byte) (int, error) {
	if int64(len(p)) > w.left {
		w.ResponseWriter.Write(p[:w.left])
		abort(w.ResponseWriter)
	}
	w.left -= int64(len(p))
	return w.ResponseWriter.Write(p)
}

// stall sends the head of the answer and some bytes, and then nothing until the client goes.
func stall(w http.ResponseWriter, r *http.Request, data []byte, k int64) {
	serveData(&stallingWriter{w, r.Context(), k}, r, data)
}

type stallingWriter struct {
	http.ResponseWriter
	ctx  context.Context
	left int64
}

func (w *stallingWriter) Write(p []byte) (int, error) {
	if int64(len(p)) > w.left {
		w.ResponseWriter.Write(p[:w.left])
		http.NewResponseController(w.ResponseWriter).Flush()
		<-w.ctx.Done()
		panic(http.ErrAbortHandler)
	}
	w.left -= int64(len(p))
	return w.ResponseWriter.Write(p)
}

// part answers that it sends the bytes from first to last of data, and sends body.
func part(w http.ResponseWriter, data []byte, first, last int, body []byte) {
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, len(data)))
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(http.StatusPartialContent)
	w.Write(body)
}

// reset sends the head of an answer and n bytes, and then a TCP reset.
func reset(w http.ResponseWriter, r *http.Request, data []byte, n int) {
	first, last := rangeOf(r)
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	fmt.Fprintf(conn, "HTTP/1.1 206 Partial Content\r\nETag: %s\r\nContent-Range: bytes %d-%d/%d\r\nContent-Length: %d\r\n\r\n",
		strongETag, first, last, len(data), last-first+1)
	conn.Write(data[first : first+n])
	if err := conn.(*net.TCPConn).SetLinger(0); err != nil {
		panic(err)
	}
	conn.Close()
}

// trickle sends head and body of an answer by hand, n bytes at a time, with a pause after each.
func trickle(w http.ResponseWriter, answer []byte, n int, pause time.Duration) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	for piece := range slices.Chunk(answer, n) {
		if _, err := conn.Write(piece); err != nil {
			return // the client is gone
		}
		time.Sleep(pause)
	}
}

// fallSilent sends the beginning of an answer, and nothing more until the client goes.
func fallSilent(w http.ResponseWriter, beginning string) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	io.WriteString(conn, beginning) //nolint:errcheck // the client may be gone
	io.Copy(io.Discard, conn)       //nolint:errcheck // ends with the connection
}

// quick are options that do not wait long. The idle timeout is long for every test but those that wait
// for it: a slow machine must not break connections.
func quick(url string) source.HTTPOptions {
	return source.HTTPOptions{
		URL:         url,
		Anywhere:    true, // on loopback is where tests serve
		IdleTimeout: time.Minute,
		BackoffBase: time.Microsecond,
		BackoffMax:  time.Millisecond,
	}
}

func openHTTP(t *testing.T, opts source.HTTPOptions) source.Blob {
	t.Helper()
	b, err := source.OpenHTTP(t.Context(), opts)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() { closeBlob(t, b) })
	return b
}

// plainGet is what a client without remedies sees: one request for a range, read to its end.
func plainGet(t *testing.T, url string, off, n int64) ([]byte, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusPartialContent {
		return nil, fmt.Errorf("status %d", res.StatusCode)
	}
	return io.ReadAll(res.Body)
}

// rangeOf gives the first and the last byte that a request asks for.
func rangeOf(r *http.Request) (first, last int) {
	if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last); err != nil {
		panic(err)
	}
	return first, last
}

// zeros has no end.
type zeros struct{}

func (zeros) ReadAt(p []byte, _ int64) (int, error) {
	clear(p)
	return len(p), nil
}
