package archive

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strings"
	"time"
	"unicode"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	strictjson "sigs.k8s.io/json"
)

// Fetch returns a metadata blob. d.Size is within this package's bounds. The error is ErrMissing when the blob is
// nowhere.
type Fetch func(ctx context.Context, d ocispec.Descriptor) ([]byte, error)

// read fetches a document of at most limit bytes and decodes it.
func read[T any](
	ctx context.Context, fetch Fetch, kind string, d ocispec.Descriptor, limit int64, decode func(data []byte, mediaType string) (T, error),
) (v T, err error) {
	if d.Size > limit {
		return v, fmt.Errorf("blob %s: size: %d in its descriptor, at most %d bytes are read: %w", d.Digest, d.Size, limit, ErrLimit)
	}
	data, err := fetch(ctx, d)
	if err != nil {
		return v, err
	}
	if v, err = decode(data, d.MediaType); err != nil {
		return v, fmt.Errorf("read %s %s: %w", kind, d.Digest, err)
	}
	return v, nil
}

// ReadIndex fetches an index and checks it.
func ReadIndex(ctx context.Context, fetch Fetch, d ocispec.Descriptor) (ocispec.Index, error) {
	return read(ctx, fetch, "index", d, MaxManifestBytes, decodeIndex)
}

// ReadReferrer fetches any manifest, also an attestation's or an artifact's: its config and layers may be of any type.
func ReadReferrer(ctx context.Context, fetch Fetch, d ocispec.Descriptor) (ocispec.Manifest, error) {
	return read(ctx, fetch, "manifest", d, MaxManifestBytes, decodeManifest)
}

// ReadManifest fetches an image's manifest and checks it: only media types that containerd can unpack, and at most
// MaxLayers layers.
func ReadManifest(ctx context.Context, fetch Fetch, d ocispec.Descriptor) (ocispec.Manifest, error) {
	return read(ctx, fetch, "manifest", d, MaxManifestBytes, func(data []byte, mediaType string) (ocispec.Manifest, error) {
		m, err := decodeManifest(data, mediaType)
		if err == nil {
			err = checkImage(m)
		}
		return m, err
	})
}

// ReadConfig fetches the config of an image for a platform and returns the diffIDs of its layers. The config must be
// one that containerd can read, be of the same platform, and have a diffID for each layer.
func ReadConfig(ctx context.Context, fetch Fetch, m ocispec.Manifest, platform ocispec.Platform) ([]digest.Digest, error) {
	return read(ctx, fetch, "config", m.Config, MaxConfigBytes, func(data []byte, _ string) ([]digest.Digest, error) {
		c, err := decodeConfig(data)
		if err == nil {
			err = checkContainerd(data)
		}
		if err == nil {
			err = c.checkImage(m, platform)
		}
		return c.RootFS.DiffIDs, err
	})
}

// decodeJSON reads one document. It refuses duplicate keys, anything behind the document, and keys that encoding/json,
// with which containerd reads, would take for others because it ignores case.
func decodeJSON[T any](data []byte) (T, error) {
	var strict, lax T
	if countValues(data) > MaxValues {
		return strict, fmt.Errorf("more than %d values: %w", MaxValues, ErrLimit)
	}
	// Keys that this package does not use must be there once, too: whoever reads them later sees the same.
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
		return strict, jsonError(err)
	}
	return strict, nil
}

// embedded matches the names of embedded types, which encoding/json puts in front of a field's.
var embedded = regexp.MustCompile(`^([A-Z]\w*\.)+`)

// jsonError is ErrInvalid with the field that has the wrong type, or what the parser says.
func jsonError(err error) error {
	var wrong *json.UnmarshalTypeError
	if !errors.As(err, &wrong) {
		return fmt.Errorf("%s: %w", reason(err), ErrInvalid)
	}
	field := cmp.Or(embedded.ReplaceAllString(wrong.Field, ""), "the document")
	return fmt.Errorf("%.200s: must not be a JSON %.50s: %w", field, wrong.Value, ErrInvalid)
}

// reason is a parser's message, which may repeat what the parser was given: shortened, and without characters that do
// not print.
func reason(err error) string {
	text := strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, err.Error())
	return fmt.Sprintf("%.200s", text)
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

// checkDescriptor checks that d can name a blob; field is where d stands.
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
	if d.Platform != nil {
		return checkPlatform(field+".platform", *d.Platform)
	}
	return nil
}

func checkDescriptors(field string, list []ocispec.Descriptor) error {
	for i, d := range list {
		if err := checkDescriptor(fmt.Sprintf("%s[%d]", field, i), d); err != nil {
			return err
		}
	}
	return nil
}

