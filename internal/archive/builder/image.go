package builder

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Docker's schema 2 media types.
const (
	dockerIndex     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerManifest  = "application/vnd.docker.distribution.manifest.v2+json"
	dockerConfig    = "application/vnd.docker.container.image.v1+json"
	dockerLayer     = "application/vnd.docker.image.rootfs.diff.tar"
	dockerLayerGzip = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	dockerLayerZstd = "application/vnd.docker.image.rootfs.diff.tar.zstd"
)

// image is an image with the bytes of its blobs.
type image struct {
	BuiltImage
	platforms []platformImage
	// blobs are those present in the archive, leaves first, maybe with duplicates.
	blobs []blob
}

type platformImage struct {
	manifest, config blob
	layers           []layer
}

func makeImage(s *spool, img Image, f Format) (image, error) {
	if len(img.Platforms) == 0 {
		return image{}, errors.New("no platforms")
	}
	if f != OCI && f != Hybrid {
		img.Platforms, img.DockerTypes = img.Platforms[:1], true
	}
	out := image{BuiltImage: BuiltImage{Names: img.Names}}
	var children []ocispec.Descriptor
	for _, p := range img.Platforms {
		made, err := makePlatform(s, p, img.DockerTypes, f)
		if err != nil {
			return image{}, err
		}
		out.platforms = append(out.platforms, made)
		b := made.built(img.DockerTypes, f)
		out.Platforms = append(out.Platforms, b)
		child := b.Manifest
		if !img.NoPlatform {
			child.Platform = &p.Platform
		}
		children = append(children, child)
		if !p.Absent {
			out.blobs = append(out.blobs, made.blobs()...)
		}
	}
	if img.Attestations {
		if err := out.attest(&children, img.AttestationsAbsent); err != nil {
			return image{}, err
		}
	}
	out.Target = out.Platforms[0].Manifest
	if len(children) == 1 && !img.Index && img.Nested == 0 {
		return out, nil
	}
	for range img.Nested + 1 {
		if err := out.addIndex(children, img.DockerTypes); err != nil {
			return image{}, err
		}
		children = []ocispec.Descriptor{out.Target}
	}
	slices.Reverse(out.Indexes)
	return out, nil
}

func (i *image) addIndex(children []ocispec.Descriptor, docker bool) error {
	idx := ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: pick(docker, dockerIndex, ocispec.MediaTypeImageIndex), Manifests: children,
	}
	b, err := jsonBlob(idx)
	if err != nil {
		return err
	}
	i.Target = b.descriptor(idx.MediaType)
	i.Indexes = append(i.Indexes, i.Target)
	i.blobs = append(i.blobs, b)
	return nil
}

// attest adds what buildkit's provenance adds: one manifest a platform, whose
// only layer is an in-toto statement.
func (i *image) attest(children *[]ocispec.Descriptor, absent bool) error {
	for _, p := range i.Platforms {
		statement, err := jsonBlob(map[string]string{"_type": "https://in-toto.io/Statement/v0.1", "subject": p.Manifest.Digest.String()})
		if err != nil {
			return err
		}
		config, err := jsonBlob(ocispec.Image{
			Platform: ocispec.Platform{OS: "unknown", Architecture: "unknown"},
			RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{statement.digest}},
		})
		if err != nil {
			return err
		}
		manifest, err := jsonBlob(ocispec.Manifest{
			Versioned: specs.Versioned{SchemaVersion: 2},
			MediaType: ocispec.MediaTypeImageManifest,
			Config:    config.descriptor(ocispec.MediaTypeImageConfig),
			Layers:    []ocispec.Descriptor{statement.descriptor("application/vnd.in-toto+json")},
		})
		if err != nil {
			return err
		}
		d := manifest.descriptor(ocispec.MediaTypeImageManifest)
		d.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
		d.Annotations = map[string]string{
			"vnd.docker.reference.type":   "attestation-manifest",
			"vnd.docker.reference.digest": p.Manifest.Digest.String(),
		}
		*children = append(*children, d)
		i.Attestations = append(i.Attestations, d)
		if !absent {
			i.blobs = append(i.blobs, statement, config, manifest)
		}
	}
	return nil
}

func makePlatform(s *spool, p PlatformImage, docker bool, f Format) (platformImage, error) {
	var out platformImage
	epoch := time.Unix(0, 0).UTC()
	cfg := ocispec.Image{
		Created: &epoch, Platform: p.Platform, Config: p.Config, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{}},
	}
	for i, l := range p.Layers {
		made, err := makeLayer(s, l)
		if err != nil {
			return out, fmt.Errorf("layer %d: %w", i, err)
		}
		out.layers = append(out.layers, made)
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, made.diffID)
	}
	var err error
	if out.config, err = jsonBlob(cfg); err != nil {
		return out, err
	}
	b := out.built(docker, f)
	m := manifestOf(b, docker)
	out.manifest, err = jsonBlob(m)
	return out, err
}

// manifestOf is a manifest; a docker one has the fields, and their order, of
// the manifest that containerd makes of a docker archive
// (core/images/archive/importer.go).
func manifestOf(b BuiltPlatform, docker bool) any {
	if docker {
		return struct {
			SchemaVersion int                  `json:"schemaVersion"`
			MediaType     string               `json:"mediaType"`
			Config        ocispec.Descriptor   `json:"config"`
			Layers        []ocispec.Descriptor `json:"layers"`
		}{2, dockerManifest, b.Config, b.Layers}
	}
	return ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: b.Config, Layers: b.Layers,
	}
}

func (p platformImage) built(docker bool, f Format) BuiltPlatform {
	b := BuiltPlatform{Layers: []ocispec.Descriptor{}}
	b.Manifest = p.manifest.descriptor(pick(docker, dockerManifest, ocispec.MediaTypeImageManifest))
	b.Config = p.config.descriptor(pick(docker, dockerConfig, ocispec.MediaTypeImageConfig))
	for _, l := range p.layers {
		b.Layers = append(b.Layers, l.descriptor(l.mediaType(docker, f)))
		b.DiffIDs = append(b.DiffIDs, l.diffID)
	}
	return b
}

func (l layer) mediaType(docker bool, f Format) string {
	switch {
	case l.source.MediaType != "":
		return l.source.MediaType
	case l.source.Compression == Gzip:
		return pick(docker, dockerLayerGzip, ocispec.MediaTypeImageLayerGzip)
	case l.source.Compression == Zstd && f != OCI && f != Hybrid:
		return dockerLayerGzip // containerd calls every compressed layer of a docker archive so
	case l.source.Compression == Zstd:
		return pick(docker, dockerLayerZstd, ocispec.MediaTypeImageLayerZstd)
	default:
		return pick(docker, dockerLayer, ocispec.MediaTypeImageLayer)
	}
}

func (p platformImage) blobs() []blob {
	var out []blob
	for _, l := range p.layers {
		out = append(out, l.blob)
	}
	return append(out, p.config, p.manifest)
}

func (b blob) descriptor(mediaType string) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: b.digest, Size: b.size}
}

func jsonBlob(v any) (blob, error) {
	data, err := json.Marshal(v)
	return bytesBlob(data), err
}

func bytesBlob(data []byte) blob {
	return blob{
		digest: digest.FromBytes(data),
		size:   int64(len(data)),
		open:   func() io.Reader { return bytes.NewReader(data) },
	}
}

func pick(cond bool, yes, no string) string {
	if cond {
		return yes
	}
	return no
}
