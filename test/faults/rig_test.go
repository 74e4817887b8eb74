package faults

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/test/cluster"
	"github.com/tarlift/tarlift/test/node"
)

// rig is a containerd in which somebody else has things: an image, a lease, and an ingest that is under way.
type rig struct {
	*cluster.Node
	*client.Client
	ctx     context.Context
	root    string // of containerd
	sockets string
	theirs  string // all there is to know about what is somebody else's
}

// newRig starts it. Without a root directory it is in memory: a process that is killed leaves the page cache as it is.
func newRig(t *testing.T, o cluster.ContainerdOptions) *rig {
	t.Helper()
	r := &rig{ctx: namespaces.WithNamespace(t.Context(), "k8s.io"), root: o.Root, sockets: socketDir(t)}
	if r.root == "" {
		r.root = t.TempDir()
		if err := unix.Mount("tmpfs", r.root, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(r.root, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
	}
	o.Root = r.root
	var err error
	r.Node, err = cluster.StartContainerd(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Stop(); err != nil {
			t.Error(err)
		}
	})
	r.Client, err = client.New(r.ContainerdAddress)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	r.bystander(t)
	r.theirs = r.foreign(t)
	return r
}

const (
	foreignLease  = "bystander"
	foreignIngest = "bystander-ingest"
)

// bystander makes what is somebody else's, the way others do it.
func (r *rig) bystander(t *testing.T) {
	t.Helper()
	img := image([]string{bystanderName}, "bystander", base, layer("bystander", 3, 5000))
	data, err := builder.Archive{Images: []builder.Image{img}}.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	imported, err := r.Import(r.ctx, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if err := client.NewImage(r.Client, imported[0]).Unpack(r.ctx, "overlayfs"); err != nil {
		t.Fatal(err)
	}
	lease, err := r.LeasesService().Create(r.ctx, leases.WithID(foreignLease), leases.WithExpiration(24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	ctx := leases.WithLease(r.ctx, lease.ID)
	blob := []byte("held by the bystander's lease alone")
	d := ocispec.Descriptor{Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	if err := content.WriteBlob(ctx, r.ContentStore(), "blob", bytes.NewReader(blob), d); err != nil {
		t.Fatal(err)
	}
	w, err := r.ContentStore().Writer(ctx, content.WithRef(foreignIngest))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(blob[:5]); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	r.collect(t)
}

// collect runs containerd's garbage collection.
func (r *rig) collect(t *testing.T) {
	t.Helper()
	l, err := r.LeasesService().Create(r.ctx, leases.WithRandomID())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.LeasesService().Delete(r.ctx, l, leases.SynchronousDelete); err != nil {
		t.Fatal(err)
	}
}

// foreign is all there is to know about what is somebody else's, as text.
func (r *rig) foreign(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	img, err := r.ImageService().Get(r.ctx, bystanderName)
	fmt.Fprintf(&out, "%+v %v\n", img, err)
	mine := platforms.Default()
	err = images.Walk(r.ctx, images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if d.Platform != nil && !mine.Match(*d.Platform) {
			return nil, nil
		}
		info, err := r.ContentStore().Info(ctx, d.Digest)
		if err != nil {
			return nil, err
		}
		data, err := content.ReadBlob(ctx, r.ContentStore(), d)
		fmt.Fprintf(&out, "%s %v %s %v\n", d.Digest, info.Labels, digest.FromBytes(data), err)
		return images.Children(ctx, r.ContentStore(), d)
	}), img.Target)
	fmt.Fprintln(&out, err)
	diffIDs, err := client.NewImage(r.Client, img).RootFS(r.ctx)
	fmt.Fprintln(&out, err)
	for _, id := range identity.ChainIDs(diffIDs) {
		info, err := r.SnapshotService("overlayfs").Stat(r.ctx, id.String())
		fmt.Fprintf(&out, "%+v %v\n", info, err)
	}
	held, err := r.LeasesService().ListResources(r.ctx, leases.Lease{ID: foreignLease})
	fmt.Fprintf(&out, "%v %v\n", held, err)
	st, err := r.ContentStore().Status(r.ctx, foreignIngest)
	fmt.Fprintln(&out, st.Ref, st.Offset, st.StartedAt, err)
	return out.String()
}

// state is all that an import could change.
func (r *rig) state(t *testing.T) node.State {
	t.Helper()
	s, err := node.StateOf(r.ctx, r.Client)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// incomplete says of each name that points to an image which cannot be run what it lacks.
func (r *rig) incomplete(t *testing.T) []string {
	t.Helper()
	list, err := r.ImageService().List(r.ctx)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, img := range list {
		if err := r.whole(img); err != nil {
			out = append(out, fmt.Sprintf("%s: %v", img.Name, err))
		}
	}
	return out
}

func (r *rig) whole(img images.Image) error {
	_, _, _, missing, err := images.Check(r.ctx, r.ContentStore(), img.Target, platforms.Default())
	if err != nil || len(missing) > 0 {
		return fmt.Errorf("%d blobs missing, error %w", len(missing), err)
	}
	diffIDs, err := client.NewImage(r.Client, img).RootFS(r.ctx)
	if err != nil {
		return err
	}
	for _, id := range identity.ChainIDs(diffIDs) {
		if _, err := r.SnapshotService("overlayfs").Stat(r.ctx, id.String()); err != nil {
			return err
		}
	}
	return nil
}

// reset removes all names but those of somebody else and those that are to stay, and what only they held.
func (r *rig) reset(t *testing.T, stay func(images.Image) bool) {
	t.Helper()
	list, err := r.ImageService().List(r.ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range list {
		if img.Name == bystanderName || stay(img) {
			continue
		}
		if err := r.ImageService().Delete(r.ctx, img.Name); err != nil {
			t.Fatal(err)
		}
	}
	r.collect(t)
}

// scrub removes what an import left that is never cleared up otherwise, and says how much that was.
func (r *rig) scrub(t *testing.T) int {
	t.Helper()
	n := 0
	left := r.state(t)
	for _, ref := range left["ingests"] {
		if ref == foreignIngest {
			continue
		}
		n++
		if err := r.ContentStore().Abort(r.ctx, ref); err != nil && !errdefs.IsNotFound(err) {
			t.Fatal(err)
		}
	}
	for _, id := range left["leases"] {
		if id == foreignLease {
			continue
		}
		n++
		if err := r.LeasesService().Delete(r.ctx, leases.Lease{ID: id}, leases.SynchronousDelete); err != nil && !errdefs.IsNotFound(err) {
			t.Fatal(err)
		}
	}
	return n
}

// ourLeases are those of importers, each of which must expire within a day.
func (r *rig) ourLeases(t *testing.T) (ids []string) {
	t.Helper()
	list, err := r.LeasesService().List(r.ctx, `labels."tarlift.dev/uid"`)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range list {
		expires, err := time.Parse(time.RFC3339, l.Labels["containerd.io/gc.expire"])
		if err != nil || time.Until(expires) > 24*time.Hour {
			t.Errorf("lease %s does not expire within a day: %v", l.ID, l.Labels)
		}
		ids = append(ids, l.ID)
	}
	return ids
}

// expire does to the leases of importers what a day does.
func (r *rig) expire(t *testing.T) {
	t.Helper()
	for _, id := range r.ourLeases(t) {
		if err := r.LeasesService().Delete(r.ctx, leases.Lease{ID: id}, leases.SynchronousDelete); err != nil {
			t.Fatal(err)
		}
	}
	r.collect(t)
}

// revive starts a containerd that was killed.
func (r *rig) revive(t *testing.T) {
	t.Helper()
	if err := r.Containerd.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.Reconnect(); err != nil {
		t.Fatal(err)
	}
}

// differences counts lines that one state has and the other has not, apart from those of images.
func differences(a, b node.State) (out []string) {
	for kind := range a {
		if kind == "images" {
			continue
		}
		for _, l := range a[kind] {
			if !slices.Contains(b[kind], l) {
				out = append(out, "missing of the "+kind+": "+l)
			}
		}
		for _, l := range b[kind] {
			if !slices.Contains(a[kind], l) {
				out = append(out, "left of the "+kind+": "+l)
			}
		}
	}
	return out
}
