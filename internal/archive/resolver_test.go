package archive_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/platforms"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/builder"
)

func leavesOf(t *testing.T, l *archive.Layout, target ocispec.Descriptor) []archive.PlatformManifest {
	t.Helper()
	leaves, err := (&archive.Resolver{Fetch: fetchFrom(l)}).PlatformManifests(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	return leaves
}

func TestLeaves(t *testing.T) {
	two := []builder.PlatformImage{platformImage("linux/amd64"), platformImage("linux/arm/v6")}
	for _, tc := range []struct {
		name    string
		image   builder.Image
		parents int
		want    string
	}{
		{"one manifest: its config tells the platform", builder.Image{Platforms: two[1:]}, 0, "linux/arm/v6"},
		{"an index", builder.Image{Platforms: two}, 1, "linux/amd64 linux/arm/v6"},
		{"an index of one", builder.Image{Platforms: two[:1], Index: true}, 1, "linux/amd64"},
		{"indexes in indexes, as buildkit nests them", builder.Image{Platforms: two, Nested: 3}, 4, "linux/amd64 linux/arm/v6"},
		{"as many as the bound", builder.Image{Platforms: two, Nested: archive.MaxDepth - 1}, archive.MaxDepth, "linux/amd64 linux/arm/v6"},
		{"no platforms: configs tell", builder.Image{Platforms: two, NoPlatform: true}, 1, "linux/amd64 linux/arm/v6"},
		{"attestations are no images", builder.Image{Platforms: two, Attestations: true}, 1, "linux/amd64 linux/arm/v6"},
		{"docker's media types", builder.Image{Platforms: two, DockerTypes: true}, 1, "linux/amd64 linux/arm/v6"},
		{"an absent manifest without platform", builder.Image{Platforms: []builder.PlatformImage{two[0], absent(two[1])}, NoPlatform: true}, 1, "linux/amd64"},
		{"an absent manifest with its platform", builder.Image{Platforms: []builder.PlatformImage{two[0], absent(two[1])}}, 1, "linux/amd64 linux/arm/v6"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.image.Names = []string{"example.com/app:1"}
			b := build(t, builder.Archive{Images: []builder.Image{tc.image}})
			l := decodeRandom(t, bytesOf(t, b))
			var got []string
			for _, leaf := range leavesOf(t, l, l.Manifests[0]) {
				got = append(got, platforms.Format(*leaf.Platform))
				var parents []digest.Digest
				for _, p := range leaf.Parents {
					parents = append(parents, p.Digest)
				}
				var want []digest.Digest
				for _, p := range b.Images[0].Indexes {
					want = append(want, p.Digest)
				}
				if diff := cmp.Diff(want, parents); diff != "" || len(parents) != tc.parents {
					t.Errorf("%d parents: %s", len(parents), diff)
				}
			}
			if s := strings.Join(got, " "); s != tc.want {
				t.Errorf("platforms are %q, want %q", s, tc.want)
			}
		})
	}
}

func absent(p builder.PlatformImage) builder.PlatformImage {
	p.Absent = true
	return p
}

// documents is a Fetch over JSON documents.
type documents map[digest.Digest][]byte

func (b documents) add(mediaType string, v any) ocispec.Descriptor {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	b[d.Digest] = data
	return d
}

func (b documents) fetch(_ context.Context, d ocispec.Descriptor) ([]byte, error) {
	if data, ok := b[d.Digest]; ok {
		return data, nil
	}
	return nil, archive.ErrMissing
}

func indexOf(children ...ocispec.Descriptor) ocispec.Index {
	return ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: children}
}

func manifestWith(config ocispec.Descriptor, layers ...ocispec.Descriptor) ocispec.Manifest {
	return ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: layers}
}

func repeat(d ocispec.Descriptor, n int) []ocispec.Descriptor {
	out := make([]ocispec.Descriptor, n)
	for i := range out {
		out[i] = d
	}
	return out
}

