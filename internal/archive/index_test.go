package archive_test

import (
	"archive/tar"
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/source"
)

// BenchmarkIndex reads the headers and the index of an OCI archive from a local
// file. members is all there is in the tar: oci-layout, index.json, which names as
// many of the blobs as it may, and blobs of size bytes each. Small ones lie
// closely, as manifests and configs do; of large ones nearly all is passed over.
func BenchmarkIndex(b *testing.B) {
	for _, size := range []int64{700, 1 << 20} {
		for _, members := range []int{3, 1_000, archive.MaxMembers} {
			b.Run(fmt.Sprintf("size=%d/members=%d", size, members), func(b *testing.B) {
				path := manyBlobs(b, members, size)
				b.ReportAllocs()
				for b.Loop() {
					index(b, path)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*members), "ns/member")
			})
		}
	}
}

// TestIndexMemory: with as many members as there may be, the index takes the
// memory that limits.go counts on, and reading it less than 40 MiB.
func TestIndexMemory(t *testing.T) {
	const (
		mostRetained = 200 // bytes a member
		mostInUse    = 40 << 20
	)
	path := manyBlobs(t, archive.MaxMembers, 700)
	before := heap()
	src, err := source.OpenFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	r := &watchedHeap{Blob: src}
	tree, err := archive.ReadTree(t.Context(), r, src.Size())
	if err != nil {
		t.Fatal(err)
	}
	l, err := archive.Decode(t.Context(), tree)
	if err != nil {
		t.Fatal(err)
	}
	r.look()
	retained := heap() - before
	runtime.KeepAlive(l)
	t.Logf("%d bytes a member stay, at most %d KiB of heap were in use", retained/archive.MaxMembers, r.most>>10)
	if retained > mostRetained*archive.MaxMembers || r.most > mostInUse {
		t.Errorf("want at most %d bytes a member, %d KiB in use", mostRetained, mostInUse>>10)
	}
}

// heap is the size in bytes of what is alive.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// watchedHeap is a source that looks at the heap while it is read.
type watchedHeap struct {
	source.Blob
	reads int
	most  uint64
}

func (w *watchedHeap) ReadAt(p []byte, off int64) (int, error) {
	if w.reads++; w.reads%16 == 0 {
		w.look()
	}
	return w.Blob.ReadAt(p, off)
}

func (w *watchedHeap) look() {
	var inUse uint64
	s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/unused:bytes"}}
	metrics.Read(s)
	for _, m := range s {
		inUse += m.Value.Uint64()
	}
	w.most = max(w.most, inUse)
}

// TestOnlyHeadersAreRead: the source is asked for headers and index.json, and for no body. What it reads of a file besides
// is a part of a page.
func TestOnlyHeadersAreRead(t *testing.T) {
	const members = 1000
	for name, tc := range map[string]struct {
		size      int64
		mostAsked int // padding is not passed over when it is short
		mostRead  int64
	}{
		"small members": {700, members * 1024, members * 1536 * 5 / 4},
		"large members": {1 << 20, members * 700, members * 4300},
	} {
		t.Run(name, func(t *testing.T) {
			src, err := source.OpenFile(t.Context(), manyBlobs(t, members, tc.size))
			if err != nil {
				t.Fatal(err)
			}
			defer src.Close()
			r := &countedReads{Blob: src}
			if _, err := archive.ReadTree(t.Context(), r, src.Size()); err != nil {
				t.Fatal(err)
			}
			if r.bytes > tc.mostAsked || src.BytesRead() > tc.mostRead {
				t.Errorf("%d bytes were asked for and %d read, want at most %d and %d", r.bytes, src.BytesRead(), tc.mostAsked, tc.mostRead)
			}
		})
	}
}

type countedReads struct {
	source.Blob
	bytes int
}

func (c *countedReads) ReadAt(p []byte, off int64) (int, error) {
	c.bytes += len(p)
	return c.Blob.ReadAt(p, off)
}

func index(tb testing.TB, path string) *archive.Layout {
	tb.Helper()
	src, err := source.OpenFile(tb.Context(), path)
	if err != nil {
		tb.Fatal(err)
	}
	defer src.Close()
	tree, err := archive.ReadTree(tb.Context(), src, src.Size())
	if err != nil {
		tb.Fatal(err)
	}
	l, err := archive.Decode(tb.Context(), tree)
	if err != nil {
		tb.Fatal(err)
	}
	return l
}

// manyBlobs writes an OCI archive of so many members. Its blobs are holes in the
// file, so that it takes little room whatever their size.
func manyBlobs(tb testing.TB, members int, size int64) (path string) {
	tb.Helper()
	path = filepath.Join(tb.TempDir(), "many.tar")
	f, err := os.Create(path)
	if err != nil {
		tb.Fatal(err)
	}
	w := &holes{Writer: bufio.NewWriter(f), f: f}
	idx := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}}
	for i := range members - 2 {
		d := digest.NewDigestFromBytes(digest.SHA256, sum(i))
		w.member(tb, "blobs/sha256/"+d.Encoded(), size, nil)
		if i < archive.MaxDescriptors {
			idx.Manifests = append(idx.Manifests, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: d, Size: size})
		}
	}
	indexJSON, err := json.Marshal(idx)
	if err != nil {
		tb.Fatal(err)
	}
	w.member(tb, ocispec.ImageIndexFile, int64(len(indexJSON)), indexJSON)
	layout := []byte(`{"imageLayoutVersion":"1.0.0"}`)
	w.member(tb, ocispec.ImageLayoutFile, int64(len(layout)), layout)
	if _, err := w.Write(make([]byte, 1024)); err != nil {
		tb.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		tb.Fatal(err)
	}
	if err := f.Close(); err != nil {
		tb.Fatal(err)
	}
	return path
}

func sum(i int) []byte {
	s := sha256.Sum256(fmt.Append(nil, i))
	return s[:]
}

// holes writes a tar.
type holes struct {
	*bufio.Writer
	f *os.File
}

// member writes a header and data, or a hole of size bytes.
func (w *holes) member(tb testing.TB, name string, size int64, data []byte) {
	tb.Helper()
	h := tar.Header{Name: name, Size: size, Mode: 0o644, Format: tar.FormatUSTAR}
	// tar.Writer would want the bytes: it is used for the header alone.
	if err := tar.NewWriter(w).WriteHeader(&h); err != nil {
		tb.Fatal(err)
	}
	padded := (size + 511) / 512 * 512
	if _, err := w.Write(data); err != nil {
		tb.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		tb.Fatal(err)
	}
	if _, err := w.f.Seek(padded-int64(len(data)), io.SeekCurrent); err != nil {
		tb.Fatal(err)
	}
}
