package main

import (
	"net"
	"net/http"
	"path"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// serverRate is that of a gigabit line, in bytes a second.
const serverRate = 100 << 20

// server gives the archives of a directory to this machine, with Range, and counts.
type server struct {
	sent   atomic.Int64 // bytes of bodies
	bucket *bucket
	dir    string
	listen net.Listener
	http   *http.Server
}

func newServer(dir string) (*server, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &server{bucket: newBucket(serverRate), dir: dir, listen: l}
	s.http = &http.Server{Handler: s}
	go func() { _ = s.http.Serve(l) }() // until Close
	return s, nil
}

func (s *server) Close() error { return s.http.Close() }

func (s *server) url(f file) string {
	return "http://" + s.listen.Addr().String() + "/" + filepath.Base(f.path)
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := path.Base(r.URL.Path)
	w.Header().Set("ETag", strconv.Quote(name)) // it has the digest of what the archive is made from
	http.ServeFile(limitedWriter{w, s}, r, filepath.Join(s.dir, name))
}

type limitedWriter struct {
	http.ResponseWriter
	s *server
}

func (w limitedWriter) Write(p []byte) (int, error) {
	w.s.bucket.take(len(p))
	w.s.sent.Add(int64(len(p))) // before who waits for the last byte can have it
	return w.ResponseWriter.Write(p)
}

// bucket lets bytes pass at a rate, whoever takes them.
type bucket struct {
	perByte float64 // nanoseconds
	mu      sync.Mutex
	// free is when all that was taken will have passed.
	free time.Time
}

// burst is what may be made up for at once: who sleeps is woken late.
const burst = 20 * time.Millisecond

func newBucket(bytesPerSecond int64) *bucket {
	return &bucket{perByte: float64(time.Second) / float64(bytesPerSecond), free: time.Now()}
}

// take returns when n bytes may pass.
func (b *bucket) take(n int) {
	b.mu.Lock()
	if oldest := time.Now().Add(-burst); b.free.Before(oldest) {
		b.free = oldest
	}
	b.free = b.free.Add(time.Duration(float64(n) * b.perByte))
	free := b.free
	b.mu.Unlock()
	time.Sleep(time.Until(free))
}
