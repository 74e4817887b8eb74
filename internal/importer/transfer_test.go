package importer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/builder"
)

func TestRuns(t *testing.T) {
	blob := func(name string, off, size int64) PlannedBlob {
		return PlannedBlob{
			Descriptor: ocispec.Descriptor{Digest: digest.Digest(name), Size: size},
			extent:     archive.Extent{Member: name, Offset: off, Size: size},
		}
	}
	a, b, c := blob("a", 1000, 500), blob("b", 2048, 500), blob("c", 3072, 500)
	for name, tc := range map[string]struct {
		blobs []PlannedBlob
		want  [][]string
	}{
		"neighbours":                {blobs: []PlannedBlob{a, b, c}, want: [][]string{{"a", "b", "c"}}},
		"in another order":          {blobs: []PlannedBlob{c, a, b}, want: [][]string{{"a", "b", "c"}}},
		"a gap":                     {blobs: []PlannedBlob{a, blob("far", 1500+maxGap+1, 5)}, want: [][]string{{"a"}, {"far"}}},
		"as wide as a gap may be":   {blobs: []PlannedBlob{a, blob("far", 1500+maxGap, 5)}, want: [][]string{{"a", "far"}}},
		"wanted first, lying last":  {blobs: []PlannedBlob{blob("far", 1<<20, 5), b, a}, want: [][]string{{"far"}, {"a", "b"}}},
		"too large for one request": {blobs: []PlannedBlob{a, blob("large", 2048, maxRun)}, want: [][]string{{"a"}, {"large"}}},
		"overlapping":               {blobs: []PlannedBlob{a, blob("inside", 1200, 5)}, want: [][]string{{"a"}, {"inside"}}},
		"none":                      {want: [][]string{}},
	} {
		got := [][]string{}
		for _, r := range runs(tc.blobs) {
			var names []string
			for _, b := range r {
				names = append(names, b.extent.Member)
			}
			got = append(got, names)
		}
		if !slices.EqualFunc(got, tc.want, slices.Equal) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

// remote is a source that costs round trips.
type remote struct{ *memory }

func (remote) Remote() bool { return true }

// Neighbours share a request. What turns out to be there is passed over.
func TestNeighboursShareARequest(t *testing.T) {
	all := single(layer("a", 50<<10), layer("b", 50<<10), layer("c", 50<<10), layer("d", 50<<10))
	for name, tc := range map[string]struct {
		before   builder.Archive
		requests int64
	}{"nothing there": {single(), 1}, "one there": {single(layer("b", 50<<10)), 2}} {
		n := newNode(t, "linux/amd64")
		if _, err := n.Import(t.Context(), blobOf(t, build(t, tc.before), false), wanted(owner)); err != nil {
			t.Fatal(err)
		}
		src := blobOf(t, build(t, all), false)
		if _, err := n.Import(t.Context(), remote{src}, wanted(owner)); err != nil {
			t.Fatal(err)
		}
		if got := src.opened.Load(); got != tc.requests {
			t.Errorf("%s: %d requests, want %d", name, got, tc.requests)
		}
	}
}

// single is an archive of one image for one platform.
func single(layers ...builder.Layer) builder.Archive {
	return builder.Archive{Images: []builder.Image{{Names: []string{appName}, Platforms: []builder.PlatformImage{platformImage("linux/amd64", layers...)}}}}
}

// A blob of a run that somebody else brings meanwhile is not read; small ones in between are.
func TestRunReaderPassesOver(t *testing.T) {
	data := make([]byte, 3*maxGap)
	for k := range data {
		data[k] = byte(k % 251)
	}
	for name, tc := range map[string]struct{ next, opened int64 }{"near": {200, 1}, "far": {100 + maxGap + 1, 2}, "back": {50, 2}} {
		src := &memory{Reader: bytes.NewReader(data)}
		r := &runReader{ctx: t.Context(), src: src, end: int64(len(data))}
		for _, off := range []int64{0, tc.next} {
			rc, err := r.blob(off, 100)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(rc)
			if err != nil || !bytes.Equal(got, data[off:off+100]) {
				t.Errorf("%s: other bytes at %d, error %v", name, off, err)
			}
		}
		if got := src.opened.Load(); got != tc.opened {
			t.Errorf("%s: %d sections, want %d", name, got, tc.opened)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
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
		n.concurrency = allowed
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

func TestReadAhead(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789abcdef"), 3*pieceSize/16+7)
	a := readAhead(bytes.NewReader(data))
	var got []byte
	for {
		piece, err := a.next()
		got = append(got, piece...)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	a.stop()
	if !bytes.Equal(got, data) {
		t.Errorf("%d bytes, want the %d that there are", len(got), len(data))
	}
}

// What a slow source has given is handed on although more could be waited for.
func TestReadAheadOfASlowSource(t *testing.T) {
	r, w := io.Pipe()
	a := readAhead(r)
	defer a.stop()
	defer r.Close()
	go func() {
		for range 3 {
			if _, err := w.Write([]byte("drop")); err != nil {
				return
			}
			time.Sleep(2 * pieceTime)
		}
	}()
	piece, err := a.next()
	if err != nil || len(piece) == 0 || len(piece) > 8 {
		t.Errorf("%q, %v", piece, err)
	}
}

// The reader is not used after stop: its owner may close it.
func TestReadAheadStops(t *testing.T) {
	var stopped atomic.Bool
	a := readAhead(readerFunc(func(p []byte) (int, error) {
		if stopped.Load() {
			t.Error("read after stop")
		}
		return len(p), nil
	}))
	if _, err := a.next(); err != nil {
		t.Fatal(err)
	}
	a.stop()
	stopped.Store(true)
	time.Sleep(10 * time.Millisecond)
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
