package integration

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/test/cluster"
)

const tool = "registry.example/team/tool:1"

// twoImages share a base layer.
func twoImages() builder.Archive {
	base := gzipLayer("base", 1<<20)
	return builder.Archive{Images: []builder.Image{
		image(app, base, gzipLayer("app", 2<<20)), image(tool, base, gzipLayer("tool", 1<<20)),
	}}
}

// under is a request whose archive has this policy.
func under(uid string, d importer.Deletion) importer.Request {
	req := request(uid)
	req.Owner.Deletion = d
	return req
}

func (r *runtime) bring(t *testing.T, path string, req importer.Request) importer.Result {
	t.Helper()
	got, err := r.importer(t).Import(t.Context(), open(t, path), req)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// sweep is that of an agent that has just come: it knows what the labels say.
func (r *runtime) sweep(t *testing.T, wanted ...importer.Owner) string {
	t.Helper()
	swept, err := r.importer(t).Sweep(t.Context(), wanted, nil)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, s := range swept {
		all = append(all, fmt.Sprintf("%s: retained %d, unpinned %d, deleted %d, in use %d",
			s.Owner.UID, len(s.Retained), len(s.Unpinned), len(s.Deleted), len(s.InUse)))
	}
	return strings.Join(all, "; ")
}

func (r *runtime) cri() runtimeapi.ImageServiceClient {
	return runtimeapi.NewImageServiceClient(r.Conn().(grpc.ClientConnInterface))
}

// pinned says what the kubelet sees of an image, after CRI has heard of the last change.
func (r *runtime) pinned(t *testing.T, name string, want bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		status, err := r.cri().ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}})
		if err != nil {
			t.Fatal(err)
		}
		if status.Image != nil && status.Image.Pinned == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("CRI has %s as %v", name, status.Image)
		}
	}
}

// removedByCRI deletes an image as `crictl rmi` and the kubelet do.
func (r *runtime) removedByCRI(t *testing.T, name string) {
	t.Helper()
	if _, err := r.cri().RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: name}}); err != nil {
		t.Fatal(err)
	}
}

func (r *runtime) has(t *testing.T, name string) bool {
	t.Helper()
	_, err := r.ImageService().Get(r.ctx, name)
	if err != nil && !errdefs.IsNotFound(err) {
		t.Fatal(err)
	}
	return err == nil
}

// What is deleted frees its bytes, content and snapshots, and nothing of others. Names that CRI made of an image that was
// there before Tarlift go too: without that they would hold it.
func TestDeletionFreesBytes(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{CRI: true})
	r.bystander(t)
	before := r.state(t)
	data := tarOf(t, twoImages())
	path := fileOf(t, data)
	for _, pulled := range []bool{false, true} {
		if pulled {
			if _, err := r.Import(r.ctx, bytes.NewReader(data)); err != nil {
				t.Fatal(err)
			}
			for deadline := time.Now().Add(5 * time.Second); r.criNames(t) < 3; time.Sleep(20 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("CRI made no names: %v", r.state(t)["images"])
				}
			}
		}
		r.bring(t, path, under("1", importer.DeletionDelete))
		if pulled { // without the remedy: all names but CRI's are deleted
			for _, img := range r.state(t)["images"] {
				if name, _, _ := strings.Cut(img, " "); strings.HasPrefix(name, "registry.example/") {
					if err := r.ImageService().Delete(r.ctx, name, images.SynchronousDelete()); err != nil {
						t.Fatal(err)
					}
				}
			}
			if s := r.state(t); len(s["content"]) == len(before["content"]) {
				t.Error("CRI's name holds nothing")
			}
			r.bring(t, path, under("1", importer.DeletionDelete))
		}
		if got := r.sweep(t); got != "1: retained 0, unpinned 0, deleted 4, in use 0" {
			t.Errorf("swept %s", got)
		}
		unchanged(t, before, r.state(t))
	}
}

// criNames counts the names that CRI makes.
func (r *runtime) criNames(t *testing.T) (n int) {
	t.Helper()
	for _, img := range r.state(t)["images"] {
		if strings.HasPrefix(img, "sha256:") {
			n++
		}
	}
	return n
}

// Two archives share an image. It stays, pinned, until the last of them goes; unpinned, it goes when the kubelet's garbage
// collection asks for that, and Retain keeps it from that.
func TestSharedImage(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{CRI: true})
	before := r.state(t)
	path := fileOf(t, tarOf(t, twoImages()))
	first, second, third := under("1", importer.DeletionDelete), under("2", importer.DeletionUnpin), under("3", importer.DeletionRetain)
	r.bring(t, path, first)
	r.bring(t, path, second)
	whole := r.state(t)
	if got := r.sweep(t, second.Owner); got != "1: retained 4, unpinned 0, deleted 0, in use 0" {
		t.Errorf("swept %s", got)
	}
	r.pinned(t, app, true)
	if diff := cmp.Diff(whole["content"], r.state(t)["content"]); diff != "" {
		t.Errorf("content (-before +after):\n%s", diff)
	}
	if _, loss, found, err := r.importer(t).Imported(t.Context(), second.Owner); !found || loss != "" || err != nil {
		t.Errorf("the other archive: found %v, loss %q, error %v", found, loss, err)
	}
	if got := r.sweep(t); got != "2: retained 0, unpinned 4, deleted 0, in use 0" {
		t.Errorf("swept %s", got)
	}
	r.pinned(t, app, false)
	r.pinned(t, tool, false)
	r.bring(t, path, third)
	if got := r.sweep(t); got != "3: retained 4, unpinned 0, deleted 0, in use 0" {
		t.Errorf("swept %s", got)
	}
	r.pinned(t, app, true)
	r.removedByCRI(t, app)
	r.removedByCRI(t, tool)
	collect(t, r)
	unchanged(t, before, r.state(t))
}

