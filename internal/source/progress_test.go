package source_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tarlift/tarlift/internal/source"
)

// A server that answers each range with its first byte is asked a few times, with pauses, and not once for each byte.
func TestHTTPOneByteAnswers(t *testing.T) {
	data := randomBytes(300_000)
	for name, read := range map[string]func(b source.Blob) error{
		"section": func(b source.Blob) error {
			_, err := readSection(t, b, 100_000, 100_000)
			return err
		},
		"ReadAt": func(b source.Blob) error {
			_, err := b.ReadAt(make([]byte, 512), 100_000)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int64
			srv := newServer(t, data, func(_ int, w http.ResponseWriter, r *http.Request) bool {
				first, _ := rangeOf(r)
				if first == 0 {
					return false
				}
				asked.Add(1)
				w.Header().Set("ETag", strongETag)
				part(w, data, first, first, data[first:first+1])
				return true
			})
			if err := read(openHTTP(t, quick(srv.URL))); !errors.Is(err, source.ErrUnavailable) {
				t.Errorf("error %v", err)
			}
			if n := asked.Load(); n > 11 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

// A server that trickles loses its reader when it gives less than the least, whatever it is read for and although each
// byte comes in time.
func TestHTTPTrickles(t *testing.T) {
	const size = 1 << 20
	data := randomBytes(size)
	head := func(first, last int) string {
		return fmt.Sprintf("HTTP/1.1 206 Partial Content\r\nETag: %s\r\nContent-Range: bytes %d-%d/%d\r\nContent-Length: %d\r\n\r\n",
			strongETag, first, last, size, last-first+1)
	}
	slow := func(w http.ResponseWriter, head string, first, last int) {
		trickle(w, append([]byte(head), data[first:last+1]...), 300, 20*time.Millisecond)
	}
	for name, tc := range map[string]struct {
		fault func(w http.ResponseWriter, r *http.Request) bool
		read  func(ctx context.Context, opts source.HTTPOptions) error
	}{
		"when it is opened": {func(w http.ResponseWriter, r *http.Request) bool {
			first, last := rangeOf(r)
			slow(w, head(first, last), first, last)
			return true
		}, func(ctx context.Context, opts source.HTTPOptions) error {
			_, err := source.OpenHTTP(ctx, opts)
			return err
		}},
		"a section": {func(w http.ResponseWriter, r *http.Request) bool {
			first, last := rangeOf(r)
			if first == 0 {
				return false
			}
			slow(w, head(first, last), first, last)
			return true
		}, readAll(100_000)},
		"a section, and breaks": {func(w http.ResponseWriter, r *http.Request) bool {
			first, last := rangeOf(r)
			if first == 0 {
				return false
			}
			slow(w, head(first, last), first, min(first+5000, last))
			return true
		}, readAll(100_000)},
		"a stream": {func(w http.ResponseWriter, _ *http.Request) bool {
			slow(w, fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", size), 0, size-1)
			return true
		}, readAll(0)},
		"metadata": {func(w http.ResponseWriter, r *http.Request) bool {
			first, last := rangeOf(r)
			if first == 0 {
				return false
			}
			slow(w, head(first, last), first, last)
			return true
		}, func(ctx context.Context, opts source.HTTPOptions) error {
			b, err := source.OpenHTTP(ctx, opts)
			if err != nil {
				return err
			}
			defer b.Close()
			for off := int64(100_000); off < size && err == nil; off += 100_000 {
				_, err = b.ReadAt(make([]byte, 512), off)
			}
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			srv := newServer(t, data, func(_ int, w http.ResponseWriter, r *http.Request) bool { return tc.fault(w, r) })
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			opts := source.WithLeastTime(source.WithroundTripBytes(quick(srv.URL), 1), 500*time.Millisecond)
			if err := tc.read(ctx, opts); !errors.Is(err, source.ErrUnavailable) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func readAll(off int64) func(context.Context, source.HTTPOptions) error {
	return func(ctx context.Context, opts source.HTTPOptions) error {
		b, err := source.OpenHTTP(ctx, opts)
		if err != nil {
			return err
		}
		defer b.Close()
		r, err := b.Section(ctx, off, -1)
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = io.Copy(io.Discard, r)
		return err
	}
}
