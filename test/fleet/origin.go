package main

import (
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// origin serves an archive that takes a while, and counts who reads it at the same time.
type origin struct {
	url    string
	server *http.Server
	pause  time.Duration // of one answer with the whole

	mu           sync.Mutex
	serving      int
	most, served int
}

// originSize is that of the archive: more than is asked for to see what it is.
const originSize = 256 << 10

func newOrigin(pause time.Duration) (*origin, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	o := &origin{url: "http://" + l.Addr().String() + "/archive.tar", pause: pause}
	o.server = &http.Server{Handler: o, ReadHeaderTimeout: time.Minute}
	go func() { _ = o.server.Serve(l) }() // it ends with Close
	return o, nil
}

func (o *origin) close() error { return o.server.Close() }

// ServeHTTP answers each request with the whole: a server without ranges is asked once for each import.
func (o *origin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("ETag", `"1"`)
	w.Header().Set("Content-Length", strconv.Itoa(originSize))
	if r.Method != http.MethodGet {
		return
	}
	o.mu.Lock()
	o.serving++
	o.served++
	o.most = max(o.most, o.serving)
	o.mu.Unlock()
	defer func() {
		o.mu.Lock()
		o.serving--
		o.mu.Unlock()
	}()
	part := make([]byte, originSize/8)
	for range 8 {
		if _, err := w.Write(part); err != nil {
			return
		}
		if err := http.NewResponseController(w).Flush(); err != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-time.After(o.pause / 8):
		}
	}
}

// counts are the most who read at the same time, and how often it was read.
func (o *origin) counts() (most, served int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.most, o.served
}
