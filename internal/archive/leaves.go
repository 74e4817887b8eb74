package archive

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Fetch gives a metadata blob. d.Size is within this package's bounds. The error
// is ErrMissing when the blob is nowhere.
type Fetch func(ctx context.Context, d ocispec.Descriptor) ([]byte, error)

// Leaf is a platform's manifest. Platform is always set. Of descriptors there are only media type, digest, size and
// platform: annotations may be large, and what is below several names is there several times.
type Leaf struct {
	ocispec.Descriptor
	// Parents are the indexes from the target down, the target included when it is one.
	Parents []ocispec.Descriptor
}

// Leaves gives the manifests below target in the order of their indexes, without
// attestations and artifacts. A manifest is read only when its descriptor has no
// platform: then its config tells. Below target, nested indexes and manifests
// without platform that are absent are left out: the archive is of other
// platforms. With an artifact for target there are none.
func Leaves(ctx context.Context, fetch Fetch, target ocispec.Descriptor) ([]Leaf, error) {
	return (&Walk{Fetch: fetch}).Leaves(ctx, target)
}

// Walk gives the leaves of several targets of one archive, and bounds by MaxVisits what they cost together. It decodes
// each document once, however often it is named.
type Walk struct {
	Fetch    Fetch
	visits   int
	seen     map[digest.Digest]bool
	repeated int64 // bytes of what was visited again

	indexes   map[document][]ocispec.Descriptor
	manifests map[document]*ocispec.Platform
	configs   map[document]*ocispec.Platform
}

// document is what of a descriptor decides how a document is read.
type document struct {
	mediaType string
	digest    digest.Digest
	size      int64
}

// once gives what decode makes of a document, from known if it is there.
func once[T any](known *map[document]T, d ocispec.Descriptor, decode func() (T, error)) (T, error) {
	key := document{d.MediaType, d.Digest, d.Size}
	v, ok := (*known)[key]
	if ok {
		return v, nil
	}
	v, err := decode()
	if err != nil {
		return v, err
	}
	if *known == nil {
		*known = map[document]T{}
	}
	(*known)[key] = v
	return v, nil
}

// Leaves is as the function of this name.
func (w *Walk) Leaves(ctx context.Context, target ocispec.Descriptor) ([]Leaf, error) {
	one := walker{Walk: w}
	err := one.visit(ctx, target, nil)
	return one.leaves, err
}

// walker is below one target.
type walker struct {
	*Walk
	leaves  []Leaf
	visited int
}

func (w *walker) visit(ctx context.Context, d ocispec.Descriptor, parents []ocispec.Descriptor) error {
	if err := ctx.Err(); err != nil {
		return err //nolint:wrapcheck // the caller's own
	}
	if w.visited++; w.visited > MaxDescriptors {
		return fmt.Errorf("more than %d manifests and indexes: %w", MaxDescriptors, ErrLimit)
	}
	if w.visits++; w.visits > MaxVisits {
		return fmt.Errorf("more than %d manifests and indexes below all names: %w", MaxVisits, ErrLimit)
	}
	if err := checkDescriptor("target", d); err != nil {
		return err
	}
	if err := w.repeat(d); err != nil {
		return err
	}
	var err error
	switch {
	case isIndex(d.MediaType):
		err = w.visitIndex(ctx, d, parents)
	case isManifest(d.MediaType):
		err = w.visitManifest(ctx, d, parents)
	case len(parents) == 0 && isSchema1(d.MediaType):
		err = fmt.Errorf("%s is a manifest of schema 1 (%q), which containerd does not read, convert the image: %w", d.Digest, d.MediaType, ErrInvalid)
	case len(parents) == 0:
		err = fmt.Errorf("%s: mediaType: %.200q is neither an index nor an image: %w", d.Digest, d.MediaType, ErrInvalid)
	}
	if len(parents) > 0 && errors.Is(err, ErrMissing) && !errors.Is(err, ErrTruncated) {
		return nil
	}
	return err
}

// repeat counts what is named again: containerd's client, which walks there too, reads it each time.
func (w *Walk) repeat(d ocispec.Descriptor) error {
	if w.seen == nil {
		w.seen = map[digest.Digest]bool{}
	}
	if w.seen[d.Digest] {
		w.repeated += min(d.Size, MaxManifestBytes)
	}
	if w.repeated > MaxRepeatedBytes {
		return fmt.Errorf("manifests and indexes are named again and again, more than %d MiB of them: %w", MaxRepeatedBytes>>20, ErrLimit)
	}
	w.seen[d.Digest] = true
	return nil
}

func (w *walker) visitIndex(ctx context.Context, d ocispec.Descriptor, parents []ocispec.Descriptor) error {
	if isReferrer(d) {
		return nil
	}
	if len(parents) >= MaxDepth {
		return fmt.Errorf("index %s: more than %d indexes one in the other: %w", d.Digest, MaxDepth, ErrLimit)
	}
	if slices.ContainsFunc(parents, func(p ocispec.Descriptor) bool { return p.Digest == d.Digest }) {
		return fmt.Errorf("index %s contains itself: %w", d.Digest, ErrInvalid)
	}
	children, err := once(&w.indexes, d, func() ([]ocispec.Descriptor, error) { return w.readIndex(ctx, d) })
	if err != nil {
		return err
	}
	below := append(slices.Clone(parents), bare(d))
	for _, child := range children {
		if err := w.visit(ctx, child, below); err != nil {
			return err
		}
	}
	return nil
}

