package archive

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"unicode"

	"github.com/containerd/platforms"
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

// isSchema1: manifests of Docker before 1.10 (distribution, manifest/schema1).
func isSchema1(mediaType string) bool {
	return strings.HasPrefix(mediaType, "application/vnd.docker.distribution.manifest.v1+")
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
	if countValues(data) > MaxValues {
		return strict, fmt.Errorf("more than %d values: %w", MaxValues, ErrLimit)
	}
	// Also what is of no use here has its keys once: whoever reads it later sees the same.
	var whole any
	faults, err := strictjson.UnmarshalStrict(data, &whole, strictjson.DisallowDuplicateFields)
	if err == nil && len(faults) == 0 {
		err = strictjson.UnmarshalCaseSensitivePreserveInts(data, &strict)
	}
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

// countValues counts the objects and lists in JSON, and what else is behind a comma: before they take memory.
func countValues(data []byte) int {
	n, quoted := 0, false
	for k := 0; k < len(data); k++ {
		switch c := data[k]; {
		case quoted && c == '\\':
			k++
		case c == '"':
			quoted = !quoted
		case !quoted && (c == ',' || c == '{' || c == '['):
			n++
		}
	}
	return n
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
	if d.Platform != nil && platformBytes(*d.Platform) > MaxPlatformBytes {
		return fmt.Errorf("%s.platform: more than %d bytes: %w", field, MaxPlatformBytes, ErrLimit)
	}
	return nil
}

// platformBytes is what a platform takes in memory, about.
func platformBytes(p ocispec.Platform) int {
	n := len(p.OS) + len(p.Architecture) + len(p.Variant) + len(p.OSVersion)
	for _, f := range p.OSFeatures {
		n += 16 + len(f)
	}
	return n
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
	RootFS ocispec.RootFS `json:"rootfs"`
}

// decodeConfig reads an image config: platform and diffIDs.
func decodeConfig(data []byte) (config, error) {
	c, err := decodeJSON[config](data)
	if err != nil {
		return c, err
	}
	if platformBytes(c.Platform) > MaxPlatformBytes {
		return c, fmt.Errorf("platform: more than %d bytes: %w", MaxPlatformBytes, ErrLimit)
	}
	if c.OS == "" {
		c.OS = "linux" // as containerd on Linux does, and everywhere the same
	}
	if len(c.RootFS.DiffIDs) > MaxLayers {
		return c, fmt.Errorf("rootfs.diff_ids: more than %d: %w", MaxLayers, ErrLimit)
	}
	for i, d := range c.RootFS.DiffIDs {
		if err := d.Validate(); err != nil {
			return c, fmt.Errorf("rootfs.diff_ids[%d]: %.200q: %s: %w", i, d, reason(err), ErrInvalid)
		}
	}
	return c, nil
}

// tellsPlatform: nothing else does.
func (c config) tellsPlatform() error {
	if c.Architecture == "" {
		return fmt.Errorf("architecture: missing: %w", ErrInvalid)
	}
	return nil
}

// fits tells whether it is the config of an image's manifest for a platform.
func (c config) fits(m ocispec.Manifest, platform ocispec.Platform) error {
	own, want := platforms.Normalize(c.Platform), platforms.Normalize(platform)
	// Variants are often left out, in configs or in descriptors.
	if own.Architecture != "" && own.Architecture != want.Architecture || own.OS != want.OS {
		return fmt.Errorf("os and architecture: %.100q, its descriptor says %.100q: %w",
			own.OS+"/"+own.Architecture, want.OS+"/"+want.Architecture, ErrInvalid)
	}
	if t := c.RootFS.Type; t != "" && t != "layers" { // containerd would skip it without an error
		return fmt.Errorf("rootfs.type: %.200q, want \"layers\": %w", t, ErrInvalid)
	}
	if len(c.RootFS.DiffIDs) != len(m.Layers) {
		return fmt.Errorf("rootfs.diff_ids: %d of them for %d layers: %w", len(c.RootFS.DiffIDs), len(m.Layers), ErrInvalid)
	}
	content := map[digest.Digest]digest.Digest{}
	for k, id := range c.RootFS.DiffIDs {
		if other, ok := content[m.Layers[k].Digest]; ok && other != id {
			return fmt.Errorf("rootfs.diff_ids[%d]: layer %s has another one above: %w", k, m.Layers[k].Digest, ErrInvalid)
		}
		content[m.Layers[k].Digest] = id
	}
	return nil
}
