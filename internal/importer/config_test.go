package importer

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/internal/archive/corpus"
)

// An image that could not be unpacked is found before anything is moved.
func TestConfigsThatDoNotFit(t *testing.T) {
	a, b := digest.FromString("a"), digest.FromString("b")
	for name, tc := range map[string]struct {
		fs ocispec.RootFS
		ok bool
	}{
		"fits":                     {ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{a, a}}, true},
		"no type":                  {ocispec.RootFS{DiffIDs: []digest.Digest{a, a}}, true},
		"no layers by its type":    {ocispec.RootFS{Type: "layers+base", DiffIDs: []digest.Digest{a, a}}, false},
		"too few":                  {ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{a}}, false},
		"one layer, two diff IDs":  {ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{a, b}}, false},
		"nothing about the layers": {ocispec.RootFS{}, false},
	} {
		n := newNode(t, "linux/amd64")
		before := n.state(t)
		_, err := n.Import(t.Context(), &memory{Reader: bytes.NewReader(withRootFS(t, tc.fs))}, wanted(owner))
		if tc.ok {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if !errors.Is(err, archive.ErrInvalid) {
			t.Errorf("%s: error %v", name, err)
		}
		unchanged(t, before, n.state(t))
	}
}

// A config that containerd cannot decode is named, with its image and field. See the corpus for more of them.
func TestUnreadableConfigIsNamed(t *testing.T) {
	for _, c := range corpus.Cases() {
		if c.Name != "a config with Cmd a string" {
			continue
		}
		_, err := newNode(t, "linux/amd64").Import(t.Context(), corpusBlob(c.Open(), false), wanted(owner))
		if !errors.Is(err, archive.ErrInvalid) {
			t.Fatal(err)
		}
		checkMessage(t, err, append(c.Says, `image "registry.example/team/app:1"`, "config.Cmd", "must not be a JSON string"))
		return
	}
	t.Fatal("no such case")
}

// withRootFS is an archive of one image, which has the same layer twice.
func withRootFS(t *testing.T, fs ocispec.RootFS) []byte {
	t.Helper()
	var members []builder.Member
	blob := func(mediaType string, v any) ocispec.Descriptor {
		data, ok := v.([]byte)
		if !ok {
			var err error
			if data, err = json.Marshal(v); err != nil {
				t.Fatal(err)
			}
		}
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
		members = append(members, builder.FileMember(builder.BlobPath(d.Digest), data))
		return d
	}
	layer := blob(ocispec.MediaTypeImageLayer, []byte("a layer"))
	manifest := blob(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: blob(ocispec.MediaTypeImageConfig, ocispec.Image{Platform: builder.Platform("linux/amd64"), RootFS: fs}),
		Layers: []ocispec.Descriptor{layer, layer},
	})
	manifest.Annotations = map[string]string{"io.containerd.image.name": appName}
	index, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{manifest}})
	if err != nil {
		t.Fatal(err)
	}
	data, err := builder.TarBytes(append(members,
		builder.FileMember(ocispec.ImageLayoutFile, []byte(`{"imageLayoutVersion":"1.0.0"}`)), builder.FileMember(ocispec.ImageIndexFile, index))...)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
