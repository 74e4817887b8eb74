package archive_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/builder"
)

// layoutOf is an archive of documents.
func layoutOf(t *testing.T, docs documents) *archive.Layout {
	t.Helper()
	members := []builder.Member{
		builder.FileMember("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)),
		builder.FileMember("index.json", []byte(`{"schemaVersion":2,"manifests":[{"mediaType":"x","digest":"`+layerDigest+`","size":1}]}`)),
	}
	for d, data := range docs {
		members = append(members, builder.FileMember(builder.BlobPath(d), data))
	}
	data, err := builder.TarBytes(members...)
	if err != nil {
		t.Fatal(err)
	}
	return decodeRandom(t, data)
}

// A small archive may name a large document as often as it likes: a walk decodes it once.
func TestWalkReadsOnce(t *testing.T) {
	const often = 50
	config := ocispec.Image{Platform: builder.Platform("linux/arm64"), Author: strings.Repeat("x", 1<<20)}
	for name, add := range map[string]func(docs documents) []ocispec.Descriptor{
		"an index": func(docs documents) []ocispec.Descriptor {
			idx := indexOf()
			idx.Manifests = []ocispec.Descriptor{}
			return repeat(docs.add(ocispec.MediaTypeImageIndex, idx), often)
		},
		"a manifest without platform": func(docs documents) []ocispec.Descriptor {
			return repeat(docs.add(ocispec.MediaTypeImageManifest, manifestWith(docs.add(ocispec.MediaTypeImageConfig, config))), often)
		},
		"a config": func(docs documents) (children []ocispec.Descriptor) {
			m := manifestWith(docs.add(ocispec.MediaTypeImageConfig, config))
			for k := range often {
				m.Annotations = map[string]string{"k": fmt.Sprint(k)}
				children = append(children, docs.add(ocispec.MediaTypeImageManifest, m))
			}
			return children
		},
	} {
		docs := documents{}
		children := add(docs)
		targets := []ocispec.Descriptor{docs.add(ocispec.MediaTypeImageIndex, indexOf(children...))}
		targets = append(targets, docs.add(ocispec.MediaTypeImageIndex, indexOf(append(children, targets[0])...)))
		read := map[digest.Digest]int{}
		walk := archive.Resolver{Fetch: func(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
			read[d.Digest]++
			return docs.fetch(ctx, d)
		}}
		for _, target := range targets {
			if _, err := walk.PlatformManifests(t.Context(), target); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		for d, n := range read {
			if n != 1 {
				t.Fatalf("%s: %s was read %d times", name, d, n)
			}
		}
	}
}

// containerd reads a document each time that it is named, below one name or below several.
func TestRepetitionIsBounded(t *testing.T) {
	docs := documents{}
	long := indexOf()
	long.Manifests, long.Annotations = []ocispec.Descriptor{}, map[string]string{"": strings.Repeat("x", 1<<20)}
	idx := docs.add(ocispec.MediaTypeImageIndex, long)
	image := docs.add(ocispec.MediaTypeImageManifest, manifestWith(ocispec.Descriptor{}))
	platform := builder.Platform("linux/amd64")
	image.Platform, image.Size = &platform, archive.MaxManifestBytes
	for name, children := range map[string][]ocispec.Descriptor{"an index": repeat(idx, 10), "a manifest": repeat(image, 10)} {
		walk, n, err := archive.Resolver{Fetch: docs.fetch}, 0, error(nil)
		for err == nil && n < 100 {
			other := indexOf(children...)
			other.Annotations = map[string]string{"n": fmt.Sprint(n)}
			_, err = walk.PlatformManifests(t.Context(), docs.add(ocispec.MediaTypeImageIndex, other))
			n++
		}
		wantError(t, err, archive.ErrLimit)
		if n == 1 {
			t.Errorf("%s: none was accepted", name)
		}
	}
}

// Another descriptor of the same document may be wrong.
func TestWalkChecksEachDescriptor(t *testing.T) {
	docs := documents{}
	idx := docs.add(ocispec.MediaTypeImageIndex, indexOf())
	longer, other := idx, idx
	longer.Size++
	other.MediaType = "application/vnd.docker.distribution.manifest.list.v2+json"
	for name, second := range map[string]ocispec.Descriptor{"size": longer, "media type": other} {
		target := docs.add(ocispec.MediaTypeImageIndex, indexOf(idx, second))
		l := layoutOf(t, docs)
		if _, err := (&archive.Resolver{Fetch: fetchFrom(l)}).PlatformManifests(t.Context(), target); err == nil {
			t.Errorf("another %s is accepted", name)
		} else {
			wantError(t, err, archive.ErrInvalid)
		}
	}
}

// What many images share is read for each of them. That has an end.
func TestReadsAreBounded(t *testing.T) {
	dense := map[string]string{}
	for k := range archive.MaxValues - 100 {
		dense[fmt.Sprint(k)] = ""
	}
	for name, v := range map[string]any{
		"a long document": map[string]string{"": strings.Repeat("x", archive.MaxManifestBytes-100)},
		"many values":     dense,
	} {
		docs := documents{}
		d := docs.add(ocispec.MediaTypeImageIndex, v)
		l := layoutOf(t, docs)
		n, err := 0, error(nil)
		for n < 1000 && err == nil {
			_, err = l.ReadBlob(t.Context(), d, archive.MaxManifestBytes)
			n++
		}
		wantError(t, err, archive.ErrLimit)
		if n < 20 {
			t.Errorf("%s: %d times only", name, n)
		}
	}
}

// What is kept of many leaves does not grow with what their descriptors say beside.
func TestLeavesAreBare(t *testing.T) {
	docs := documents{}
	image := docs.add(ocispec.MediaTypeImageManifest, manifestWith(ocispec.Descriptor{}))
	platform := builder.Platform("linux/amd64")
	image.Platform, image.Annotations, image.Data, image.URLs = &platform, map[string]string{"a": "b"}, []byte("x"), []string{"https://a.example"}
	target := docs.add(ocispec.MediaTypeImageIndex, indexOf(image))
	target.Annotations = map[string]string{"a": "b"}
	leaves, err := (&archive.Resolver{Fetch: docs.fetch}).PlatformManifests(t.Context(), target)
	if err != nil || len(leaves) != 1 || len(leaves[0].Parents) != 1 {
		t.Fatalf("%v, %v", leaves, err)
	}
	for _, d := range []ocispec.Descriptor{leaves[0].Descriptor, leaves[0].Parents[0]} {
		if d.Annotations != nil || d.Data != nil || d.URLs != nil {
			t.Errorf("kept: %+v", d)
		}
	}
}

func TestPlatformsAreBounded(t *testing.T) {
	long := strings.Repeat("x", archive.MaxPlatformBytes)
	for name, p := range map[string]ocispec.Platform{
		"architecture": {OS: "linux", Architecture: long},
		"system":       {OS: long, Architecture: "amd64"},
		"variant":      {OS: "linux", Architecture: "arm", Variant: long},
		"version":      {OS: "windows", Architecture: "amd64", OSVersion: long},
		"feature":      {OS: "windows", Architecture: "amd64", OSFeatures: []string{long}},
		"features":     {OS: "windows", Architecture: "amd64", OSFeatures: make([]string, archive.MaxPlatformBytes/16)},
	} {
		docs := documents{}
		image := docs.add(ocispec.MediaTypeImageManifest, manifestWith(docs.add(ocispec.MediaTypeImageConfig, ocispec.Image{Platform: p})))
		said := image
		said.Platform = &p
		for where, d := range map[string]ocispec.Descriptor{"config": image, "descriptor": said} {
			target := docs.add(ocispec.MediaTypeImageIndex, indexOf(d))
			if _, err := (&archive.Resolver{Fetch: docs.fetch}).PlatformManifests(t.Context(), target); err == nil {
				t.Errorf("%s in a %s is accepted", name, where)
			} else {
				wantError(t, err, archive.ErrLimit)
			}
		}
	}
	windows := ocispec.Platform{OS: "windows", Architecture: "amd64", OSVersion: "10.0.20348.2762", OSFeatures: []string{"win32k"}}
	docs := documents{}
	image := docs.add(ocispec.MediaTypeImageManifest, manifestWith(docs.add(ocispec.MediaTypeImageConfig, ocispec.Image{Platform: windows})))
	if leaves, err := (&archive.Resolver{Fetch: docs.fetch}).PlatformManifests(t.Context(), image); err != nil || len(leaves) != 1 {
		t.Errorf("%v, %v", leaves, err)
	}
}

// A walk ends with its caller's patience.
func TestLeavesEndWithContext(t *testing.T) {
	docs := documents{}
	ctx, cancel := context.WithCancel(t.Context())
	idx := docs.add(ocispec.MediaTypeImageIndex, indexOf())
	target := docs.add(ocispec.MediaTypeImageIndex, indexOf(repeat(idx, 10)...))
	n := 0
	_, err := (&archive.Resolver{Fetch: func(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
		if n++; n == 2 {
			cancel()
		}
		return docs.fetch(ctx, d)
	}}).PlatformManifests(ctx, target)
	wantError(t, err, context.Canceled)
	if n != 2 {
		t.Errorf("%d documents were read", n)
	}
}
