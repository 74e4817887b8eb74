package importer

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tarlift/tarlift/internal/source"
)

// gate is a source whose sections give no byte beyond a place until they are let through.
type gate struct {
	*memory
	after   int64 // bytes of each section that are given at once
	trickle int64 // bytes that are given each 20 ms from then on, before they are let through
	reached chan struct{}
	once    sync.Once
	through chan struct{}
	bytes   atomic.Int64 // that sections gave
}

func newGate(m *memory, after int64) *gate {
	return &gate{memory: m, after: after, reached: make(chan struct{}), through: make(chan struct{})}
}

func (g *gate) Section(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	rc, err := g.memory.Section(ctx, off, n)
	return &gated{ctx, rc, g, g.after}, err
}

type gated struct {
	ctx context.Context
	io.ReadCloser
	*gate
	left int64
}

func (r *gated) Read(p []byte) (int, error) {
	if r.left == 0 {
		r.once.Do(func() { close(r.reached) })
		var drip <-chan time.Time
		if r.trickle > 0 {
			drip = time.After(20 * time.Millisecond)
		}
		select {
		case <-drip:
			r.left = r.trickle
		case <-r.through:
			r.left = 1 << 40
		case <-r.ctx.Done():
			return 0, r.ctx.Err()
		}
	}
	n, err := r.ReadCloser.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	r.bytes.Add(int64(n))
	return n, err
}

func (r *gated) Close() error { return r.ReadCloser.Close() }

// imports starts an import, and returns how to wait for it.
func (n *node) imports(t *testing.T, src source.Blob, o Owner) func() {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		_, err := n.Import(t.Context(), src, wanted(o))
		done <- err
	}()
	return func() {
		t.Helper()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("import of %s: %v", o.Name, err)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("import of %s hangs", o.Name)
		}
	}
}

const sharedSize = 6 << 20

// Imports of one process that need the same layer move it once: one moves it, and the others wait.
func TestSharedLayerIsMovedOnce(t *testing.T) {
	b := build(t, single(layer("shared", sharedSize)))
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, "linux/amd64")
		first := newGate(blobOf(t, b, false), sharedSize/2)
		waits := []func(){n.imports(t, first, named("first", "1"))}
		<-first.reached
		others := newGate(blobOf(t, b, false), 1<<40)
		for _, uid := range []string{"2", "3", "4"} {
			waits = append(waits, n.imports(t, others, named("archive-"+uid, uid)))
		}
		synctest.Wait() // they have begun, and wait for the first
		close(first.through)
		for _, wait := range waits {
			wait()
		}
		if got := others.bytes.Load(); got != 0 {
			t.Errorf("the others read %d bytes of a layer that the first moved", got)
		}
		if s := n.state(t); len(s.Leases)+len(s.Ingests) != 0 {
			t.Errorf("left behind %+v", s)
		}
	})
}

// An import whose source stalls holds nobody up, and goes on when its source does.
func TestSlowImportIsPassed(t *testing.T) {
	b := build(t, single(layer("shared", sharedSize)))
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, "linux/amd64")
		slow := newGate(blobOf(t, b, false), sharedSize/2)
		waitSlow := n.imports(t, slow, named("slow", "1"))
		<-slow.reached
		n.imports(t, newGate(blobOf(t, b, false), 1<<40), named("second", "2"))()
		close(slow.through)
		waitSlow()
		for _, o := range []Owner{named("slow", "1"), named("second", "2")} {
			if loss := n.loss(t, o); loss != "" {
				t.Errorf("%s lost %q", o.Name, loss)
			}
		}
		if s := n.state(t); len(s.Leases)+len(s.Ingests) != 0 {
			t.Errorf("left behind %+v", s)
		}
	})
}
