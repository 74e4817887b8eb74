package transfer

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tarlift/tarlift/internal/archive"
)

var errInjected = errors.New("injected")

// link is a remote source whose sections share so many bytes a second, and that notes them.
type link struct {
	*bytes.Reader
	rate   int64
	trip   time.Duration                              // before the first byte of a section
	onRead func(ctx context.Context, off int64) error // injected fault: called for each read with its offset

	mu         sync.Mutex
	free       time.Time // when all that was asked for will have passed
	sections   []span
	open, most int
	given      int64 // bytes
}

func (l *link) RandomAccess() bool    { return true }
func (l *link) Remote() bool          { return true }
func (l *link) BytesRead() int64      { return l.given }
func (l *link) Validator() string     { return "" }
func (l *link) String() string        { return "link" }
func (l *link) Close() error          { return nil }
func (l *link) RoundTripBytes() int64 { return int64(l.trip.Seconds() * float64(l.rate)) }

type span struct{ off, n int64 }

func newLink(size int, rate int64) *link {
	data := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{}).Read(data) // always well
	return &link{Reader: bytes.NewReader(data), rate: rate}
}

func (l *link) Section(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sections = append(l.sections, span{off, n})
	l.open++
	l.most = max(l.most, l.open)
	return &linked{ctx: ctx, link: l, off: off, end: off + n}, nil
}

type linked struct {
	ctx context.Context
	*link
	off, end int64
	begun    bool
}

func (s *linked) Read(p []byte) (int, error) {
	if s.off == s.end {
		return 0, io.EOF
	}
	if s.onRead != nil {
		if err := s.onRead(s.ctx, s.off); err != nil {
			return 0, err
		}
	}
	if !s.begun {
		s.begun = true
		time.Sleep(s.trip)
	}
	p = p[:min(int64(len(p)), s.end-s.off, 4<<10)]
	s.mu.Lock()
	if now := time.Now(); s.free.Before(now) {
		s.free = now
	}
	s.free = s.free.Add(time.Duration(len(p)) * time.Second / time.Duration(s.rate))
	passed := time.After(time.Until(s.free))
	s.mu.Unlock()
	select {
	case <-passed:
	case <-s.ctx.Done():
		return 0, s.ctx.Err()
	}
	n, err := s.ReadAt(p, s.off)
	s.off += int64(n)
	s.mu.Lock()
	s.given += int64(n)
	s.mu.Unlock()
	return n, err
}

func (s *linked) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open--
	return nil
}

// blobs are so many blobs of equal size. What lies between them is more than a run.
func (l *link) blobs(n int64) []archive.Extent {
	size := l.Size() / n
	all := make([]archive.Extent, n)
	for k := range all {
		all[k] = archive.Extent{Offset: int64(k) * size, Size: size}
	}
	return all
}

// open opens a blob that is known by its place.
func (r *Run) open(ctx context.Context, x archive.Extent) (io.ReadCloser, error) {
	return r.Open(ctx, slices.IndexFunc(r.extents, func(y archive.Extent) bool { return y.Offset == x.Offset }), 0)
}

// each is Each, for runs of one blob.
func (l *link) each(ctx context.Context, connections int, all []archive.Extent, use func(context.Context, *Run, archive.Extent) error) error {
	return Each(ctx, l, connections, all, func(ctx context.Context, r *Run) error {
		for _, k := range r.Blobs {
			if err := use(ctx, r, all[k]); err != nil {
				return err
			}
		}
		return nil
	})
}

// wantOnce checks that the sections are the blob's bytes, each once.
func (l *link) wantOnce(t *testing.T) {
	t.Helper()
	slices.SortFunc(l.sections, func(a, b span) int { return cmp.Compare(a.off, b.off) })
	var end int64
	for _, s := range l.sections {
		if s.off != end {
			t.Errorf("a section begins at %d, the one before ends at %d", s.off, end)
		}
		end = s.off + s.n
	}
	if end != l.Size() || l.given != l.Size() {
		t.Errorf("sections up to %d of %d bytes, %d were given", end, l.Size(), l.given)
	}
	if l.open != 0 {
		t.Errorf("%d sections are open still", l.open)
	}
}

