package faults

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// slow serves an archive, and counts the bytes of it that it has sent.
type slow struct {
	*httptest.Server
	sent   atomic.Int64
	stream bool // it knows no ranges
}

// slowPiece is the size in bytes of what is sent at a time.
const slowPiece = 32 << 10

// serveSlowly calls before ahead of each piece, with how many bytes have been sent with it.
func serveSlowly(t *testing.T, path string, before func(r *http.Request, sent int64)) *slow {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s := &slow{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.stream {
			w.Header().Set("Content-Length", fmt.Sprint(len(data)))
			_, _ = (&slowWriter{w, func(n int) { before(r, s.sent.Add(int64(n))) }}).Write(data)
			return
		}
		w.Header().Set("ETag", `"1"`)
		http.ServeContent(&slowWriter{w, func(n int) { before(r, s.sent.Add(int64(n))) }}, r, "", time.Time{}, bytes.NewReader(data))
	}))
	t.Cleanup(s.Close)
	return s
}

type slowWriter struct {
	http.ResponseWriter
	before func(n int)
}

func (w *slowWriter) Write(p []byte) (n int, err error) {
	for len(p) > 0 && err == nil {
		piece := p[:min(len(p), slowPiece)]
		w.before(len(piece))
		var k int
		k, err = w.ResponseWriter.Write(piece)
		n += k
		p = p[k:]
	}
	return n, err
}

// gate holds an archive's server up when some bytes were sent, until it is opened.
type gate struct {
	*slow
	reached chan struct{}
	open    func()
}

func serveHeld(t *testing.T, path string, at int64) *gate {
	t.Helper()
	reached, release := make(chan struct{}), make(chan struct{})
	arrive := sync.OnceFunc(func() { close(reached) })
	g := &gate{reached: reached, open: sync.OnceFunc(func() { close(release) })}
	g.slow = serveSlowly(t, path, func(r *http.Request, sent int64) {
		if sent < at {
			return
		}
		arrive()
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	return g
}
