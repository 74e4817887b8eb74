package archive

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"unicode"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	strictjson "sigs.k8s.io/json"
)

// Docker's schema 2 media types (distribution, manifest/schema2).
const (
	mediaTypeDockerIndex        = "application/vnd.docker.distribution.manifest.list.v2+json"
	mediaTypeDockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	mediaTypeDockerConfig       = "application/vnd.docker.container.image.v1+json"
	mediaTypeDockerLayer        = "application/vnd.docker.image.rootfs.diff.tar"
	mediaTypeDockerLayerGzip    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	mediaTypeDockerLayerZstd    = "application/vnd.docker.image.rootfs.diff.tar.zstd"
	mediaTypeDockerForeign      = "application/vnd.docker.image.rootfs.foreign.diff.tar"
	mediaTypeDockerForeignGzip  = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
	mediaTypeNonDistributable   = "application/vnd.oci.image.layer.nondistributable.v1.tar"
	mediaTypeNonDistributableGz = mediaTypeNonDistributable + "+gzip"
	mediaTypeNonDistributableZs = mediaTypeNonDistributable + "+zstd"
)

func isIndex(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageIndex || mediaType == mediaTypeDockerIndex
}

func isManifest(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageManifest || mediaType == mediaTypeDockerManifest
}

func isConfig(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageConfig || mediaType == mediaTypeDockerConfig
}

func isLayer(mediaType string) bool {
	switch mediaType {
	case ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd,
		mediaTypeNonDistributable, mediaTypeNonDistributableGz, mediaTypeNonDistributableZs,
		mediaTypeDockerLayer, mediaTypeDockerLayerGzip, mediaTypeDockerLayerZstd,
		mediaTypeDockerForeign, mediaTypeDockerForeignGzip:
		return true
	default:
		return false
	}
}

// reason is what a parser says, which may repeat what it was given: shortened,
// and without characters that do not print.
func reason(err error) string {
	const most = 200
	text := []rune(err.Error())
	for i, r := range text {
		if !unicode.IsPrint(r) {
			text[i] = unicode.ReplacementChar
		}
	}
	return string(text[:min(len(text), most)])
}

// decodeJSON reads one document. Refused are duplicate keys, anything behind it,
// and keys that encoding/json, with which containerd reads, would take for
// others because it ignores case.
func decodeJSON[T any](data []byte) (T, error) {
	var strict, lax T
	faults, err := strictjson.UnmarshalStrict(data, &strict, strictjson.DisallowDuplicateFields)
	if err == nil && len(faults) > 0 {
		err = faults[0]
	}
	if err == nil {
		err = json.Unmarshal(data, &lax)
	}
	if err == nil && !reflect.DeepEqual(strict, lax) {
		err = errors.New("a key has the wrong case")
	}
	if err != nil {
		return strict, fmt.Errorf("%s: %w", reason(err), ErrInvalid)
	}
	return strict, nil
}

// checkDescriptor tells whether d can name a blob; field is where d stands.
func checkDescriptor(field string, d ocispec.Descriptor) error {
	if err := d.Digest.Validate(); err != nil {
		return fmt.Errorf("%s.digest: %.200q: %s: %w", field, d.Digest, reason(err), ErrInvalid)
	}
	if d.Size < 0 {
		return fmt.Errorf("%s.size: %d: %w", field, d.Size, ErrInvalid)
	}
	if d.MediaType == "" {
		return fmt.Errorf("%s.mediaType: missing: %w", field, ErrInvalid)
	}
	return nil
}

// index is an index with the fields that only manifests have.
type index struct {
	ocispec.Index
	Config json.RawMessage `json:"config,omitempty"`
	Layers json.RawMessage `json:"layers,omitempty"`
	Schema json.RawMessage `json:"fsLayers,omitempty"`
}

// decodeIndex reads index.json or an index that a descriptor of mediaType names.
func decodeIndex(data []byte, mediaType string) (ocispec.Index, error) {
	idx, err := decodeJSON[index](data)
	switch {
	case err != nil:
		return idx.Index, err
	case idx.SchemaVersion != 2:
		return idx.Index, fmt.Errorf("schemaVersion: %d, want 2: %w", idx.SchemaVersion, ErrInvalid)
	case idx.MediaType != "" && idx.MediaType != mediaType:
		return idx.Index, fmt.Errorf("mediaType: %.200q, want %q: %w", idx.MediaType, mediaType, ErrInvalid)
	case idx.Config != nil || idx.Layers != nil || idx.Schema != nil:
		return idx.Index, fmt.Errorf("an index with config or layers: %w", ErrInvalid)
	case len(idx.Manifests) > MaxDescriptors:
		return idx.Index, fmt.Errorf("manifests: more than %d: %w", MaxDescriptors, ErrLimit)
	}
	for i, d := range idx.Manifests {
		if err := checkDescriptor(fmt.Sprintf("manifests[%d]", i), d); err != nil {
			return idx.Index, err
		}
	}
	return idx.Index, nil
}

// manifest is a manifest with the fields that only indexes have.
type manifest struct {
	ocispec.Manifest
	Manifests json.RawMessage `json:"manifests,omitempty"`
	Schema    json.RawMessage `json:"fsLayers,omitempty"`
}

// decodeManifest reads a manifest that a descriptor of mediaType names.
func decodeManifest(data []byte, mediaType string) (ocispec.Manifest, error) {
	m, err := decodeJSON[manifest](data)
	switch {
	case err != nil:
		return m.Manifest, err
	case m.SchemaVersion != 2:
		return m.Manifest, fmt.Errorf("schemaVersion: %d, want 2: %w", m.SchemaVersion, ErrInvalid)
	case m.MediaType != "" && m.MediaType != mediaType:
		return m.Manifest, fmt.Errorf("mediaType: %.200q, want %q: %w", m.MediaType, mediaType, ErrInvalid)
	case m.Manifests != nil || m.Schema != nil:
		return m.Manifest, fmt.Errorf("a manifest with manifests or fsLayers: %w", ErrInvalid)
	case len(m.Layers) > MaxLayers:
		return m.Manifest, fmt.Errorf("layers: more than %d: %w", MaxLayers, ErrLimit)
	}
	if err := checkDescriptor("config", m.Config); err != nil {
		return m.Manifest, err
	}
	for i, d := range m.Layers {
		if err := checkDescriptor(fmt.Sprintf("layers[%d]", i), d); err != nil {
			return m.Manifest, err
		}
	}
	return m.Manifest, nil
}

// config is what is read of an image config.
type config struct {
	ocispec.Platform
	RootFS struct {
		DiffIDs []digest.Digest `json:"diff_ids"`
	} `json:"rootfs"`
}

// decodeConfig reads an image config: platform and diffIDs.
func decodeConfig(data []byte) (config, error) {
	c, err := decodeJSON[config](data)
	if err != nil {
		return c, err
	}
	if c.OS == "" {
		c.OS = "linux" // as containerd on Linux does, and everywhere the same
	}
	if c.Architecture == "" {
		return c, fmt.Errorf("architecture: missing: %w", ErrInvalid)
	}
	if len(c.RootFS.DiffIDs) > MaxLayers {
		return c, fmt.Errorf("rootfs.diff_ids: more than %d: %w", MaxLayers, ErrLimit)
	}
	return c, nil
}
