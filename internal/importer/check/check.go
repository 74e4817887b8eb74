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
	if err != nil {
		return nil, daemon.Error("check image "+target.Digest.String(), err)
	}
	return missing, nil
}

// Lost says in words what an image lacks that was unpacked into a snapshotter, empty for none. It is empty for a whole one.
func (c Checker) Lost(ctx context.Context, target ocispec.Descriptor, snapshotter string) (string, error) {
	missing, err := c.Missing(ctx, target)
	if err != nil {
		return "", err
	}
	m, manifest, err := c.Manifest(ctx, target)
	if errdefs.IsNotFound(err) && len(missing) == 0 { // it has gone since
		return "lacks " + target.Digest.String(), nil
	}
	if errdefs.IsNotFound(err) || slices.ContainsFunc(missing, func(d ocispec.Descriptor) bool { return d.Digest == m.Config.Digest }) {
		return "lacks " + missing[0].Digest.String(), nil
	}
	if err != nil {
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
	if err != nil {
		return m, "", daemon.Error("read manifest of "+target.Digest.String(), err)
	}
	return m, p.Manifest, nil
}

// DiffIDs are those of an image's layers.
func (c Checker) DiffIDs(ctx context.Context, config ocispec.Descriptor) ([]digest.Digest, error) {
	diffIDs, err := images.RootFS(ctx, c.provider(), config)
	if err != nil {
		return nil, daemon.Error("read config "+config.Digest.String(), err)
	}
	return diffIDs, nil
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
	if _, err := io.Copy(&b, content.NewReader(ra)); err != nil {
		return nil, daemon.Error("read blob "+d.String(), err)
	}
	return b.Bytes(), nil
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