// all reads a whole blob in pieces, as an ingest does. It calls each with the bytes of a piece, one at a time.
func (l *link) all(ctx context.Context, run *Run, x archive.Extent, each func(n int64)) error {
	r, err := run.open(ctx, x)
	if err != nil {
		return err
	}
	defer r.Close()
	want := make([]byte, x.Size)
	if _, err := l.ReadAt(want, x.Offset); err != nil {
		return err
	}
	buf, at := make([]byte, PieceSize), 0
	for {
		n, err := r.Read(buf)
		if !bytes.Equal(buf[:n], want[at:at+n]) {
			return fmt.Errorf("other bytes at %d", at)
		}
		at += n
		l.mu.Lock()
		each(int64(n))
		l.mu.Unlock()
		switch {
		case err == io.EOF && at == len(want):
			return nil
		case err != nil:
			return fmt.Errorf("after %d bytes: %w", at, err)
		}
	}
}

const mebi = 1 << 20

// Blobs are complete one after the other, in their order, although the link is always full and all connections are used.
func TestEachInOrder(t *testing.T) {
	for name, tc := range map[string]struct{ connections, blobs int64 }{
		"one blob": {4, 1}, "four blobs": {4, 4}, "many blobs": {4, 40}, "one connection": {1, 4}, "many connections": {16, 4},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLink(80*mebi, 100*mebi)
				start, size := time.Now(), l.Size()/tc.blobs
				var last int64
				err := l.each(t.Context(), int(tc.connections), l.blobs(tc.blobs), func(ctx context.Context, r *Run, x archive.Extent) error {
					err := l.all(ctx, r, x, func(int64) {})
					l.mu.Lock()
					defer l.mu.Unlock()
					at, ideal := time.Since(start), time.Duration(x.Offset+size)*time.Second/time.Duration(l.rate)
					if limit := ideal*11/10 + 50*time.Millisecond; at > limit {
						t.Errorf("the blob at %d MiB was complete after %v, not within %v", x.Offset/mebi, at, limit)
					}
					if x.Offset < last-4*mebi {
						t.Errorf("the blob at %d MiB was complete after that at %d MiB", x.Offset/mebi, last/mebi)
					}
					last = x.Offset
					return err
				})
				if err != nil {
					t.Error(err)
				}
				l.wantOnce(t)
				if l.most != int(tc.connections) {
					t.Errorf("%d connections at a time, want %d", l.most, tc.connections)
				}
			})
		})
	}
}

// What a writer slower than the link leaves goes to the blobs behind, and memory stays bounded when nobody writes at all.
func TestEachAheadIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLink(96*mebi, 100*mebi)
		ctx, cancel := context.WithCancel(t.Context())
		begun := 0
		done := make(chan error)
		go func() {
			done <- l.each(ctx, 4, l.blobs(4), func(ctx context.Context, r *Run, x archive.Extent) error {
				rc, err := r.open(ctx, x)
				if err != nil {
					return err
				}
				defer rc.Close()
				l.mu.Lock()
				begun++
				l.mu.Unlock()
				<-ctx.Done() // containerd hangs
				return ctx.Err()
			})
		}()
		time.Sleep(time.Minute)
		synctest.Wait()
		l.mu.Lock()
		if l.given > chunkMemory || l.given < chunkMemory/4 || l.open != 0 {
			t.Errorf("%d bytes were fetched of which none was written, %d connections wait", l.given, l.open)
		}
		if begun != 4 {
			t.Errorf("%d blobs are on their way", begun)
		}
		l.mu.Unlock()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	})
}

// A kill loses what was received and not yet written. Over a slow link that is seconds' worth, and there is
// something to write all the time.
func TestEachFromASlowLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 100 << 10
		l := newLink(8*mebi, rate)
		var written, lost int64
		var waited time.Duration
		last := time.Now()
		err := l.each(t.Context(), 4, l.blobs(2), func(ctx context.Context, r *Run, x archive.Extent) error {
			return l.all(ctx, r, x, func(n int64) {
				written += n
				lost = max(lost, l.given-written)
				waited, last = max(waited, time.Since(last)), time.Now()
			})
		})
		if err != nil {
			t.Error(err)
		}
		l.wantOnce(t)
		if limit := int64(4 * minChunk); lost > limit {
			t.Errorf("up to %d bytes were not written, want at most %d", lost, limit)
		}
		if waited > 2*time.Second {
			t.Errorf("nothing to write for %v", waited)
		}
	})
}

