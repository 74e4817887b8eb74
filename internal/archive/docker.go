package archive

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"path"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// dockerImage is an entry of manifest.json (moby, image/spec: "Combined Image
// JSON + Filesystem Changeset Format").
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// decodeDocker makes a manifest of each image, and an index.json of all: byte for byte those that containerd makes
// (core/images/archive/importer.go), but never with a layer that is compressed or replaced by one in the store, so that
// the digests depend on the archive alone.
func (l *Layout) decodeDocker(ctx context.Context) error {
	l.Format = FormatDocker
	data, err := l.readFile(ctx, dockerManifestFile, MaxManifestBytes)
	if err != nil {
		return err
	}
	images, err := decodeJSON[[]dockerImage](data)
	if err == nil && len(images) == 0 {
		err = fmt.Errorf("no images: %w", ErrInvalid)
	}
	if err == nil && len(images) > MaxDescriptors {
		err = fmt.Errorf("more than %d images: %w", MaxDescriptors, ErrLimit)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", dockerManifestFile, err)
	}
	for i, img := range images {
		if err := l.decodeDockerImage(ctx, img); err != nil {
			return fmt.Errorf("read %s: image %d: %w", dockerManifestFile, i, err)
		}
		for len(l.images) < len(l.Manifests) {
			l.images = append(l.images, i)
		}
	}
	l.Index, err = json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: l.Manifests})
	if err != nil {
		return fmt.Errorf("make index.json: %w", err)
	}
	return l.countMetadata(ctx, int64(len(l.Index)))
}

func (l *Layout) decodeDockerImage(ctx context.Context, img dockerImage) error {
	config, cfg, err := l.dockerConfig(ctx, img)
	if err != nil {
		return err
	}
	layers := make([]ocispec.Descriptor, len(img.Layers))
	for i, name := range img.Layers {
		if layers[i], err = l.dockerLayer(ctx, name, cfg.RootFS.DiffIDs[i]); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
	}
	d, err := l.makeManifest(ctx, config, layers)
	if err != nil {
		return err
	}
	p := platforms.Normalize(cfg.Platform)
	d.Platform = &p
	if len(img.RepoTags) == 0 {
		l.Manifests = append(l.Manifests, d)
	}
	for _, tag := range img.RepoTags {
		name, err := parseRef(tag)
		if err != nil {
			return err
		}
		ref := name.String() // what containerd makes of a name without tag
		if t, ok := name.(reference.Tagged); ok {
			ref = t.Tag()
		}
		d := d
		d.Annotations = map[string]string{AnnotationImageName: name.String(), ocispec.AnnotationRefName: ref}
		l.Manifests = append(l.Manifests, d)
	}
	if len(l.Manifests) > MaxNames {
		return fmt.Errorf("more than %d names: %w", MaxNames, ErrLimit)
	}
	return nil
}

// dockerConfig reads an image's config.
func (l *Layout) dockerConfig(ctx context.Context, img dockerImage) (d ocispec.Descriptor, cfg config, err error) {
	name, err := l.member(img.Config)
	if err != nil {
		return d, cfg, fmt.Errorf("config: %w", err)
	}
	data, err := l.readFile(ctx, name, MaxConfigBytes)
	if err != nil {
		return d, cfg, err
	}
	cfg, err = decodeOwnConfig(data)
	if n := len(cfg.RootFS.DiffIDs); err == nil && n != len(img.Layers) {
		err = fmt.Errorf("rootfs.diff_ids: %d of them for %d layers: %w", n, len(img.Layers), ErrInvalid)
	}
	if err != nil {
		return d, cfg, fmt.Errorf("read %.200q: %w", name, err)
	}
	d = ocispec.Descriptor{MediaType: mediaTypeDockerConfig, Digest: digest.FromBytes(data), Size: int64(len(data))}
	return d, cfg, l.addBlob(d, name)
}

func (l *Layout) dockerLayer(ctx context.Context, file string, diffID digest.Digest) (ocispec.Descriptor, error) {
	// containerd names blobs by SHA-256 where no descriptor names them.
	if err := diffID.Validate(); err != nil || diffID.Algorithm() != digest.Canonical {
		return ocispec.Descriptor{}, fmt.Errorf("diff_id %.200q: %w", diffID, ErrInvalid)
	}
	name, err := l.member(file)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d, err := l.tree.Layer(ctx, name, diffID)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return d, l.addBlob(d, name)
}

// addBlob records which member a blob is. Only the first member of a digest is read: a second one of another size shows
// that one of their names is wrong.
func (l *Layout) addBlob(d ocispec.Descriptor, name string) error {
	if m, ok := l.members[d.Digest]; ok && m.size != d.Size {
		return fmt.Errorf("members %.200q of %d bytes and %.200q of %d cannot both be %s: %w",
			m.name, m.size, name, d.Size, d.Digest, ErrDigestMismatch)
	}
	if _, ok := l.members[d.Digest]; !ok {
		l.members[d.Digest] = blobMember{name, d.Size}
	}
	return nil
}

// member checks a path of manifest.json.
func (l *Layout) member(p string) (string, error) {
	name := path.Clean(p)
	if p == "" || !fs.ValidPath(name) {
		return "", fmt.Errorf("path %.200q: %w", p, ErrInvalid)
	}
	if !l.tree.has(name) {
		return "", fmt.Errorf("member %.200q: %w", name, l.orTruncated(ErrMissing))
	}
	return name, nil
}

// makeManifest makes a manifest whose fields are in containerd's order.
func (l *Layout) makeManifest(ctx context.Context, config ocispec.Descriptor, layers []ocispec.Descriptor) (ocispec.Descriptor, error) {
	data, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: mediaTypeDockerManifest, Config: config, Layers: layers,
	})
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("make manifest: %w", err)
	}
	d := ocispec.Descriptor{MediaType: mediaTypeDockerManifest, Digest: digest.FromBytes(data), Size: int64(len(data))}
	if _, ok := l.inMemory(d.Digest); ok {
		return d, nil
	}
	return d, l.keep(ctx, d.Digest, data)
}
