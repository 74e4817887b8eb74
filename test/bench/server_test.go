package main

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// The rate is that of all takers together, and what was not taken for long is lost.
func TestBucket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(100 * mib)
		time.Sleep(time.Hour)
		start := time.Now()
		var takers sync.WaitGroup
		for range 4 {
			takers.Go(func() {
				for range 25 * mib / (32 << 10) {
					b.take(32 << 10)
				}
			})
		}
		takers.Wait()
		if took := time.Since(start); took < time.Second-burst-time.Millisecond || took > time.Second {
			t.Errorf("100 MiB took %s", took)
		}
	})
}

// Someone who comes late now and then does not lose speed.
func TestBucketLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(100 * mib)
		start := time.Now()
		for range 100 {
			b.take(mib)
			time.Sleep(5 * time.Millisecond)
		}
		if took := time.Since(start); took > 1010*time.Millisecond {
			t.Errorf("100 MiB took %s", took)
		}
	})
}

func TestServer(t *testing.T) {
	dir := t.TempDir()
	f := file{path: filepath.Join(dir, "a.tar")}
	if err := os.WriteFile(f.path, make([]byte, 3*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := newServer(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for want, span := range map[int64]string{3 * mib: "", 10: "bytes=5-14"} {
		s.sent.Store(0)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url(f), nil)
		if err != nil {
			t.Fatal(err)
		}
		if span != "" {
			req.Header.Set("Range", span)
			req.Header.Set("If-Range", `"a.tar"`)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.Copy(io.Discard, res.Body)
		res.Body.Close()
		if err != nil || got != want || s.sent.Load() != want {
			t.Errorf("range %q: got %d bytes, server counted %d, want %d: %v", span, got, s.sent.Load(), want, err)
		}
	}
}
