package unpack

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

// In parallel, a layer is applied before its parent is there: into a snapshot that gets its parent as it is committed
// ("rebase"). With overlayfs, containerd unpacks right into the directory of the layer ("upperdir"), and takes one thing from
// its parents ("lowerdir"): mode, owner and attributes of a directory that the layer puts something into but does not list
// itself. Without the parent, it would silently make such a directory 0755 and root's.
//
// So lowerdir is a probe: something that is no directory. containerd fails when it reads there, and the layer is applied again
// on top of its parent. One that was applied before its parent had no need of it.
const (
	overlayfs     = "overlayfs"
	lowerdirProbe = "/dev/null"
	upperDir      = "upperdir="
	lowerDir      = "lowerdir="
)

// parallelUnpack is the snapshotter for the layers of one image that are applied in parallel.
type parallelUnpack struct {
	snapshots.Snapshotter
	fail    func(error)       // ends the import
	parents map[string]string // chain IDs
	ordered atomic.Bool       // a layer has needed its parent: those of one image are mostly made the same way

	mu        sync.Mutex
	started   map[string]activeLayer // by directory
	committed ReadySet               // chain IDs
}

// activeLayer is the snapshot that a layer is applied to, and that of the layer below it.
type activeLayer struct{ key, parent string }

func newParallelUnpack(s snapshots.Snapshotter, diffIDs []digest.Digest, fail func(error)) *parallelUnpack {
	p := &parallelUnpack{Snapshotter: s, fail: fail, parents: map[string]string{}, started: map[string]activeLayer{}}
	chain := identity.ChainIDs(slices.Clone(diffIDs))
	for k := range chain[1:] {
		p.parents[chain[k+1].String()] = chain[k].String()
	}
	return p
}

// Prepare notes what it has prepared.
func (p *parallelUnpack) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	mounts, err := p.Snapshotter.Prepare(ctx, key, parent, opts...)
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
	p.mu.Lock()
	defer p.mu.Unlock()
	p.started[dir] = activeLayer{key, p.parents[info.Labels[snapshots.LabelSnapshotRef]]}
	return mounts, nil
}

// Commit wakes who waits for the snapshot. When it fails, containerd's Unpacker would wait for them before it says so.
func (p *parallelUnpack) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	err := p.Snapshotter.Commit(ctx, name, key, opts...)
	if err != nil && !errdefs.IsAlreadyExists(err) {
		p.fail(fmt.Errorf("commit snapshot %s: %w", key, err))
		return err //nolint:wrapcheck // a transparent wrapper
	}
	p.committed.Add(digest.Digest(name))
	return err //nolint:wrapcheck // as above
}

// labeller is the content store in which containerd's Unpacker notes a layer's diff ID. When that fails, it gives up the
// next layer, and would wait for those above that one, which wait for it, before it says so.
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

// beforeParent returns the layer that the mounts are of, if it is to be applied before its parent. The lowest has none.
func (p *parallelUnpack) beforeParent(mounts []mount.Mount) (activeLayer, bool) {
	if p == nil {
		return activeLayer{}, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.started[directory(mounts)]
	return l, l.parent != ""
}

// rebase prepares a layer anew on top of its parent, when that is committed. Its labels come as it is committed.
func (p *parallelUnpack) rebase(ctx context.Context, l activeLayer) ([]mount.Mount, error) {
	p.ordered.Store(true)
	// It is not committed here when it was there before.
	if _, err := p.Stat(ctx, l.parent); errdefs.IsNotFound(err) {
		if err := p.committed.Wait(ctx, digest.Digest(l.parent)); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, fmt.Errorf("look for snapshot %s: %w", l.parent, err)
	}
	if err := p.Remove(ctx, l.key); err != nil {
		return nil, fmt.Errorf("remove snapshot %s: %w", l.key, err)
	}
	mounts, err := p.Snapshotter.Prepare(ctx, l.key, l.parent)
	if err != nil {
		return nil, fmt.Errorf("prepare snapshot %s: %w", l.key, err)
	}
	return mounts, nil
}

// directory is where a layer is applied, "" if that is not known.
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

// overlay is a mount of which containerd uses the options only.
func overlay(options ...string) []mount.Mount {
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: options}}
}

// probeMounts are mounts to apply a layer with before its parent.
func probeMounts(dir string) []mount.Mount { return overlay(upperDir+dir, lowerDir+lowerdirProbe) }

// needsParent says whether applying a layer failed because containerd read at the probe; or, which does no harm, because of
// a file of the layer's own with such a name.
func needsParent(err error) bool { return strings.Contains(err.Error(), lowerdirProbe) }

// supportsRebase finds out whether this containerd gives a snapshot its parent at the commit, and whether it reads at the probe
// and says so: by a layer with a file in a directory that it does not list. Whatever goes wrong on the way, layers in order
// are right.
func (u *Unpacker) supportsRebase(ctx context.Context) bool {
	if caps, err := u.Capabilities(ctx, u.SnapshotterName); err != nil || !slices.Contains(caps, snapshots.RebaseCap) {
		return false
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	if w.WriteHeader(&tar.Header{Name: "directory/file", Mode: 0o644}) != nil || w.Close() != nil {
		return false
	}
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(layer.Bytes()), Size: int64(layer.Len())}
	if content.WriteBlob(ctx, u.Content, d.Digest.String(), &layer, d) != nil {
		return false
	}
	key := snapshots.UnpackKeyPrefix + "-tarlift-" + rand.Text()
	mounts, err := u.Snapshotter.Prepare(ctx, key, "")
	if err != nil {
		return false
	}
	defer u.Snapshotter.Remove(context.WithoutCancel(ctx), key) //nolint:errcheck // nothing refers to it
	dir := directory(mounts)
	if dir == "" {
		return false
	}
	if _, err := u.Applier.Apply(ctx, d, probeMounts(dir)); err == nil || !needsParent(err) {
		return false
	}
	_, err = u.Applier.Apply(ctx, d, overlay(upperDir+dir))
	return err == nil
}
