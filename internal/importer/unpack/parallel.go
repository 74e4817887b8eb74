package unpack

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"strings"

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
// So lowerdir is a probe: something that is no directory. containerd fails when it reads there, and what is not committed of
// the image is applied again in order. A layer that was applied before its parent had no need of it.
const (
	overlayfs     = "overlayfs"
	lowerdirProbe = "/dev/null"
)

// errNeedsParent is an image with a layer that has to be applied on top of its parent.
var errNeedsParent = errors.New("a layer needs the one below it")

// needsParent says whether applying a layer failed because containerd read at the probe; or, which does no harm, because of
// a file of the layer's own with such a name.
func needsParent(err error) bool { return strings.Contains(err.Error(), lowerdirProbe) }

// probeMounts are mounts to apply a layer with before its parent. containerd's Unpacker gives an overlay without lowerdir for
// it, and another mount for the lowest layer, which has no parent.
func probeMounts(mounts []mount.Mount) []mount.Mount {
	if len(mounts) != 1 || mounts[0].Type != "overlay" {
		return mounts
	}
	m := mounts[0]
	m.Options = append(slices.Clone(m.Options), "lowerdir="+lowerdirProbe)
	return []mount.Mount{m}
}

// inParallel says whether an image's layers are applied in parallel: where more than one is missing, and it can be done.
func (u *Unpacker) inParallel(img *Image) bool {
	n := len(img.DiffIDs)
	if n < 2 || u.SnapshotterName != overlayfs {
		return false
	}
	_, err := u.Snapshotter.Stat(u.ctx, identity.ChainID(slices.Clone(img.DiffIDs[:n-1])).String())
	return errdefs.IsNotFound(err) && u.parallel()
}

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
	if len(mounts) != 1 || mounts[0].Type != "bind" {
		return false
	}
	overlay := []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{"upperdir=" + mounts[0].Source}}}
	if _, err := u.Applier.Apply(ctx, d, probeMounts(overlay)); err == nil || !needsParent(err) {
		return false
	}
	_, err = u.Applier.Apply(ctx, d, overlay)
	return err == nil
}
