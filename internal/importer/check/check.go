// Package check tells whether an image is whole on this node: its content, and the snapshots that it was unpacked into.
// It changes nothing.
package check

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/importer/daemon"
)

// Checker examines images of one containerd, as a node of one platform does.
type Checker struct {
	Content     content.Store
	Containers  containers.Store
	Platform    ocispec.Platform
	Snapshotter func(name string) snapshots.Snapshotter
}

// Missing returns what an image lacks on this platform.
func (c Checker) Missing(ctx context.Context, target ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	_, _, _, missing, err := images.Check(ctx, c.Content, target, platforms.Only(c.Platform))
	return missing, daemon.Error("check image "+target.Digest.String(), err)
}

// Lost says in words what an image lacks that was unpacked into a snapshotter, empty for none. It is empty for a whole one.
func (c Checker) Lost(ctx context.Context, target ocispec.Descriptor, snapshotter string) (string, error) {
	missing, err := c.Missing(ctx, target)
	if err != nil {
		return "", err
	}
	m, manifest, err := c.Manifest(ctx, target)
	switch noConfig := slices.ContainsFunc(missing, func(d ocispec.Descriptor) bool { return d.Digest == m.Config.Digest }); {
	case errdefs.IsNotFound(err) && len(missing) == 0: // it has gone since
		return "lacks " + target.Digest.String(), nil
	case errdefs.IsNotFound(err), noConfig:
		return "lacks " + missing[0].Digest.String(), nil
	case err != nil:
		return "", err
	}
	unpacked := false
	if snapshotter != "" {
		if unpacked, err = c.unpacked(ctx, m.Config, snapshotter); err != nil || !unpacked {
			return "is not unpacked", err
		}
	}
	for _, d := range missing {
		held, err := c.holds(ctx, manifest, d.Digest)
		if err != nil || held || !unpacked {
			return "lacks " + d.Digest.String(), err
		}
	}
	return "", nil
}

// Manifest is the one that the CRI would choose of an image, and its digest.
func (c Checker) Manifest(ctx context.Context, target ocispec.Descriptor) (ocispec.Manifest, digest.Digest, error) {
	p := c.provider()
	m, err := images.Manifest(ctx, p, target, platforms.Only(c.Platform))
	return m, p.Manifest, daemon.Error("read manifest of "+target.Digest.String(), err)
}

// DiffIDs are those of an image's layers.
func (c Checker) DiffIDs(ctx context.Context, config ocispec.Descriptor) ([]digest.Digest, error) {
	diffIDs, err := images.RootFS(ctx, c.provider(), config)
	return diffIDs, daemon.Error("read config "+config.Digest.String(), err)
}

// Provider gives metadata to containerd's own code, and keeps which manifest that read last.
type Provider struct {
	Fetch    func(context.Context, ocispec.Descriptor) ([]byte, error)
	Manifest digest.Digest
}

// ReaderAt implements content.Provider.
func (p *Provider) ReaderAt(ctx context.Context, d ocispec.Descriptor) (content.ReaderAt, error) {
	if images.IsManifestType(d.MediaType) {
		p.Manifest = d.Digest
	}
	data, err := p.Fetch(ctx, d)
	return readerAt{bytes.NewReader(data)}, err
}

func (c Checker) provider() *Provider {
	return &Provider{Fetch: func(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
		return ReadBlob(ctx, c.Content, d.Digest, archive.MaxConfigBytes)
	}}
}

type readerAt struct{ *bytes.Reader }

func (readerAt) Close() error { return nil }

// ReadBlob reads a blob of at most limit bytes. Errors: archive.ErrLimit, and those of package daemon.
func ReadBlob(ctx context.Context, store content.Provider, d digest.Digest, limit int64) ([]byte, error) {
	ra, err := store.ReaderAt(ctx, ocispec.Descriptor{Digest: d})
	if err != nil {
		return nil, daemon.Error("read blob "+d.String(), err)
	}
	defer ra.Close()
	if ra.Size() > limit {
		return nil, fmt.Errorf("blob %s has %d bytes, at most %d are read: %w", d, ra.Size(), limit, archive.ErrLimit)
	}
	var b bytes.Buffer
	_, err = io.Copy(&b, content.NewReader(ra))
	return b.Bytes(), daemon.Error("read blob "+d.String(), err)
}

// holds says whether a manifest keeps a layer from being collected. Nodes that discard unpacked layers take that away
// before the layer goes; a layer that is gone although it was held was lost.
func (c Checker) holds(ctx context.Context, manifest, layer digest.Digest) (bool, error) {
	info, err := c.Content.Info(ctx, manifest)
	if err != nil {
		return false, daemon.Error("look up manifest "+manifest.String(), err)
	}
	for k, v := range info.Labels {
		if strings.HasPrefix(k, "containerd.io/gc.ref.content.") && v == layer.String() {
			return true, nil
		}
	}
	return false, nil
}

// unpacked says whether the snapshots of an image are there.
func (c Checker) unpacked(ctx context.Context, config ocispec.Descriptor, snapshotter string) (bool, error) {
	diffIDs, err := c.DiffIDs(ctx, config)
	if err != nil || len(diffIDs) == 0 {
		return true, err
	}
	_, err = c.Snapshotter(snapshotter).Stat(ctx, identity.ChainID(diffIDs).String())
	if errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) { // the snapshotter is not there any more
		return false, nil
	}
	if err != nil {
		return false, daemon.Error("look up snapshot", err)
	}
	return true, nil
}

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
