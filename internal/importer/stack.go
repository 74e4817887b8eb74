package importer

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A layer is applied early when those below it are not there yet: into a snapshot that gets its parent as it is
// committed. With overlayfs, containerd unpacks right into the directory of the layer ("upperdir"), and takes one thing
// from those below ("lowerdir"): mode, owner and attributes of a directory that the layer puts something into but does
// not list itself. Early, it would silently make such a directory 0755 and root's.
//
// So there is a snare where the layers below would be: something that is no directory. containerd fails when it looks
// there, and the layer begins anew on top of those below it. One that was applied early had no need of them.
const (
	overlayfs = "overlayfs"
	snare     = "/dev/null"
	upperDir  = "upperdir="
	lowerDir  = "lowerdir="
)

// stack is the snapshotter for the layers of one image that are applied side by side.
type stack struct {
	snapshots.Snapshotter
	fail    func(error)       // ends the import
	below   map[string]string // chain IDs
	ordered atomic.Bool       // a layer has touched the snare: those of one image are mostly made the same way

	mu        sync.Mutex
	begun     map[string]begunLayer // by directory
	committed arrivals              // chain IDs
}

// begunLayer is the snapshot that a layer goes to, and that of the layer below it.
type begunLayer struct{ key, parent string }

func newStack(s snapshots.Snapshotter, diffIDs []digest.Digest, fail func(error)) *stack {
	out := &stack{Snapshotter: s, fail: fail, below: map[string]string{}, begun: map[string]begunLayer{}}
	out.committed.blobs = map[digest.Digest]chan struct{}{}
	chain := identity.ChainIDs(slices.Clone(diffIDs))
	for k := range chain[1:] {
		out.below[chain[k+1].String()] = chain[k].String()
	}
	return out
}

// Prepare notes what it has prepared.
func (s *stack) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	mounts, err := s.Snapshotter.Prepare(ctx, key, parent, opts...)
	if err != nil {
		return nil, err //nolint:wrapcheck // a transparent wrapper
	}
	var info snapshots.Info
	for _, o := range opts {
		if err := o(&info); err != nil {
			return nil, err
		}
	}
	dir := directory(mounts)
	if dir == "" {
		return nil, fmt.Errorf("snapshotter %s gave mounts of another kind: %v", overlayfs, mounts)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begun[dir] = begunLayer{key, s.below[info.Labels[snapshots.LabelSnapshotRef]]}
	return mounts, nil
}

// Commit tells who waits for the snapshot. When it fails, the Unpacker would wait for them before it says so.
func (s *stack) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	err := s.Snapshotter.Commit(ctx, name, key, opts...)
	if err != nil && !errdefs.IsAlreadyExists(err) {
		s.fail(fmt.Errorf("commit snapshot %s: %w", key, err))
		return err //nolint:wrapcheck // a transparent wrapper
	}
	s.committed.arrived(digest.Digest(name))
	return err //nolint:wrapcheck // as above
}

// labeller is the content store that the Unpacker says in what a layer is when it is not compressed. When that fails, it
// gives up the next layer, and would wait for those above that one, which wait for it, before it says so.
type labeller struct {
	content.Store
	fail func(error) // ends the import
}

// Update ends the import when it fails.
func (l labeller) Update(ctx context.Context, info content.Info, paths ...string) (content.Info, error) {
	updated, err := l.Store.Update(ctx, info, paths...)
	if err != nil {
		l.fail(fmt.Errorf("label blob %s: %w", info.Digest, err))
	}
	return updated, err //nolint:wrapcheck // a transparent wrapper
}

// early is the layer that the mounts are of, if it is to be applied without those below it. The lowest has none.
func (s *stack) early(mounts []mount.Mount) (begunLayer, bool) {
	if s == nil {
		return begunLayer{}, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.begun[directory(mounts)]
	return l, l.parent != ""
}

// onTop begins a layer anew on top of those below it, when these are committed. Its labels come as it is committed.
func (s *stack) onTop(ctx context.Context, l begunLayer) ([]mount.Mount, error) {
	s.ordered.Store(true)
	// It is not committed here when it was there before.
	if _, err := s.Stat(ctx, l.parent); errdefs.IsNotFound(err) {
		if err := s.committed.wait(ctx, digest.Digest(l.parent)); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, fmt.Errorf("look for snapshot %s: %w", l.parent, err)
	}
	if err := s.Remove(ctx, l.key); err != nil {
		return nil, fmt.Errorf("remove snapshot %s: %w", l.key, err)
	}
	mounts, err := s.Snapshotter.Prepare(ctx, l.key, l.parent)
	if err != nil {
		return nil, fmt.Errorf("prepare snapshot %s: %w", l.key, err)
	}
	return mounts, nil
}

// directory is where a layer is applied, "" if it cannot be told.
func directory(mounts []mount.Mount) string {
	if len(mounts) != 1 {
		return ""
	}
	for _, o := range mounts[0].Options {
		if dir, ok := strings.CutPrefix(o, upperDir); ok {
			return dir
		}
	}
	if mounts[0].Type == "bind" {
		return mounts[0].Source
	}
	return ""
}

// snared are mounts to apply a layer early with.
func snared(dir string) []mount.Mount {
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{upperDir + dir, lowerDir + snare}}}
}

// touched says whether applying a layer early failed because of the snare; or, which does no harm, of a file of the
// layer's own with such a name.
func touched(err error) bool { return strings.Contains(err.Error(), snare) }

// looks finds out whether this containerd looks at the snare and says so, by a layer with a file in a directory that it does not
// list. Whatever goes wrong on the way, layers in order are right.
func (u *unpacker) looks(ctx context.Context) bool {
	c := u.importer.client
	if caps, err := c.GetSnapshotterCapabilities(ctx, u.name()); err != nil || !slices.Contains(caps, snapshots.RebaseCap) {
		return false // parents cannot be given afterwards
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	if w.WriteHeader(&tar.Header{Name: "directory/file", Mode: 0o644}) != nil || w.Close() != nil {
		return false
	}
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(layer.Bytes()), Size: int64(layer.Len())}
	if content.WriteBlob(ctx, u.content, d.Digest.String(), &layer, d) != nil {
		return false
	}
	s, key := u.platform.Snapshotter, snapshots.UnpackKeyPrefix+"-tarlift-"+rand.Text()
	mounts, err := s.Prepare(ctx, key, "")
	if err != nil {
		return false
	}
	defer s.Remove(context.WithoutCancel(ctx), key) //nolint:errcheck // what stays goes with the lease
	dir := directory(mounts)
	if dir == "" {
		return false
	}
	apply := c.DiffService().Apply
	if _, err := apply(ctx, d, snared(dir)); err == nil || !touched(err) {
		return false
	}
	_, err = apply(ctx, d, []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{upperDir + dir}}})
	return err == nil
}
