package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/test/cluster"
)

// mortal is a containerd whose root is a file system that can lose its power.
type mortal struct {
	*runtime
	disk *cluster.Disk
}

func startMortal(t *testing.T) *mortal {
	t.Helper()
	r, disk := startOnDisk(t, cluster.DiskSize)
	return &mortal{r, disk}
}

// goDown cuts the power. Then containerd ends.
func (m *mortal) goDown(t *testing.T) {
	t.Helper()
	if err := m.disk.CutPower(); err != nil {
		t.Fatal(err)
	}
	m.Containerd.Kill()
	if err := m.disk.Unmount(); err != nil {
		t.Fatal(err)
	}
}

// comeBack replays the journal and starts containerd on what is left.
func (m *mortal) comeBack(t *testing.T) {
	t.Helper()
	if err := m.disk.Mount(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.Containerd.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.Reconnect(); err != nil {
		t.Fatal(err)
	}
}

// perishable are layers of many small files, which a file system keeps in memory for a while, and some larger ones.
func perishable() []builder.Layer {
	var layers []builder.Layer
	for k := range 3 {
		noise := rand.NewChaCha8([32]byte{byte(k)})
		l := builder.Layer{Compression: builder.Gzip, Files: []builder.File{{Name: fmt.Sprintf("layer-%d/", k)}}}
		for n := range 300 {
			size := 1 + n*20
			if n%100 == 0 {
				size = 2 << 20
			}
			data := make([]byte, size)
			_, _ = noise.Read(data) // it never fails
			l.Files = append(l.Files, builder.File{Name: fmt.Sprintf("layer-%d/file-%d", k, n), Data: data})
		}
		layers = append(layers, l)
	}
	return layers
}

// archived writes an image of these layers, and gives the archive's path, its layers and the names of its snapshots.
func archived(t *testing.T, name string, layers []builder.Layer) (path string, blobs []ocispec.Descriptor, chain []digest.Digest) {
	t.Helper()
	img := image(name, layers...)
	img.Platforms[0].Config.Cmd = []string{name} // a config of its own
	b, data := built(t, builder.Archive{Images: []builder.Image{img}})
	p := b.Images[0].Platforms[0]
	return fileOf(t, data), p.Layers, identity.ChainIDs(slices.Clone(p.DiffIDs))
}

// damaged says of each file of these layers that a container on this snapshot would not find as it should be what is
// wrong with it. An error is a snapshot that cannot be mounted at all.
func (m *mortal) damaged(t *testing.T, snapshot digest.Digest, layers []builder.Layer) (wrong []string, err error) {
	t.Helper()
	l, err := m.LeasesService().Create(m.ctx, leases.WithRandomID(), leases.WithExpiration(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := m.LeasesService().Delete(m.ctx, l, leases.SynchronousDelete); err != nil {
			t.Error(err)
		}
	}()
	mounts, err := m.SnapshotService("overlayfs").View(leases.WithLease(m.ctx, l.ID), "view-"+l.ID, snapshot.String())
	if err != nil {
		return nil, err
	}
	err = mount.WithReadonlyTempMount(m.ctx, mounts, func(root string) error {
		for _, layer := range layers {
			for _, f := range layer.Files[1:] { // after the directory
				got, err := os.ReadFile(filepath.Join(root, f.Name))
				if err != nil {
					wrong = append(wrong, f.Name+": "+err.Error())
				} else if !bytes.Equal(got, f.Data) {
					wrong = append(wrong, fmt.Sprintf("%s: %d bytes, not the %d that it should have", f.Name, len(got), len(f.Data)))
				}
			}
		}
		return nil
	})
	return wrong, err
}

// sound checks a snapshot, and every blob that containerd says it has.
func (m *mortal) sound(t *testing.T, snapshot digest.Digest, layers []builder.Layer) {
	t.Helper()
	wrong, err := m.damaged(t, snapshot, layers)
	if err != nil || len(wrong) > 0 {
		t.Errorf("snapshot %s: error %v, %d files damaged: %q", snapshot, err, len(wrong), wrong[:min(3, len(wrong))])
	}
	err = m.ContentStore().Walk(m.ctx, func(i content.Info) error {
		data, err := content.ReadBlob(m.ctx, m.ContentStore(), ocispec.Descriptor{Digest: i.Digest, Size: i.Size})
		if err != nil || digest.FromBytes(data) != i.Digest {
			t.Errorf("blob %s of %d bytes: error %v", i.Digest, len(data), err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// An import that was acknowledged is there after a power cut. The second image brings no layer whose sync could cover
// for its other blobs and its name.
func TestImportSurvivesPowerCut(t *testing.T) {
	m := startMortal(t)
	layers := perishable()
	for _, name := range []string{"first", "second"} {
		path, _, chain := archived(t, "registry.example/"+name+":1", layers)
		i, req := m.importer(t), request(name)
		got, err := i.Import(t.Context(), open(t, path), req)
		if err != nil {
			t.Fatal(err)
		}
		before := m.state(t) // only reads
		m.goDown(t)
		m.comeBack(t)
		unchanged(t, before, m.state(t))
		if again, loss, ok, err := i.Imported(t.Context(), req.Owner); err != nil || !ok || loss != "" || again.IndexDigest != got.IndexDigest {
			t.Errorf("%s: imported %v %+v, error %v", name, ok, again, err)
		}
		m.sound(t, chain[len(layers)-1], layers)
		moved, err := i.Import(t.Context(), open(t, path), req)
		if err != nil || moved.Bytes.Written != 0 {
			t.Errorf("%s: moved %+v, error %v", name, moved.Bytes, err)
		}
		unchanged(t, before, m.state(t))
	}
}

// A snapshot is whole as soon as it is committed, also while the import goes on: the next attempt builds on it.
func TestCommittedLayersSurvivePowerCut(t *testing.T) {
	m := startMortal(t)
	layers := perishable()
	path, blobs, chain := archived(t, app, layers)
	src, req := holding(t, path, blobs[2].Digest), request("1")
	req.Keep = true
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		i, err := importer.New(importer.Options{Address: m.ContainerdAddress})
		if err == nil {
			_, err = i.Import(ctx, src, req)
			err = errors.Join(err, i.Close())
		}
		done <- err
	}()
	m.snapshot(t, "overlayfs", chain[1])
	m.goDown(t)
	cancel()
	if err := <-done; err == nil {
		t.Fatal("imported without a layer")
	}
	m.comeBack(t)
	m.sound(t, chain[1], layers[:2])
	if _, err := m.importer(t).Import(t.Context(), open(t, path), req); err != nil {
		t.Fatal(err)
	}
	m.sound(t, chain[2], layers)
}

// Without the sync a power cut does damage: the tests above can fail.
func TestPowerCutDamagesWhatIsNotSynced(t *testing.T) {
	m := startMortal(t)
	tools, err := cluster.ToolsDir()
	if err != nil {
		t.Fatal(err)
	}
	layers := perishable()
	path, _, chain := archived(t, app, layers)
	top := chain[len(layers)-1]
	ctr := exec.CommandContext(t.Context(), filepath.Join(tools, "ctr"), "--address", m.ContainerdAddress, "--namespace", "k8s.io", "images", "import", "--local", path)
	if out, err := ctr.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	m.snapshot(t, "overlayfs", top)
	m.goDown(t)
	m.comeBack(t)
	if _, err := m.SnapshotService("overlayfs").Stat(m.ctx, top.String()); errdefs.IsNotFound(err) {
		t.Log("the top snapshot is lost")
		return
	} else if err != nil {
		t.Fatal(err)
	}
	wrong, err := m.damaged(t, top, layers)
	if err == nil && len(wrong) == 0 {
		t.Error("every file is whole")
	}
	t.Logf("a committed snapshot with %d files damaged, error %v: %q", len(wrong), err, wrong[:min(3, len(wrong))])
}
