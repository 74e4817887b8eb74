package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/internal/source"
	"github.com/tarlift/tarlift/test/cluster"
)

// held is a source that gives no byte of the member that begins at off until release is closed.
type held struct {
	source.Blob
	off     int64
	release chan struct{}
}

func (h held) Section(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if off == h.off {
		select {
		case <-h.release:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return h.Blob.Section(ctx, off, n)
}

// holding builds an archive whose last layer is held.
func holding(t *testing.T, path string, layer digest.Digest) held {
	t.Helper()
	blob := open(t, path)
	tree, err := archive.ReadTree(t.Context(), blob, blob.Size())
	if err != nil {
		t.Fatal(err)
	}
	off, _, ok := tree.Locate(builder.BlobPath(layer))
	if !ok {
		t.Fatalf("no layer %s", layer)
	}
	return held{blob, off, make(chan struct{})}
}

// Layers are unpacked while later ones are still to come, whatever the snapshotter can.
func TestLayersAreUnpackedAsTheyArrive(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{})
	for _, name := range []string{"overlayfs", "native"} {
		t.Run(name, func(t *testing.T) {
			b, data := built(t, builder.Archive{Images: []builder.Image{image("registry.example/"+name+":1",
				gzipLayer(name+"-1", 1000), gzipLayer(name+"-2", 1000), gzipLayer(name+"-3", 1000))}})
			p := b.Images[0].Platforms[0]
			src := holding(t, fileOf(t, data), p.Layers[2].Digest)
			i := r.importerWith(t, importer.Options{Snapshotter: name})
			done := make(chan error, 1)
			go func() {
				_, err := i.Import(t.Context(), src, request(name))
				done <- err
			}()
			chain := identity.ChainIDs(slices.Clone(p.DiffIDs))
			r.snapshot(t, name, chain[1])
			if _, err := r.SnapshotService(name).Stat(r.ctx, chain[2].String()); !errdefs.IsNotFound(err) {
				t.Errorf("the layer that is held: %v", err)
			}
			close(src.release)
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			r.snapshot(t, name, chain[2])
		})
	}
}

// snapshot waits for a committed snapshot.
func (r *runtime) snapshot(t *testing.T, snapshotter string, chain digest.Digest) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		_, err := r.SnapshotService(snapshotter).Stat(r.ctx, chain.String())
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("snapshot %s: %v", chain, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// A layer that cannot be unpacked ends the import at once: what is still to come is not waited for.
func TestUnpackFailureEndsTheTransfer(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{})
	r.bystander(t)
	before := r.state(t)
	b, err := builder.Archive{Images: []builder.Image{image(app, gzipLayer("a", 40_000), gzipLayer("b", 20_000))}}.Build()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	p := b.Images[0].Platforms[0]
	var members []builder.Member
	for _, m := range b.Members {
		if m.Name == builder.BlobPath(p.Layers[0].Digest) || m.Name == builder.BlobPath(p.Layers[1].Digest) {
			members = append(members, m)
		}
	}
	path := fileOf(t, handmade(t, p.Layers, []digest.Digest{p.DiffIDs[1], p.DiffIDs[0]}, members...))
	src := holding(t, path, p.Layers[1].Digest) // never let go
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := r.importer(t).Import(ctx, src, request("1")); !errors.Is(err, archive.ErrDigestMismatch) {
		t.Errorf("error %v", err)
	}
	unchanged(t, before, r.state(t))
}

// Many images of one base, unpacked at the same time: each layer once, nothing left over, and no deadlock.
func TestSharedLayersAreUnpackedOnce(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{})
	base := []builder.Layer{gzipLayer("base-1", 200_000), gzipLayer("base-2", 200_000)}
	var images []builder.Image
	for k := range 20 {
		images = append(images, image(fmt.Sprintf("registry.example/app-%d:1", k), append(slices.Clone(base), gzipLayer(fmt.Sprint("app-", k), 1000))...))
	}
	got, err := r.importer(t).Import(t.Context(), open(t, fileOf(t, tarOf(t, builder.Archive{Images: images}))), request("1"))
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Images) != len(images) {
		t.Errorf("%d images", len(got.Images))
	}
	s := r.state(t)
	if n := len(s["snapshots"]); n != len(base)+len(images) {
		t.Errorf("%d snapshots: %q", n, s["snapshots"])
	}
	if len(s["leases"])+len(s["ingests"]) != 0 {
		t.Errorf("left behind %q", s)
	}
}
