package importer

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/importer/daemon"
)

// assemble links each image's blobs with the labels that containerd's garbage collection follows. containerd's own handlers do
// it, as in a pull and in Client.Import. Manifests that the plan did not choose may be absent although their platform matches,
// for example the second of two alike; what was chosen is verified afterwards.
func (a *attempt) assemble(ctx context.Context, p *Plan) error {
	a.progress.phase(PhaseImporting)
	targets := map[digest.Digest]ocispec.Descriptor{}
	for _, img := range p.Images {
		targets[img.Digest] = img.Target
	}
	children := images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		all, err := images.Children(ctx, a.content, d)
		if errdefs.IsNotFound(err) {
			return nil, images.ErrSkipDesc
		}
		return all, err //nolint:wrapcheck // it names the blob
	})
	link := images.SetChildrenLabels(a.content, images.FilterPlatforms(children, p.Matcher))
	return daemon.Error("link the images' blobs", images.Walk(ctx, link, slices.Collect(maps.Values(targets))...))
}

// verify checks every image the way the CRI will look at it: the best manifest for this platform, and nothing of it missing.
func (a *attempt) verify(ctx context.Context, p *Plan) error {
	a.progress.phase(PhaseVerifying)
	for _, img := range p.Images {
		missing, err := a.importer.check.Missing(ctx, img.Target)
		if err != nil {
			return err
		}
		if len(missing) > 0 {
			return fmt.Errorf("image %q lacks %s: %w", img.Name, missing[0].Digest, ErrContentIncomplete)
		}
	}
	return nil
}
