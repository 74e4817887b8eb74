package importer

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"

	"github.com/tarlift/tarlift/internal/importer/store"
)

const slowPiece = 64 << 10 // bytes

// slowMemory is a source each of whose sections gives a piece an hour.
type slowMemory struct{ *memory }

func (s slowMemory) Section(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	rc, err := s.memory.Section(ctx, off, n)
	return struct {
		io.Reader
		io.Closer
	}{readerFunc(func(p []byte) (int, error) {
		time.Sleep(time.Hour)
		return rc.Read(p[:min(len(p), slowPiece)])
	}), rc}, err
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// An import that takes longer than a lease can live ends, in its first attempt.
func TestImportOutlivesItsLease(t *testing.T) {
	b := build(t, single(layer("a", 8<<10), layer("b", 40*slowPiece)))
	for _, stream := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			n := newNode(t, "linux/amd64")
			n.options.Concurrency = 1
			start := time.Now()
			src := slowMemory{blobOf(t, b, stream)}
			r, err := n.Import(t.Context(), src, wanted(owner))
			if err != nil {
				t.Fatalf("stream %v: %v", stream, err)
			}
			if took := time.Since(start); took < 36*time.Hour {
				t.Errorf("took only %s", took)
			}
			if size := src.Size(); r.Bytes.Read > size+64<<10 {
				t.Errorf("read %d bytes of %d", r.Bytes.Read, size)
			}
			if loss := n.loss(t, owner); loss != "" {
				t.Errorf("lost %q", loss)
			}
			if s := n.state(t); len(s.Leases)+len(s.Ingests) != 0 {
				t.Errorf("left behind %+v", s)
			}
		})
	}
}

// An import whose lease goes while it is at work starts again at once where it can, and otherwise with the next attempt.
func TestImportWhoseLeaseIsLost(t *testing.T) {
	b := build(t, twoImages())
	for name, lose := range map[string]func(t *testing.T, n *node){
		"deleted": func(t *testing.T, n *node) {
			list, err := n.services.leases.List(n.in(t.Context()))
			if err != nil {
				t.Error(err)
			}
			for _, l := range list {
				if err := n.services.leases.Delete(n.in(t.Context()), l); err != nil {
					t.Error(err)
				}
			}
		},
		"the clock is set forward": func(t *testing.T, n *node) {
			time.Sleep(25 * time.Hour)
			if _, err := n.db.GarbageCollect(t.Context()); err != nil {
				t.Error(err)
			}
		},
	} {
		for _, at := range []Phase{PhaseTransferring, PhaseImporting, PhaseVerifying} {
			for _, stream := range []bool{false, true} {
				t.Run(name+" when "+string(at)+map[bool]string{true: ", a stream"}[stream], func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						n := newNode(t, "linux/amd64")
						req, lost := wanted(owner), false
						req.Keep = true
						req.Progress = func(p Progress) {
							if p.Phase == at && p.Done > 0 && !lost {
								lost = true
								lose(t, n)
							}
						}
						_, err := n.Import(t.Context(), blobOf(t, b, stream), req)
						if !lost || errors.Is(err, store.ErrLeaseLost) != stream || (err != nil) != stream {
							t.Errorf("lost %v, error %v", lost, err)
						}
						if _, err := n.Import(t.Context(), blobOf(t, b, stream), req); err != nil {
							t.Errorf("the next attempt: %v", err)
						}
						if loss := n.loss(t, owner); loss != "" {
							t.Errorf("lost %q", loss)
						}
						if s := n.state(t); len(s.Leases)+len(s.Ingests) != 0 {
							t.Errorf("left behind %+v", s)
						}
					})
				})
			}
		}
	}
}

// What containerd collects between the plan, which counts on it, and its use is taken from the archive in the same attempt.
func TestCollectedBetweenPlanAndUse(t *testing.T) {
	b := build(t, twoImages())
	n := newNode(t, "linux/amd64")
	n.bring(t, b, named("former", "1"))
	ctx := n.in(t.Context())
	req, collected := wanted(owner), 0
	req.Progress = func(p Progress) {
		if p.Phase != PhaseTransferring || collected > 0 {
			return
		}
		var all []digest.Digest
		err := n.services.content.Walk(ctx, func(i content.Info) error {
			all = append(all, i.Digest)
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		for _, d := range all {
			lose(t, n, d)
			collected++
		}
		if _, err := n.db.GarbageCollect(ctx); err != nil {
			t.Error(err)
		}
	}
	if _, err := n.Import(ctx, blobOf(t, b, false), req); err != nil || collected == 0 {
		t.Fatalf("%d collected, error %v", collected, err)
	}
	if loss := n.loss(t, owner); loss != "" {
		t.Errorf("lost %q", loss)
	}
}
