package importer

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"testing"
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

// Two importers that need the same layer move it once: the second waits for the first, as long as that comes on.
func TestSharedLayerIsMovedOnce(t *testing.T) {
	b := build(t, single(layer("shared", sharedSize)))
	n := newNode(t, "linux/amd64")
	first := newGate(blobOf(t, b, false), sharedSize/2)
	waitFirst := n.imports(t, first, named("first", "1"))
	<-first.reached
	second := newGate(blobOf(t, b, false), 1<<40)
	waitSecond := n.imports(t, second, named("second", "2"))
	n.until(t, 2) // the second has opened its ingest, and sees the first's
	close(first.through)
	waitFirst()
	waitSecond()
	if got := second.bytes.Load(); got != 0 {
		t.Errorf("the second read %d bytes of a layer that the first brought", got)
	}
	if s := n.state(t); len(s.Leases)+len(s.Ingests) != 0 {
		t.Errorf("left behind %+v", s)
	}
}

// An import whose source stalls, or gives next to nothing, holds nobody up.
func TestSlowImportIsPassed(t *testing.T) {
	b := build(t, single(layer("shared", sharedSize)))
	for _, trickle := range []int64{0, 100} {
		n := newNode(t, "linux/amd64")
		slow := newGate(blobOf(t, b, false), sharedSize/2)
		slow.trickle = trickle
		waitSlow := n.imports(t, slow, named("slow", "1"))
		<-slow.reached
		n.imports(t, newGate(blobOf(t, b, false), 1<<40), named("second", "2"))()
		close(slow.through)
		waitSlow()
		if _, loss, ok, err := n.Imported(t.Context(), named("slow", "1")); !ok || loss != "" || err != nil {
			t.Errorf("trickle %d: the slow import went on: %v, %v", trickle, ok, err)
		}
	}
}

// Of importers that begin in the same moment one moves the layer.
func TestSimultaneousImportsMoveALayerOnce(t *testing.T) {
	b := build(t, single(layer("shared", sharedSize)))
	n := newNode(t, "linux/amd64")
	var sources []*gate
	var waits []func()
	for _, uid := range []string{"1", "2", "3", "4"} {
		g := newGate(blobOf(t, b, false), 1<<40)
		sources = append(sources, g)
		waits = append(waits, n.imports(t, g, named("archive-"+uid, uid)))
	}
	var total int64
	for k, wait := range waits {
		wait()
		total += sources[k].bytes.Load()
	}
	if total > sharedSize*3/2 {
		t.Errorf("%d bytes moved of a layer of %d", total, sharedSize)
	}
}

// until waits until so many ingests are open, or were.
func (n *node) until(t *testing.T, ingests int) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for len(n.state(t).Ingests) < ingests {
		if time.Now().After(deadline) {
			t.Fatal("the ingests did not come")
		}
		time.Sleep(time.Millisecond)
	}
}