// Round trips do not slow a fetch down much beside one that streams, however long they are. Near servers' sections are
// fetched with all connections, distant servers' with one each.
func TestEachFromAfar(t *testing.T) {
	for name, tc := range map[string]struct {
		trip    time.Duration
		rate    int64 // bytes a second
		distant bool
	}{
		"in the room":      {300 * time.Microsecond, 110 * mebi, false},
		"in the house":     {time.Millisecond, 110 * mebi, false},
		"in the country":   {50 * time.Millisecond, 110 * mebi, true},
		"slow, far away":   {100 * time.Millisecond, mebi, false},
		"across the ocean": {100 * time.Millisecond, 110 * mebi, true},
		"by satellite":     {600 * time.Millisecond, 6 * mebi, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLink(96*mebi, tc.rate)
				l.trip = tc.trip
				start := time.Now()
				err := l.each(t.Context(), 4, l.blobs(2), func(ctx context.Context, r *Run, x archive.Extent) error {
					return l.all(ctx, r, x, func(int64) {})
				})
				if err != nil {
					t.Error(err)
				}
				l.wantOnce(t)
				streamed := time.Duration(l.Size()) * time.Second / time.Duration(tc.rate)
				if took := time.Since(start); took > streamed*5/4+15*tc.trip || (len(l.sections) == 2) != tc.distant {
					t.Errorf("it took %v, a stream takes %v; %d sections", took, streamed, len(l.sections))
				}
			})
		})
	}
}

// All that lies before a fault arrives, whichever chunk has it, and the fault behind that.
func TestEachFault(t *testing.T) {
	for _, at := range []int64{0, 100, minChunk - 1, minChunk, 3*minChunk + 5, 9*mebi + 77, 20*mebi - 1} {
		for _, fault := range []error{errInjected, io.EOF} {
			synctest.Test(t, func(t *testing.T) {
				l := newLink(20*mebi, 100*mebi)
				l.onRead = func(_ context.Context, off int64) error {
					if off <= at && at < off+4<<10 {
						return fault
					}
					return nil
				}
				var written int64
				err := l.each(t.Context(), 4, l.blobs(1), func(ctx context.Context, r *Run, x archive.Extent) error {
					return l.all(ctx, r, x, func(n int64) { written += n })
				})
				want := fault
				if fault == io.EOF { //nolint:errorlint // the value itself
					want = io.ErrUnexpectedEOF
				}
				if !errors.Is(err, want) {
					t.Errorf("fault at %d: error %v, want %v", at, err, want)
				}
				if written > at || written <= at-4<<10 {
					t.Errorf("fault at %d: %d bytes arrived", at, written)
				}
				if l.open != 0 || l.given > at+chunkMemory {
					t.Errorf("fault at %d: %d sections are open, %d bytes were fetched", at, l.open, l.given)
				}
			})
		}
	}
}

// Sections that get no byte end with the import, and so do the blobs behind when one has failed.
func TestEachEnds(t *testing.T) {
	for name, fail := range map[string]bool{"cancelled": false, "another failed": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLink(40*mebi, 100*mebi)
				l.onRead = func(ctx context.Context, off int64) error {
					if off >= 6*mebi {
						<-ctx.Done()
						return ctx.Err()
					}
					return nil
				}
				ctx, cancel := context.WithCancel(t.Context())
				start := time.Now()
				if !fail {
					time.AfterFunc(time.Second, cancel)
				}
				defer cancel()
				err := l.each(ctx, 4, l.blobs(10), func(ctx context.Context, r *Run, x archive.Extent) error {
					if fail && x.Offset == 4*mebi {
						time.Sleep(time.Second)
						return errInjected
					}
					return l.all(ctx, r, x, func(int64) {})
				})
				want := map[bool]error{false: context.Canceled, true: errInjected}[fail]
				if !errors.Is(err, want) {
					t.Errorf("error %v, want %v", err, want)
				}
				if took := time.Since(start); took > 1100*time.Millisecond || l.open != 0 {
					t.Errorf("it took %v, %d sections are open", took, l.open)
				}
			})
		})
	}
}
