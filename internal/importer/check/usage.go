package check

import (
	"context"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/importer/daemon"
)

// Usage is what of images is in use in a namespace.
type Usage struct {
	checker   Checker
	names     map[string]bool // that containers were made with
	snapshots map[string]bool // that theirs, and those of CRI's volumes, stand on
}

// Usage examines those snapshotters that containers use, and into these.
func (c Checker) Usage(ctx context.Context, snapshotters ...string) (*Usage, error) {
	u := &Usage{c, map[string]bool{}, map[string]bool{}}
	list, err := c.Containers.List(ctx)
	if err != nil {
		return nil, daemon.Error("list containers", err)
	}
	for _, container := range list {
		u.names[container.Image] = true
		if container.SnapshotKey != "" {
			snapshotters = append(snapshotters, container.Snapshotter)
		}
	}
	slices.Sort(snapshotters)
	for _, name := range slices.Compact(snapshotters) {
		if name == "" {
			continue
		}
		err := c.Snapshotter(name).Walk(ctx, func(_ context.Context, info snapshots.Info) error {
			if info.Kind != snapshots.KindCommitted && !strings.HasPrefix(info.Name, snapshots.UnpackKeyPrefix+"-") {
				// With a user namespace it stands on a copy of the image's, <chain>-<uid>-<gid>.
				chain, _, _ := strings.Cut(info.Parent, "-")
				u.snapshots[chain] = true
			}
			return nil
		})
		if err != nil && !errdefs.IsInvalidArgument(err) { // the snapshotter is not there any more
			return nil, daemon.Error("list snapshots of "+name, err)
		}
	}
	return u, nil
}

// Uses says whether a container uses an image, by one of these names of it, its digest, its id, or its snapshots.
func (u *Usage) Uses(ctx context.Context, target ocispec.Descriptor, names []string) (bool, error) {
	var config, chain string
	m, _, err := u.checker.Manifest(ctx, target)
	if err == nil {
		config = m.Config.Digest.String()
		var diffIDs []digest.Digest
		if diffIDs, err = u.checker.DiffIDs(ctx, m.Config); len(diffIDs) > 0 {
			chain = identity.ChainID(diffIDs).String()
		}
	}
	if err != nil && !errdefs.IsNotFound(err) { // what is not there any more cannot be distinguished
		return false, err
	}
	for name := range u.names {
		if strings.HasSuffix(name, "@"+target.Digest.String()) || config != "" && name == config || slices.Contains(names, name) {
			return true, nil
		}
	}
	return chain != "" && u.snapshots[chain], nil
}