func TestLeavesRefuse(t *testing.T) {
	const manifestType, indexType = ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex
	docs := documents{}
	config := docs.add(ocispec.MediaTypeImageConfig, ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}})
	image := docs.add(manifestType, manifestWith(config))
	nowhere := ocispec.Descriptor{MediaType: indexType, Digest: digest.FromString("nowhere"), Size: 7}
	deep := image
	for range archive.MaxDepth + 1 {
		deep = docs.add(indexType, indexOf(deep))
	}
	wide := docs.add(indexType, indexOf(repeat(image, 100)...))
	loop := ocispec.Descriptor{MediaType: indexType, Digest: digest.FromString("loop"), Size: 7}
	docs[loop.Digest], _ = json.Marshal(indexOf(loop))
	artifact := docs.add(manifestType, manifestWith(docs.add("application/vnd.oci.empty.v1+json", struct{}{})))
	both := docs.add(manifestType, map[string]any{"schemaVersion": 2, "config": config, "layers": []string{}, "manifests": []string{}})
	large := image
	large.Size = archive.MaxManifestBytes + 1
	for _, tc := range []struct {
		name   string
		target ocispec.Descriptor
		leaves int
		want   error
	}{
		{"an image", image, 1, nil},
		{"the target is absent", nowhere, 0, archive.ErrMissing},
		{"a nested index is absent: of another platform", docs.add(indexType, indexOf(image, nowhere)), 1, nil},
		{"the same child in two indexes", docs.add(indexType, indexOf(wide, wide)), 200, nil},
		{"deeper than the bound", deep, 0, archive.ErrLimit},
		{"few documents, but many paths", docs.add(indexType, indexOf(repeat(wide, 42)...)), -1, archive.ErrLimit},
		{"an index that contains itself", loop, 0, archive.ErrInvalid},
		{"no digest", ocispec.Descriptor{MediaType: manifestType}, 0, archive.ErrInvalid},
		{"a media type of nobody", ocispec.Descriptor{MediaType: "text/plain", Digest: image.Digest, Size: 1}, 0, archive.ErrInvalid},
		{"a child that is neither index nor manifest", docs.add(indexType, indexOf(image, config)), 1, nil},
		{"an artifact", artifact, 0, nil},
		{"an artifact beside an image", docs.add(indexType, indexOf(image, artifact)), 1, nil},
		{"a manifest that is called an index", ocispec.Descriptor{MediaType: indexType, Digest: image.Digest, Size: image.Size}, 0, archive.ErrInvalid},
		{"a manifest that is an index too", both, 0, archive.ErrInvalid},
		{"above the bound of size", large, 0, archive.ErrLimit},
	} {
		t.Run(tc.name, func(t *testing.T) {
			leaves, err := (&archive.Resolver{Fetch: docs.fetch}).PlatformManifests(t.Context(), tc.target)
			wantError(t, err, tc.want)
			if tc.leaves >= 0 && len(leaves) != tc.leaves {
				t.Errorf("%d leaves, want %d", len(leaves), tc.leaves)
			}
		})
	}
}

func TestReadManifest(t *testing.T) {
	docs := documents{}
	config := docs.add(ocispec.MediaTypeImageConfig, struct{}{})
	layer := func(mediaType string) ocispec.Descriptor {
		return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromString("x"), Size: 1}
	}
	var known []ocispec.Descriptor
	for _, m := range []string{
		ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd,
		"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
		"application/vnd.docker.image.rootfs.diff.tar.gzip", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
	} {
		known = append(known, layer(m))
	}
	hugeConfig, noDigest := config, layer(ocispec.MediaTypeImageLayer)
	hugeConfig.Size = archive.MaxConfigBytes + 1
	noDigest.Digest = ""
	for _, tc := range []struct {
		name string
		m    ocispec.Manifest
		want error
	}{
		{"all known layers", manifestWith(config, known...), nil},
		{"no layers", manifestWith(config), nil},
		{"as many layers as the bound", manifestWith(config, repeat(known[0], archive.MaxLayers)...), nil},
		{"more layers than the bound", manifestWith(config, repeat(known[0], archive.MaxLayers+1)...), archive.ErrLimit},
		{"an encrypted layer", manifestWith(config, layer(ocispec.MediaTypeImageLayerGzip+"+encrypted")), archive.ErrInvalid},
		{"a Helm chart", manifestWith(layer("application/vnd.cncf.helm.config.v1+json")), archive.ErrInvalid},
		{"a layer without digest", manifestWith(config, noDigest), archive.ErrInvalid},
		{"a config above its bound", manifestWith(hugeConfig), archive.ErrLimit},
		{"no config", manifestWith(ocispec.Descriptor{}), archive.ErrInvalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := archive.ReadManifest(t.Context(), docs.fetch, docs.add(ocispec.MediaTypeImageManifest, tc.m))
			wantError(t, err, tc.want)
			if err == nil && len(got.Layers) != len(tc.m.Layers) {
				t.Errorf("%d layers", len(got.Layers))
			}
		})
	}
}

// TestErrorsNameMemberAndField, so that whoever made the archive finds the place.
func TestErrorsNameMemberAndField(t *testing.T) {
	docs := documents{}
	config := docs.add(ocispec.MediaTypeImageConfig, struct{}{})
	d := docs.add(ocispec.MediaTypeImageManifest, manifestWith(config, config, ocispec.Descriptor{MediaType: "x", Digest: "sha256:0"}))
	_, err := archive.ReadManifest(t.Context(), docs.fetch, d)
	for _, part := range []string{d.Digest.String(), "layers[1].digest"} {
		if !strings.Contains(fmt.Sprint(err), part) {
			t.Errorf("the error does not say %s: %v", part, err)
		}
	}
}
