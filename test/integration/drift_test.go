package integration

import (
	"context"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/images"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"

	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/test/cluster"
)

// ctr is containerd's own command line.
func (r *runtime) ctr(t *testing.T, args ...string) {
	t.Helper()
	tools, err := cluster.ToolsDir()
	if err != nil {
		t.Fatal(err)
	}
	args = append([]string{"--address", r.ContainerdAddress, "--namespace", "k8s.io"}, args...)
	if out, err := exec.CommandContext(t.Context(), filepath.Join(tools, "ctr"), args...).CombinedOutput(); err != nil {
		t.Fatalf("ctr %v: %v: %s", args, err, out)
	}
}

// slack is what an import may read beside the blobs that it fetches: headers, indexes, manifests and configs.
const slack = 32 << 10

// Whatever becomes of an image, the loss is told, and made good: without the source where that can be, else by reading
// what is missing and no more.
func TestLossIsHealed(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{CRI: true})
	r.bystander(t)
	empty := r.state(t)
	built, err := builder.Archive{Images: []builder.Image{image(app, gzipLayer("a", 1<<20), gzipLayer("b", 2<<20))}}.Build()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { built.Close() })
	data, err := built.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	path, amd64 := fileOf(t, data), built.Images[0].Platforms[0]
	published := names(app, built.Images[0].Target.Digest, amd64.Config.Digest)
	all := int64(0)
	for _, d := range append([]ocispec.Descriptor{built.Images[0].Target, amd64.Manifest, amd64.Config}, amd64.Layers...) {
		all += d.Size
	}
	for _, tc := range []struct {
		name     string
		harm     func(t *testing.T)
		loss     string // a part of it
		gone     bool   // nothing of the owner is left
		repaired bool   // without the source
		written  int64
	}{
		{name: "nothing", harm: func(*testing.T) {}},
		{name: "one name", harm: func(t *testing.T) { r.ctr(t, "images", "rm", "--sync", app) }, loss: "1 of 3 names missing"},
		{name: "its id", harm: func(t *testing.T) { r.ctr(t, "images", "rm", "--sync", amd64.Config.Digest.String()) }, loss: "1 of 3 names missing"},
		{name: "all names", harm: func(t *testing.T) {
			r.ctr(t, append([]string{"images", "rm", "--sync"}, published...)...)
		}, gone: true, written: all},
		{name: "removed by CRI", harm: func(t *testing.T) {
			r.removedByCRI(t, app)
			collect(t, r)
		}, gone: true, written: all},
		{name: "pin", harm: func(t *testing.T) { r.ctr(t, "images", "label", app, "io.cri-containerd.pinned=") }, loss: app + " is not pinned", repaired: true},
		{name: "target", harm: func(t *testing.T) { // as CRI does when it pulls another image of that name
			other, err := r.ImageService().Get(r.ctx, "bystander.example/x:1")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := r.ImageService().Update(r.ctx, images.Image{Name: app, Target: other.Target}, "target"); err != nil {
				t.Fatal(err)
			}
		}, loss: app + " stands for ", repaired: true},
		{name: "target and labels", harm: func(t *testing.T) {
			r.ctr(t, "images", "tag", "--force", "bystander.example/x:1", app)
		}, loss: "1 of 3 names missing"},
		{name: "snapshot", harm: func(t *testing.T) {
			s := r.SnapshotService("overlayfs")
			for _, name := range r.state(t)["snapshots"] {
				if !strings.Contains(strings.Join(empty["snapshots"], " "), name) && s.Remove(r.ctx, name) == nil {
					return
				}
			}
			t.Fatal("no snapshot could be removed")
		}, loss: app + " is not unpacked"},
		{name: "blob", harm: func(t *testing.T) {
			if err := r.ContentStore().Delete(r.ctx, amd64.Layers[1].Digest); err != nil {
				t.Fatal(err)
			}
		}, loss: app + " lacks " + amd64.Layers[1].Digest.String(), written: amd64.Layers[1].Size},
		{name: "manifest", harm: func(t *testing.T) {
			if err := r.ContentStore().Delete(r.ctx, amd64.Manifest.Digest); err != nil {
				t.Fatal(err)
			}
		}, loss: app + " lacks ", written: amd64.Manifest.Size},
		{name: "unpacked layers, discarded", harm: func(t *testing.T) {
			r.ctr(t, "content", "prune", "references")
			if _, err := r.ContentStore().Info(r.ctx, amd64.Layers[1].Digest); err == nil {
				t.Fatal("the layer is still there")
			}
		}},
		{name: "snapshotter", harm: func(t *testing.T) { r.losesSnapshotter(t, published...) }, loss: app + " is not unpacked"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			i, req := r.importer(t), under("1", importer.DeletionDelete)
			r.bring(t, path, req)
			tc.harm(t)
			look := func() (string, bool) {
				_, loss, found, err := i.Imported(t.Context(), req.Owner)
				if err != nil {
					t.Fatal(err)
				}
				return loss, found
			}
			if loss, found := look(); found == tc.gone || !strings.Contains(loss, tc.loss) || (loss == "") != (tc.loss == "") {
				t.Fatalf("found %v, loss %q", found, loss)
			}
			repaired, err := i.Repair(t.Context(), req.Owner)
			if err != nil || (repaired > 0) != tc.repaired {
				t.Errorf("repaired %d, error %v", repaired, err)
			}
			if loss, _ := look(); tc.repaired && loss != "" {
				t.Errorf("lost %q after the repair", loss)
			}
			if tc.loss != "" || tc.gone {
				got := r.bring(t, path, req)
				if got.Bytes.Written != tc.written || got.Bytes.Read > tc.written+slack {
					t.Errorf("moved %+v, %d are missing", got.Bytes, tc.written)
				}
			}
			if loss, found := look(); !found || loss != "" {
				t.Errorf("found %v, loss %q", found, loss)
			}
			r.pinned(t, app, true)
			if got := r.sweep(t); got != "1: retained 0, unpinned 0, deleted 2, in use 0" {
				t.Errorf("swept %s", got)
			}
			if s := r.state(t); len(s["snapshots"]) != len(empty["snapshots"]) || len(s["images"]) != len(empty["images"]) {
				t.Errorf("left %v", s)
			}
		})
	}
}