// An image that a container uses is unpinned, however the container came by it: its names, its content and its snapshots
// stay. The other image of the archive goes. When the container is gone, so does the image at the next sweep.
func TestImageInUse(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{CRI: true})
	path := fileOf(t, tarOf(t, twoImages()))
	for name, imageName := range map[string]func(img client.Image) string{
		"name":      client.Image.Name,
		"reference": func(img client.Image) string { return digestReference(app, img.Target().Digest) },
		"CRI's id": func(img client.Image) string {
			config, err := img.Config(r.ctx)
			if err != nil {
				t.Fatal(err)
			}
			return config.Digest.String()
		},
		"snapshot":        func(client.Image) string { return "gone.example/x:1" },
		"mapped snapshot": func(client.Image) string { return "gone.example/x:1" },
		"volume":          func(client.Image) string { return "gone.example/x:1" },
	} {
		t.Run(name, func(t *testing.T) {
			before := r.state(t)
			r.bring(t, path, under("1", importer.DeletionDelete))
			img, err := r.GetImage(r.ctx, app)
			if err != nil {
				t.Fatal(err)
			}
			snapshot := client.WithNewSnapshot("c", img)
			if name == "mapped snapshot" {
				snapshot = client.WithRemappedSnapshot("c", img, 1000, 1000) // as CRI does for user namespaces
			}
			opts := []client.NewContainerOpts{client.WithImageName(imageName(img)), client.WithSnapshotter("overlayfs"), client.WithNewSpec()}
			if name == "snapshot" || name == "mapped snapshot" {
				opts = append(opts, snapshot)
			}
			c, err := r.NewContainer(r.ctx, "c", opts...)
			if err != nil {
				t.Fatal(err)
			}
			if name == "volume" { // as CRI does for a pod's volume: no container has it for its own snapshot
				held := snapshots.WithLabels(map[string]string{"containerd.io/gc.root": time.Now().Format(time.RFC3339)})
				if err := client.WithNewSnapshot("/volume", img, held)(r.ctx, r.Client, &containers.Container{Snapshotter: "overlayfs"}); err != nil {
					t.Fatal(err)
				}
			}
			if got := r.sweep(t); got != "1: retained 0, unpinned 0, deleted 2, in use 2" {
				t.Errorf("swept %s", got)
			}
			left := r.namesOf(t, app)
			if now := r.allNames(t, "k8s.io"); !slices.Equal(now, left) {
				t.Errorf("names %v, want %v", now, left)
			}
			for _, name := range left {
				r.pinned(t, name, false)
			}
			if unpacked, err := img.IsUnpacked(r.ctx, "overlayfs"); err != nil || !unpacked {
				t.Errorf("unpacked %v, error %v", unpacked, err)
			}
			if got := r.sweep(t); got != "" {
				t.Errorf("swept again %s", got)
			}
			if err := c.Delete(r.ctx, client.WithSnapshotCleanup); err != nil && !errdefs.IsNotFound(err) {
				t.Fatal(err)
			}
			if name == "volume" {
				if err := r.SnapshotService("overlayfs").Remove(r.ctx, "/volume"); err != nil {
					t.Fatal(err)
				}
			}
			if got := r.sweep(t); got != "1: retained 0, unpinned 0, deleted 2, in use 0" {
				t.Errorf("swept %s without the container", got)
			}
			collect(t, r)
			after := r.state(t)
			after["snapshots"] = slices.DeleteFunc(after["snapshots"], func(s string) bool { return strings.HasSuffix(s, "-1000-1000") })
			unchanged(t, before, after)
		})
	}
}

// A changed archive drops what it no longer lists, bytes and all, in its own import; so does one whose source has changed.
func TestChangedArchive(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{CRI: true})
	only := fileOf(t, tarOf(t, builder.Archive{Images: twoImages().Images[:1]}))
	both := fileOf(t, tarOf(t, twoImages()))
	req := under("1", importer.DeletionDelete)
	r.bring(t, only, req)
	small, names := r.state(t), r.namesOf(t, app)
	for _, spec := range []string{"spec", "another"} {
		r.bring(t, both, req)
		if s := r.state(t); len(s["images"]) != 6 || len(s["snapshots"]) != 3 {
			t.Fatalf("state %v", s)
		}
		req.Owner.SpecHash = spec
		if got := r.bring(t, only, req); len(got.Former.Deleted) != 2 || got.Bytes.Written != 0 {
			t.Errorf("dropped %+v, moved %+v", got.Former, got.Bytes)
		}
		if now := r.allNames(t, "k8s.io"); !slices.Equal(now, names) {
			t.Errorf("names %v, want %v", now, names)
		}
		for _, kind := range []string{"content", "snapshots", "leases", "ingests"} {
			if diff := cmp.Diff(small[kind], r.state(t)[kind]); diff != "" {
				t.Errorf("%s (-before +after):\n%s", kind, diff)
			}
		}
	}
}

