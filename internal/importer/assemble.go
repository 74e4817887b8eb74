package importer

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/platforms"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/importer/daemon"
)

// assemble lets containerd's own importer build the images from the blobs that are in the store: it links the
// blobs with the labels that its garbage collection follows. It is given no names, since it would publish them at
// once, and returns without error for an image that lacks layers. So every image is checked then.
func (a *attempt) assemble(ctx context.Context, p *Plan) error {
	a.progress.phase(PhaseImporting)
	layout, err := minimalLayout(p)
	if err != nil {
		return err
	}
	c, err := client.New("", client.WithServices(
		client.WithContentStore(a.content),
		client.WithImageStore(a.importer.services.images),
		client.WithLeasesService(a.importer.services.leases),
	), client.WithDefaultNamespace(a.importer.options.Namespace))
	if err != nil {
		return daemon.Error("make client", err)
	}
	return a.session.Do(ctx, func(ctx context.Context) error { // else Import makes a lease of its own
		// Manifests that the plan did not choose may be absent although their platform matches, for example the
		// second of two alike; what was chosen is checked below.
		_, err := c.Import(ctx, bytes.NewReader(layout), client.WithImportPlatform(chosenPlatforms{p}), client.WithSkipMissing())
		return daemon.Error("import", err)
	})
}

// chosenPlatforms matches exactly the platforms that a plan chose. platforms.Only would also want lesser ones, for example 386
// on amd64, whose blobs are not there.
type chosenPlatforms struct{ *Plan }

func (c chosenPlatforms) Match(p ocispec.Platform) bool {
	return slices.ContainsFunc(c.Images, func(img PlannedImage) bool {
		q, err := platforms.Parse(img.Platform)
		return err == nil && platforms.FormatAll(q) == platforms.FormatAll(platforms.Normalize(p))
	})
}

func (chosenPlatforms) Less(ocispec.Platform, ocispec.Platform) bool { return false }

// minimalLayout is an OCI archive of nothing but an index of the chosen images, each once and without a name.
func minimalLayout(p *Plan) ([]byte, error) {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, img := range p.Images {
		if !slices.ContainsFunc(index.Manifests, func(d ocispec.Descriptor) bool { return d.Digest == img.Digest }) {
			index.Manifests = append(index.Manifests, img.Target)
		}
	}
	indexJSON, err := json.Marshal(index)
	if err != nil {
		return nil, fmt.Errorf("encode index.json: %w", err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range []struct {
		name string
		data []byte
	}{
		{ocispec.ImageLayoutFile, []byte(`{"imageLayoutVersion":"` + ocispec.ImageLayoutVersion + `"}`)},
		{ocispec.ImageIndexFile, indexJSON},
	} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: m.name, Size: int64(len(m.data)), Mode: 0o644}); err != nil {
			return nil, fmt.Errorf("write %s: %w", m.name, err)
		}
		if _, err := w.Write(m.data); err != nil {
			return nil, fmt.Errorf("write %s: %w", m.name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("end the layout: %w", err)
	}
	return b.Bytes(), nil
}
