package archive

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// PlatformManifest is the manifest of one platform. Platform is always set. Of descriptors it keeps only media type,
// digest, size and platform: annotations may be large, and a manifest below several names is found several times.
type PlatformManifest struct {
	ocispec.Descriptor
	// Parents are the indexes from the target down, including the target when it is an index.
	Parents []ocispec.Descriptor
}

// Resolver finds the platform manifests of the targets of one archive. It decodes each document once, however often
// it is named, and bounds by MaxRepeatedBytes what all targets cost together.
type Resolver struct {
	Fetch Fetch

	visited   map[digest.Digest]bool
	repeated  int64 // bytes of the documents that were visited again
	indexes   map[document][]ocispec.Descriptor
	platforms map[document]*ocispec.Platform // of manifests and configs, nil if it is not an image's

	// of the target that is resolved now
	found  []PlatformManifest
	visits int
}

// document is the part of a descriptor that decides how its document is read.
type document struct {
	mediaType string
	digest    digest.Digest
	size      int64
}

// once returns what decode makes of a document, from known if it is there.
func once[T any](known map[document]T, d ocispec.Descriptor, decode func() (T, error)) (T, error) {
	key := document{d.MediaType, d.Digest, d.Size}
	if v, ok := known[key]; ok {
		return v, nil
	}
	v, err := decode()
	if err == nil {
		known[key] = v
	}
	return v, err
}

// PlatformManifests returns the manifests below target in the order of their indexes, without attestations and
// artifacts. It reads a manifest only when its descriptor has no platform: then the config has it. Nested indexes, and
// manifests without platform, that are absent are left out: the archive has only other platforms. A target that is an
// artifact has no platform manifests.
func (r *Resolver) PlatformManifests(ctx context.Context, target ocispec.Descriptor) ([]PlatformManifest, error) {
	if r.visited == nil {
		r.visited, r.indexes, r.platforms = map[digest.Digest]bool{}, map[document][]ocispec.Descriptor{}, map[document]*ocispec.Platform{}
	}
	r.found, r.visits = nil, 0
	err := r.visit(ctx, target, nil)
	return r.found, err
}

func (r *Resolver) visit(ctx context.Context, d ocispec.Descriptor, parents []ocispec.Descriptor) error {
	if err := ctx.Err(); err != nil {
		return err //nolint:wrapcheck // the caller's own
	}
	if r.visits++; r.visits > MaxDescriptors {
		return fmt.Errorf("more than %d manifests and indexes: %w", MaxDescriptors, ErrLimit)
	}
	if err := checkDescriptor("target", d); err != nil {
		return err
	}
	if err := r.countVisit(d); err != nil {
		return err
	}
	var err error
	switch {
	case IsIndex(d.MediaType):
		err = r.visitIndex(ctx, d, parents)
	case IsManifest(d.MediaType):
		err = r.visitManifest(ctx, d, parents)
	case len(parents) == 0 && strings.HasPrefix(d.MediaType, mediaTypeDockerSchema1):
		err = fmt.Errorf("%s is a manifest of schema 1 (%q), which containerd does not read, convert the image: %w",
			d.Digest, d.MediaType, ErrInvalid)
	case len(parents) == 0:
		err = fmt.Errorf("%s: mediaType: %.200q is neither an index nor an image: %w", d.Digest, d.MediaType, ErrInvalid)
	}
	if len(parents) > 0 && errors.Is(err, ErrMissing) && !errors.Is(err, ErrTruncated) {
		return nil
	}
	return err
}

// countVisit bounds the bytes of what is visited again: containerd's client reads it each time.
func (r *Resolver) countVisit(d ocispec.Descriptor) error {
	if r.visited[d.Digest] {
		r.repeated += min(max(d.Size, VisitBytes), MaxManifestBytes)
	}
	if r.repeated > MaxRepeatedBytes {
		return fmt.Errorf("manifests and indexes are named again and again, more than %d MiB of them: %w", MaxRepeatedBytes>>20, ErrLimit)
	}
	r.visited[d.Digest] = true
	return nil
}

func (r *Resolver) visitIndex(ctx context.Context, d ocispec.Descriptor, parents []ocispec.Descriptor) error {
	if isReferrer(d) {
		return nil
	}
	if len(parents) >= MaxDepth {
		return fmt.Errorf("index %s: more than %d indexes one in the other: %w", d.Digest, MaxDepth, ErrLimit)
	}
	if slices.ContainsFunc(parents, func(p ocispec.Descriptor) bool { return p.Digest == d.Digest }) {
		return fmt.Errorf("index %s contains itself: %w", d.Digest, ErrInvalid)
	}
	children, err := once(r.indexes, d, func() ([]ocispec.Descriptor, error) { return r.readChildren(ctx, d) })
	if err != nil {
		return err
	}
	below := append(slices.Clone(parents), withoutAnnotations(d))
	for _, child := range children {
		if err := r.visit(ctx, child, below); err != nil {
			return err
		}
	}
	return nil
}

// referrer marks a child of an index that is a referrer, in place of its own annotations.
var referrer = map[string]string{annotationReference: "yes"}

func (r *Resolver) readChildren(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	idx, err := ReadIndex(ctx, r.Fetch, d)
	for i, child := range idx.Manifests {
		idx.Manifests[i] = withoutAnnotations(child)
		if isReferrer(child) {
			idx.Manifests[i].Annotations = referrer
		}
	}
	return idx.Manifests, err
}

func (r *Resolver) visitManifest(ctx context.Context, d ocispec.Descriptor, parents []ocispec.Descriptor) error {
	if isReferrer(d) {
		return nil
	}
	if d.Platform == nil || d.Platform.OS == "" && d.Platform.Architecture == "" {
		p, err := once(r.platforms, d, func() (*ocispec.Platform, error) { return r.readPlatform(ctx, d) })
		if err != nil || p == nil {
			return err
		}
		d.Platform = p
	}
	r.found = append(r.found, PlatformManifest{Descriptor: withoutAnnotations(d), Parents: parents})
	return nil
}

func withoutAnnotations(d ocispec.Descriptor) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size, Platform: d.Platform}
}

// readPlatform returns the platform of a manifest's config, nil if the manifest is not an image's.
func (r *Resolver) readPlatform(ctx context.Context, d ocispec.Descriptor) (*ocispec.Platform, error) {
	m, err := ReadReferrer(ctx, r.Fetch, d)
	if err != nil {
		return nil, err
	}
	if isArtifact(m.ArtifactType) || !isConfig(m.Config.MediaType) {
		return nil, nil //nolint:nilnil // not an image, and no error
	}
	return once(r.platforms, m.Config, func() (*ocispec.Platform, error) {
		return read(ctx, r.Fetch, "config", m.Config, MaxConfigBytes, decodePlatform)
	})
}

// decodePlatform returns the platform of a config that alone has it, nil of an attestation's.
func decodePlatform(data []byte, _ string) (*ocispec.Platform, error) {
	c, err := decodeOwnConfig(data)
	p := platforms.Normalize(c.Platform)
	if err != nil || p.OS == unknown || p.Architecture == unknown {
		return nil, err
	}
	return &p, nil
}
