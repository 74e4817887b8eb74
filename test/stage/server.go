package stage

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/tarlift/tarlift/test/cluster"
)

// FileServer serves the files of a directory over HTTP to a cluster's nodes: with ranges and an ETag, as web servers
// do. It counts what it sends to whom.
type FileServer struct {
	URL string // of the directory, without a slash at the end

	dir    string
	server *http.Server
	done   chan struct{}

	mu      sync.Mutex
	sent    map[string]int64 // bytes of bodies, by the client's IP
	asked   map[string]int   // requests, by the client's IP
	serving map[string]int   // requests that are being answered, by the client's IP
	most    int              // clients that were being served at the same time
	denied  map[string]bool
	rate    int64 // bytes/s of one response, 0 for no limit
}

// Serve starts a server for dir on the control plane's address.
func Serve(dir string) (*FileServer, error) {
	l, err := net.Listen("tcp", cluster.ControlPlaneIP+":0")
	if err != nil {
		return nil, fmt.Errorf("serve %s: %w", dir, err)
	}
	s := &FileServer{
		URL: "http://" + l.Addr().String(), dir: dir, done: make(chan struct{}),
		sent: map[string]int64{}, asked: map[string]int{}, serving: map[string]int{}, denied: map[string]bool{},
	}
	s.server = &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		defer close(s.done)
		_ = s.server.Serve(l) // it ends with Close
	}()
	return s, nil
}

// Close ends the server and its connections.
func (s *FileServer) Close() error {
	err := s.server.Close()
	<-s.done
	return err
}

// Sent is the number of bytes that a client got since the last Reset, headers not counted.
func (s *FileServer) Sent(ip string) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent[ip]
}

// Asked is the number of requests that a client made since the last Reset, denied ones included.
func (s *FileServer) Asked(ip string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[ip]
}

// Most is the largest number of clients that were served at the same time since the last Reset.
func (s *FileServer) Most() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.most
}

// Reset forgets what was counted.
func (s *FileServer) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.sent)
	clear(s.asked)
	s.most = len(s.serving)
}

// Limit bounds the rate of each response from now on, in bytes/s; 0 lifts the bound.
func (s *FileServer) Limit(rate int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rate = rate
}

// Deny makes the server answer a client with 503 until Allow.
func (s *FileServer) Deny(ip string) { s.deny(ip, true) }

// Allow takes Deny back.
func (s *FileServer) Allow(ip string) { s.deny(ip, false) }

func (s *FileServer) deny(ip string, denied bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.denied[ip] = denied
}

func (s *FileServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ip, _, _ := net.SplitHostPort(r.RemoteAddr)
	if denied := s.begin(ip); denied {
		http.Error(w, "not now", http.StatusServiceUnavailable)
		return
	}
	defer s.end(ip)
	f, err := os.Open(filepath.Join(s.dir, filepath.Base(r.URL.Path)))
	if errors.Is(err, os.ErrNotExist) {
		http.NotFound(w, r)
		return
	}
	if err != nil {
		http.Error(w, "cannot open", http.StatusInternalServerError)
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		http.Error(w, "cannot stat", http.StatusInternalServerError)
		return
	}
	w.Header().Set("ETag", fmt.Sprintf(`"%x-%x"`, info.ModTime().UnixNano(), info.Size()))
	http.ServeContent(&countingWriter{w, s, ip}, r, "", info.ModTime(), f)
}

// begin counts a request that is to be answered, or says that it is not.
func (s *FileServer) begin(ip string) (denied bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked[ip]++
	if s.denied[ip] {
		return true
	}
	s.serving[ip]++
	s.most = max(s.most, len(s.serving))
	return false
}

func (s *FileServer) end(ip string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.serving[ip]--; s.serving[ip] == 0 {
		delete(s.serving, ip)
	}
}

// countingWriter counts while it writes, so that an import that runs can be watched.
type countingWriter struct {
	http.ResponseWriter
	server *FileServer
	ip     string
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.server.mu.Lock()
	c.server.sent[c.ip] += int64(n)
	rate := c.server.rate
	c.server.mu.Unlock()
	if rate > 0 {
		time.Sleep(time.Duration(n) * time.Second / time.Duration(rate))
	}
	return n, err
}