// checkPlatform bounds what a platform takes in memory, about.
func checkPlatform(field string, p ocispec.Platform) error {
	n := len(p.OS) + len(p.Architecture) + len(p.Variant) + len(p.OSVersion)
	for _, f := range p.OSFeatures {
		n += 16 + len(f)
	}
	if n > MaxPlatformBytes {
		return fmt.Errorf("%s: more than %d bytes: %w", field, MaxPlatformBytes, ErrLimit)
	}
	return nil
}

// checkVersion checks the fields with which a document says what it is; want is its descriptor's media type.
func checkVersion(schemaVersion int, mediaType, want string) error {
	if schemaVersion != 2 {
		return fmt.Errorf("schemaVersion: %d, want 2: %w", schemaVersion, ErrInvalid)
	}
	if mediaType != "" && mediaType != want {
		return fmt.Errorf("mediaType: %.200q, want %q: %w", mediaType, want, ErrInvalid)
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

// decodeIndex reads index.json, or an index that a descriptor of mediaType names.
func decodeIndex(data []byte, mediaType string) (ocispec.Index, error) {
	idx, err := decodeJSON[index](data)
	if err == nil {
		err = checkVersion(idx.SchemaVersion, idx.MediaType, mediaType)
	}
	switch {
	case err != nil:
		return idx.Index, err
	case idx.Config != nil || idx.Layers != nil || idx.Schema != nil:
		return idx.Index, fmt.Errorf("an index with config or layers: %w", ErrInvalid)
	case len(idx.Manifests) > MaxDescriptors:
		return idx.Index, fmt.Errorf("manifests: more than %d: %w", MaxDescriptors, ErrLimit)
	}
	return idx.Index, checkDescriptors("manifests", idx.Manifests)
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
	if err == nil {
		err = checkVersion(m.SchemaVersion, m.MediaType, mediaType)
	}
	switch {
	case err != nil:
		return m.Manifest, err
	case m.Manifests != nil || m.Schema != nil:
		return m.Manifest, fmt.Errorf("a manifest with manifests or fsLayers: %w", ErrInvalid)
	case len(m.Layers) > MaxLayers:
		return m.Manifest, fmt.Errorf("layers: more than %d: %w", MaxLayers, ErrLimit)
	}
	if err := checkDescriptor("config", m.Config); err != nil {
		return m.Manifest, err
	}
	return m.Manifest, checkDescriptors("layers", m.Layers)
}

// checkImage checks that a manifest is an image's that containerd can unpack.
func checkImage(m ocispec.Manifest) error {
	if !isConfig(m.Config.MediaType) {
		return fmt.Errorf("config.mediaType: %.200q is no image's: %w", m.Config.MediaType, ErrInvalid)
	}
	if m.Config.Size > MaxConfigBytes {
		return fmt.Errorf("config.size: %d, at most %d: %w", m.Config.Size, MaxConfigBytes, ErrLimit)
	}
	for i, l := range m.Layers {
		if !isLayer(l.MediaType) {
			return fmt.Errorf("layers[%d].mediaType: %.200q is not known: %w", i, l.MediaType, ErrInvalid)
		}
	}
	return nil
}

// config is the part of an image config that this package reads.
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
	if err := checkPlatform("platform", c.Platform); err != nil {
		return c, err
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

// checkContainerd decodes a config as containerd's CRI does (internal/cri/store/image): it does not list an image whose
// config it cannot read, and no pod could use the name.
func checkContainerd(data []byte) error {
	err := json.Unmarshal(data, &ocispec.Image{})
	if err == nil {
		return nil
	}
	if errors.As(err, new(*json.UnmarshalTypeError)) {
		return jsonError(err)
	}
	// Only a time has an error of its own, which does not name the field.
	field := "history.created"
	if json.Unmarshal(data, &struct{ Created *time.Time }{}) != nil {
		field = "created"
	}
	return fmt.Errorf("%s: want a time such as \"2026-01-31T12:00:00Z\": %s: %w", field, reason(err), ErrInvalid)
}

// decodeOwnConfig is decodeConfig of an image whose platform only the config has.
func decodeOwnConfig(data []byte) (config, error) {
	c, err := decodeConfig(data)
	if err == nil && c.Architecture == "" {
		err = fmt.Errorf("architecture: missing: %w", ErrInvalid)
	}
	return c, err
}

// checkImage checks that it is the config of an image's manifest for a platform.
func (c config) checkImage(m ocispec.Manifest, platform ocispec.Platform) error {
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
