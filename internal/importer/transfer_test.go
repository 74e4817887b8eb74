package importer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/internal/importer/transfer"
)

// remote is a source that costs round trips.
type remote struct{ *memory }

func (remote) Remote() bool { return true }

// single is an archive of one image for one platform.
func single(layers ...builder.Layer) builder.Archive {
	return builder.Archive{Images: []builder.Image{{Names: []string{appName}, Platforms: []builder.PlatformImage{platformImage("linux/amd64", layers...)}}}}
}

// Blobs go on their way at the same time, as many as are allowed and no more.
func TestConcurrency(t *testing.T) {
	var layers []builder.Layer
	for k := range 6 {
		layers = append(layers, layer(fmt.Sprint(k), 100<<10))
	}
	b := build(t, single(layers...))
	for allowed, want := range map[uint16]int64{1: 1, 3: 3, 0: int64(min(coresAndOne(), maxTransfers))} {
		n := newNode(t, "linux/amd64")
		n.options.Concurrency = allowed
		src := &meeting{memory: blobOf(t, b, false), want: want, met: make(chan struct{})}
		if _, err := n.Import(t.Context(), src, wanted(owner)); err != nil {
			t.Errorf("%d allowed: %v", allowed, err)
		}
		if got := src.most; got != want {
			t.Errorf("%d allowed: %d sections at a time, want %d", allowed, got, want)
		}
	}
}

// meeting is a source whose sections wait until so many are open as are expected.
type meeting struct {
	*memory
	want       int64
	mu         sync.Mutex
	open, most int64
	met        chan struct{}
}

func (m *meeting) Section(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	rc, err := m.memory.Section(ctx, off, n)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.open++
	if m.open == m.want && m.most < m.want {
		close(m.met)
	}
	m.most = max(m.most, m.open)
	return &attendee{rc, m}, err
}

type attendee struct {
	io.ReadCloser
	*meeting
}

func (a *attendee) Read(p []byte) (int, error) {
	select {
	case <-a.met:
	case <-time.After(20 * time.Second):
		return 0, errors.New("the others did not come")
	}
	return a.ReadCloser.Read(p)
}

func (a *attendee) Close() error {
	a.mu.Lock()
	a.open--
	a.mu.Unlock()
	return a.ReadCloser.Close()
}

// What an interrupted import from a remote source wrote stays, and the next goes on there.
func TestRemoteAttemptContinues(t *testing.T) {
	b := build(t, single(layer("a", 1<<20), layer("b", 40<<20)))
	n := newNode(t, "linux/amd64")
	req := wanted(owner)
	req.Keep = true
	src := blobOf(t, b, false)
	src.onBytes = func(off int64) error {
		if 36<<20 <= off && off < 37<<20 {
			return errInjected
		}
		return nil
	}
	if _, err := n.Import(t.Context(), remote{src}, req); !errors.Is(err, errInjected) {
		t.Fatalf("error %v", err)
	}
	got, err := n.Import(t.Context(), remote{blobOf(t, b, false)}, req)
	if err != nil {
		t.Fatal(err)
	}
	// Two pieces had been read and not yet been written.
	if missing := int64(6<<20) + 2*transfer.PieceSize; got.Bytes.Read > missing+1<<20 {
		t.Errorf("read %d bytes, of which %d at most were missing", got.Bytes.Read, missing)
	}
}

// remoteGate is a gate that costs round trips.
type remoteGate struct{ *gate }

func (remoteGate) Remote() bool { return true }

// Importers that begin in the same moment share the work: none has an ingest open for which it fetches nothing.
func TestRemoteImportsShareLayers(t *testing.T) {
	var layers []builder.Layer
	for k := range 6 {
		layers = append(layers, layer(fmt.Sprint(k), sharedSize))
	}
	b := build(t, single(layers...))
	n := newNode(t, "linux/amd64")
	var total int64
	var gates []*gate
	var waits []func()
	for _, uid := range []string{"1", "2"} {
		g := newGate(blobOf(t, b, false), 0)
		g.trickle = 256 << 10
		gates = append(gates, g)
		waits = append(waits, n.imports(t, remoteGate{g}, named("archive-"+uid, uid)))
	}
	for k, wait := range waits {
		wait()
		total += gates[k].bytes.Load()
	}
	if need := int64(len(layers) * sharedSize); total > need*5/4 {
		t.Errorf("%d bytes moved of layers of %d", total, need)
	}
}