// losesSnapshotter makes images look as if they, and a container, were unpacked into a snapshotter that containerd had before.
func (r *runtime) losesSnapshotter(t *testing.T, names ...string) {
	t.Helper()
	unpacked := func(_ context.Context, _ *client.Client, c *containers.Container) error {
		c.Snapshotter, c.SnapshotKey = "former", "former"
		return nil
	}
	if _, err := r.NewContainer(r.ctx, "former", client.WithNewSpec(), unpacked); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		img, err := r.ImageService().Get(r.ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		for label, value := range img.Labels {
			img.Labels[label] = strings.Replace(value, `"snapshotter":"overlayfs"`, `"snapshotter":"former"`, 1)
		}
		if _, err := r.ImageService().Update(r.ctx, img, "labels"); err != nil {
			t.Fatal(err)
		}
	}
}

// Deletions and changes of names are told within a second, and removed snapshots of layers.
func TestWatch(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{CRI: true})
	path := fileOf(t, tarOf(t, twoImages()))
	got := r.bring(t, path, under("1", importer.DeletionDelete))
	ignored := goleak.IgnoreCurrent()
	i, err := importer.New(importer.Options{Address: r.ContainerdAddress})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	told, ended := make(chan string, 1000), make(chan error, 1)
	go func() { ended <- i.Watch(ctx, func(name string) { told <- name }) }()
	hears := func(name string, within time.Duration) bool {
		for deadline := time.After(within); ; {
			select {
			case n := <-told:
				if n == name {
					return true
				}
			case <-deadline:
				return false
			}
		}
	}
	for deadline := time.Now().Add(10 * time.Second); ; { // until it is connected
		r.ctr(t, "images", "label", app, "probe="+time.Now().String())
		if hears(app, 100*time.Millisecond) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("an update is not told")
		}
	}
	published := append(r.namesOf(t, app), r.namesOf(t, tool)...)
	slices.Sort(published)
	if !slices.Equal(got.Names, published) {
		t.Fatalf("names %v, want %v", got.Names, published)
	}
	for _, name := range got.Names {
		r.ctr(t, "images", "label", name, "io.cri-containerd.pinned=")
		if !hears(name, time.Second) {
			t.Errorf("the lost pin of %s is not told", name)
		}
	}
	removeLeaf(t, r)
	if !hears("", time.Second) {
		t.Error("a removed snapshot is not told")
	}
	for _, name := range got.Names {
		r.ctr(t, "images", "rm", name)
		if !hears(name, time.Second) {
			t.Errorf("the deletion of %s is not told", name)
		}
	}
	collect(t, r)
	if !hears("", time.Second) {
		t.Error("a collected snapshot is not told")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("ended with %v", err)
	}
	go func() { ended <- i.Watch(t.Context(), func(string) {}) }()
	time.Sleep(200 * time.Millisecond)
	r.Containerd.Kill()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("no error without containerd")
		}
	case <-time.After(10 * time.Second):
		t.Error("goes on without containerd")
	}
	if err := i.Close(); err != nil {
		t.Fatal(err)
	}
	goleak.VerifyNone(t, ignored)
}