// When a tag has moved on to a new image, all that only the old one had goes: its reference, its id, its content and snapshots.
func TestUpgradedArchive(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{CRI: true})
	base := gzipLayer("base", 1<<20)
	version := func(n string) string {
		return fileOf(t, tarOf(t, builder.Archive{Images: []builder.Image{image(app, base, gzipLayer(n, 1<<20))}}))
	}
	first, second := version("first"), version("second")
	req := under("1", importer.DeletionDelete)
	r.bring(t, second, req)
	want, names := r.state(t), r.namesOf(t, app)
	if got := r.sweep(t); got != "1: retained 0, unpinned 0, deleted 2, in use 0" {
		t.Errorf("swept %s", got)
	}
	r.bring(t, first, req)
	old := r.namesOf(t, app)
	got := r.bring(t, second, req)
	if !slices.Equal(got.Former.Deleted, old[1:2]) {
		t.Errorf("dropped %+v, want %s", got.Former, old[1])
	}
	if now := r.allNames(t, "k8s.io"); !slices.Equal(now, names) {
		t.Errorf("names %v, want %v", now, names)
	}
	for _, kind := range []string{"content", "snapshots", "leases", "ingests"} {
		if diff := cmp.Diff(want[kind], r.state(t)[kind]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", kind, diff)
		}
	}
	if _, loss, found, err := r.importer(t).Imported(t.Context(), req.Owner); !found || loss != "" || err != nil {
		t.Errorf("found %v, loss %q, error %v", found, loss, err)
	}
}

// An image that somebody else has brought, with the id that the CRI has made for it, is shared by archives one after the other,
// and given back by the last one as it was, whatever its policy.
func TestForeignImageIsGivenBack(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{CRI: true})
	data := tarOf(t, builder.Archive{Images: []builder.Image{image(app, gzipLayer("a", 40_000))}})
	path := fileOf(t, data)
	if _, err := r.Import(r.ctx, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); r.criNames(t) < 1; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("CRI made no id: %v", r.state(t)["images"])
		}
	}
	published := r.namesOf(t, app)
	r.ctr(t, "images", "label", published[2], "io.cri-containerd.pinned=pinned") // somebody's own
	labels := func() map[string]map[string]string {
		all := map[string]map[string]string{}
		for _, name := range []string{published[0], published[2]} {
			img, err := r.ImageService().Get(r.ctx, name)
			if err != nil {
				t.Fatal(err)
			}
			all[name] = img.Labels
		}
		return all
	}
	before := labels()
	first, second := under("1", importer.DeletionDelete), under("2", importer.DeletionDelete)
	r.bring(t, path, first)
	r.bring(t, path, second)
	if got := r.sweep(t, second.Owner); got != "1: retained 2, unpinned 0, deleted 0, in use 0" {
		t.Errorf("swept %s", got)
	}
	for _, name := range published {
		r.pinned(t, name, true)
	}
	// The reference is Tarlift's own, and goes. The tag was there, unpinned, and the id pinned.
	if got := r.sweep(t); got != "2: retained 0, unpinned 1, deleted 1, in use 0" {
		t.Errorf("swept %s", got)
	}
	if now := r.allNames(t, "k8s.io"); !slices.Equal(now, []string{published[0], published[2]}) {
		t.Errorf("names %v", now)
	}
	if diff := cmp.Diff(before, labels()); diff != "" {
		t.Errorf("labels (-before +after):\n%s", diff)
	}
}

// An archive that was deleted and made again has another UID: what only the first one had goes.
func TestRecreatedArchive(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{CRI: true})
	r.bring(t, fileOf(t, tarOf(t, twoImages())), under("1", importer.DeletionDelete))
	again := under("9", importer.DeletionDelete)
	again.Owner.Name = "archive-1"
	r.bring(t, fileOf(t, tarOf(t, builder.Archive{Images: twoImages().Images[:1]})), again)
	if got := r.sweep(t, again.Owner); got != "1: retained 0, unpinned 0, deleted 2, in use 0" {
		t.Errorf("swept %s", got)
	}
	if !r.has(t, app) || r.has(t, tool) {
		t.Errorf("images %v", r.state(t)["images"])
	}
	if _, loss, found, err := r.importer(t).Imported(t.Context(), again.Owner); !found || loss != "" || err != nil {
		t.Errorf("found %v, loss %q, error %v", found, loss, err)
	}
}
