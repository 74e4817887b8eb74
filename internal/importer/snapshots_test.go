package importer

import (
	"context"
	"io"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/test/inprocess"
)

// newUnpackingNode is a node with containerd's native snapshotter. Layers are applied by apply, since that takes mounts.
func newUnpackingNode(t *testing.T, apply *hashingApplier) (*node, snapshots.Snapshotter) {
	t.Helper()
	dir := t.TempDir()
	store, err := local.NewStore(filepath.Join(dir, "content"))
	if err != nil {
		t.Fatal(err)
	}
	layers, err := native.NewSnapshotter(filepath.Join(dir, "native"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { layers.Close() })
	bdb, err := bolt.Open(filepath.Join(dir, "meta.db"), 0o600, &bolt.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { bdb.Close() })
	db := metadata.NewDB(bdb, store, map[string]snapshots.Snapshotter{"native": layers})
	if err := db.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	apply.store = db.ContentStore()
	snapshotter := db.Snapshotter("native")
	c, err := client.New("", client.WithServices(
		client.WithContentStore(db.ContentStore()),
		client.WithImageStore(metadata.NewImageStore(db)),
		client.WithLeasesService(inprocess.Leases(db)),
		client.WithSnapshotters(map[string]snapshots.Snapshotter{"native": snapshotter}),
		client.WithDiffService(diffService{Applier: apply}),
	), client.WithDefaultNamespace("k8s.io"))
	if err != nil {
		t.Fatal(err)
	}
	o := inProcess
	o.Snapshotter = "native"
	return &node{newImporter(c, o, builder.Platform("linux/amd64")), db}, snapshotter
}

// diffService applies only.
type diffService struct {
	diff.Comparer
	diff.Applier
}

// hashingApplier says what a layer's content is, and leaves the snapshot empty.
type hashingApplier struct {
	store content.Store
	begin <-chan struct{} // layers are held until it is closed
}

func (h *hashingApplier) Apply(ctx context.Context, d ocispec.Descriptor, _ []mount.Mount, _ ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	select {
	case <-h.begin:
	case <-ctx.Done():
		return ocispec.Descriptor{}, ctx.Err()
	}
	ra, err := h.store.ReaderAt(ctx, d)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer ra.Close()
	plain, err := archive.Decompress(content.NewReader(ra), archive.Gzip, archive.MaxWindowBytes)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer plain.Close()
	sum := digest.Canonical.Digester()
	n, err := io.Copy(sum.Hash(), plain)
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: sum.Digest(), Size: n}, err
}

// What is said to be unpacked ends at the total, whether layers are unpacked last, on the way, or were there.
func TestUnpackedEndsAtTheTotal(t *testing.T) {
	twice := single(layer("twice", 20_000), layer("between", 10_000), layer("twice", 20_000))
	for name, tc := range map[string]struct {
		images       builder.Archive
		stream, late bool
		again        bool
	}{
		"after the transfer":  {images: twoImages(), late: true},
		"during the transfer": {images: twoImages()},
		"snapshots are there": {images: twoImages(), again: true},
		"a layer twice":       {images: twice, late: true},
		"a stream":            {images: twoImages(), stream: true, late: true},
	} {
		t.Run(name, func(t *testing.T) {
			begin := make(chan struct{})
			if !tc.late {
				close(begin)
			}
			n, _ := newUnpackingNode(t, &hashingApplier{begin: begin})
			b := build(t, tc.images)
			req := wanted(owner)
			req.Unpack = true
			if tc.again {
				if _, err := n.Import(t.Context(), blobOf(t, b, false), req); err != nil {
					t.Fatal(err)
				}
			}
			var last Progress
			req.Progress = func(p Progress) {
				if p.Phase != PhaseUnpacking {
					return
				}
				if last.Phase == "" && tc.late {
					close(begin) // and all the rest comes within progressInterval
				}
				last = p
				if p.Unpacked > p.Total {
					t.Errorf("unpacked %d bytes of %d", p.Unpacked, p.Total)
				}
			}
			if _, err := n.Import(t.Context(), blobOf(t, b, tc.stream), req); err != nil {
				t.Fatal(err)
			}
			if last.Total != sum(blobsFor(b, 0)) || last.Unpacked != last.Total {
				t.Errorf("ended with %+v, want %d bytes unpacked", last, sum(blobsFor(b, 0)))
			}
		})
	}
}