// readIndex keeps of a child what a walk looks at.
func (w *Walk) readIndex(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	data, err := fetchBounded(ctx, w.Fetch, d, MaxManifestBytes)
	if err != nil {
		return nil, err
	}
	idx, err := decodeIndex(data, d.MediaType)
	if err != nil {
		return nil, fmt.Errorf("read index %s: %w", d.Digest, err)
	}
	for i, child := range idx.Manifests {
		idx.Manifests[i] = bare(child)
		if isReferrer(child) {
			idx.Manifests[i].Annotations = referrer
		}
	}
	return idx.Manifests, nil
}

// referrer marks one whose own marks are not kept.
var referrer = map[string]string{annotationReference: "yes"}

func (w *walker) visitManifest(ctx context.Context, d ocispec.Descriptor, parents []ocispec.Descriptor) error {
	if isReferrer(d) {
		return nil
	}
	if d.Platform == nil || d.Platform.OS == "" && d.Platform.Architecture == "" {
		p, err := w.platform(ctx, d)
		if err != nil || p == nil {
			return err
		}
		d.Platform = p
	}
	w.leaves = append(w.leaves, Leaf{Descriptor: bare(d), Parents: parents})
	return nil
}

// bare is what is kept of a descriptor.
func bare(d ocispec.Descriptor) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size, Platform: d.Platform}
}

// platform is that of a manifest's config; nil means that it is no image.
func (w *Walk) platform(ctx context.Context, d ocispec.Descriptor) (*ocispec.Platform, error) {
	return once(&w.manifests, d, func() (*ocispec.Platform, error) {
		data, err := fetchBounded(ctx, w.Fetch, d, MaxManifestBytes)
		if err != nil {
			return nil, err
		}
		m, err := decodeManifest(data, d.MediaType)
		if err != nil {
			return nil, fmt.Errorf("read manifest %s: %w", d.Digest, err)
		}
		if isArtifact(m.ArtifactType) || !isConfig(m.Config.MediaType) {
			return nil, nil //nolint:nilnil // no image, no fault
		}
		return once(&w.configs, m.Config, func() (*ocispec.Platform, error) { return w.readPlatform(ctx, m.Config) })
	})
}

func (w *Walk) readPlatform(ctx context.Context, d ocispec.Descriptor) (*ocispec.Platform, error) {
	data, err := fetchBounded(ctx, w.Fetch, d, MaxConfigBytes)
	if err != nil {
		return nil, err
	}
	c, err := decodeConfig(data)
	if err == nil {
		err = c.tellsPlatform()
	}
	if err != nil {
		return nil, fmt.Errorf("read config %s: %w", d.Digest, err)
	}
	p := platforms.Normalize(c.Platform)
	if p.OS == unknown || p.Architecture == unknown {
		return nil, nil //nolint:nilnil // an attestation
	}
	return &p, nil
}

// Marks of manifests that say something about an image instead of being one.
const (
	unknown = "unknown"
	// annotationReference is buildkit's (docs/attestations/attestation-storage.md).
	annotationReference = "vnd.docker.reference.type"
	// annotationSubject is containerd's images.AnnotationManifestSubject: `ctr
	// images export` puts referrers beside the images.
	annotationSubject = "io.containerd.manifest.subject"
)

// isArtifact: go-containerregistry gives images their config's media type for artifactType.
func isArtifact(artifactType string) bool {
	return artifactType != "" && !isConfig(artifactType)
}

func isReferrer(d ocispec.Descriptor) bool {
	return isArtifact(d.ArtifactType) || d.Annotations[annotationReference] != "" || d.Annotations[annotationSubject] != "" ||
		d.Platform != nil && (d.Platform.OS == unknown || d.Platform.Architecture == unknown)
}

// ReadManifest fetches an image's manifest and checks it: only media types that
// containerd can unpack, and at most MaxLayers layers.
func ReadManifest(ctx context.Context, fetch Fetch, d ocispec.Descriptor) (ocispec.Manifest, error) {
	data, err := fetchBounded(ctx, fetch, d, MaxManifestBytes)
	if err != nil {
		return ocispec.Manifest{}, err
	}
	m, err := decodeManifest(data, d.MediaType)
	if err == nil && !isConfig(m.Config.MediaType) {
		err = fmt.Errorf("config.mediaType: %.200q is no image's: %w", m.Config.MediaType, ErrInvalid)
	}
	if err == nil && m.Config.Size > MaxConfigBytes {
		err = fmt.Errorf("config.size: %d, at most %d: %w", m.Config.Size, MaxConfigBytes, ErrLimit)
	}
	for i, l := range m.Layers {
		if err == nil && !isLayer(l.MediaType) {
			err = fmt.Errorf("layers[%d].mediaType: %.200q is not known: %w", i, l.MediaType, ErrInvalid)
		}
	}
	if err != nil {
		return m, fmt.Errorf("read manifest %s: %w", d.Digest, err)
	}
	return m, nil
}

// ReadConfig fetches the config of an image for a platform and checks that it fits: the platform must be the same, and
// each layer must have its diffID, which are returned.
func ReadConfig(ctx context.Context, fetch Fetch, m ocispec.Manifest, platform ocispec.Platform) ([]digest.Digest, error) {
	data, err := fetchBounded(ctx, fetch, m.Config, MaxConfigBytes)
	if err != nil {
		return nil, err
	}
	c, err := decodeConfig(data)
	if err == nil {
		err = c.fits(m, platform)
	}
	if err != nil {
		return nil, fmt.Errorf("read config %s: %w", m.Config.Digest, err)
	}
	return c.RootFS.DiffIDs, nil
}

func fetchBounded(ctx context.Context, fetch Fetch, d ocispec.Descriptor, limit int64) ([]byte, error) {
	if d.Size > limit {
		return nil, fmt.Errorf("blob %s: size: %d in its descriptor, at most %d bytes are read: %w", d.Digest, d.Size, limit, ErrLimit)
	}
	return fetch(ctx, d)
}
