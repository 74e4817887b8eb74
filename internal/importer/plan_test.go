package importer

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/builder"
)

// An archive of other platforms only is no broken one, though its index lists this platform, too. One that has lost a blob
// of this platform is.
func TestArchiveOfOtherPlatforms(t *testing.T) {
	image := func(platforms ...string) *builder.Built {
		img := builder.Image{Names: []string{appName}, Index: true}
		for _, p := range platforms {
			img.Platforms = append(img.Platforms, platformImage(p, layer(p, 2000)))
		}
		return build(t, builder.Archive{Images: []builder.Image{img}})
	}
	omit := func(b *builder.Built, platforms ...int) *builder.Built {
		for _, k := range platforms {
			p := b.Images[0].Platforms[k]
			b.Edit(builder.Omit(builder.BlobPath(p.Manifest.Digest), builder.BlobPath(p.Config.Digest), builder.BlobPath(p.Layers[0].Digest)))
		}
		return b
	}
	lost := image("linux/amd64", "linux/arm64")
	lost.Edit(builder.Omit(builder.BlobPath(lost.Images[0].Platforms[0].Config.Digest)))
	for _, tc := range []struct {
		name, node string
		built      *builder.Built
		want       error
		says       []string
		not        string
	}{
		{"another platform", "linux/amd64", omit(image("linux/amd64", "linux/s390x", "linux/arm64"), 0, 1), ErrNoMatchingPlatform,
			[]string{`"linux/arm64" only`, `needs "linux/amd64"`}, "s390x"},
		{"two others", "linux/amd64", omit(image("linux/amd64", "linux/s390x", "linux/arm64"), 0), ErrNoMatchingPlatform,
			[]string{`"linux/arm64", "linux/s390x" only`}, ""},
		{"not listed, and one of the others absent", "linux/riscv64", omit(image("linux/amd64", "linux/arm64"), 0), ErrNoMatchingPlatform,
			[]string{`"linux/arm64" only`}, "amd64"},
		{"a lost config", "linux/amd64", lost, ErrContentIncomplete, []string{lost.Images[0].Platforms[0].Config.Digest.String()}, ""},
		{"no blob of any platform", "linux/amd64", omit(image("linux/amd64", "linux/arm64"), 0, 1), ErrContentIncomplete, nil, ""},
		{"the only platform", "linux/amd64", omit(image("linux/amd64"), 0), ErrContentIncomplete, nil, ""},
		{"a lesser variant is there, the best is lost", "linux/arm/v7", omit(image("linux/arm/v7", "linux/arm/v6", "linux/amd64"), 0),
			ErrContentIncomplete, nil, ""},
	} {
		for _, stream := range []bool{false, true} {
			t.Run(tc.name+map[bool]string{false: "/random", true: "/stream"}[stream], func(t *testing.T) {
				n := newNode(t, tc.node)
				before := n.state(t)
				_, err := n.Import(t.Context(), blobOf(t, tc.built, stream), wanted(owner))
				if !errors.Is(err, tc.want) {
					t.Fatalf("error %v, want %v", err, tc.want)
				}
				checkMessage(t, err, tc.says)
				if tc.not != "" && strings.Contains(err.Error(), tc.not) {
					t.Errorf("the archive has nothing for %s: %v", tc.not, err)
				}
				unchanged(t, before, n.state(t))
			})
		}
	}
}

// The tar was cut before the manifest of this platform: the rest may be of this platform, too.
func TestCutArchiveIsNotOfOtherPlatforms(t *testing.T) {
	b := build(t, twoImages())
	b.Edit(builder.Last(builder.BlobPath(b.Images[0].Platforms[0].Manifest.Digest)))
	data, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	size := (b.Images[0].Platforms[0].Manifest.Size + 511) / 512 * 512
	cut := data[:int64(len(data))-1024-512-size]
	_, err = newNode(t, "linux/amd64").Import(t.Context(), &memory{Reader: bytes.NewReader(cut)}, wanted(owner))
	if !errors.Is(err, archive.ErrTruncated) {
		t.Errorf("error %v", err)
	}
}

// What a node has already is not missing, though the archive has only another platform's.
func TestOtherPlatformsArchiveCountsOnTheStore(t *testing.T) {
	b := build(t, twoImages())
	n := newNode(t, "linux/amd64")
	if _, err := n.Import(t.Context(), blobOf(t, b, false), wanted(owner)); err != nil {
		t.Fatal(err)
	}
	for _, img := range b.Images {
		p := img.Platforms[0]
		b.Edit(builder.Omit(builder.BlobPath(p.Manifest.Digest), builder.BlobPath(p.Config.Digest)))
		for _, d := range p.Layers {
			b.Edit(builder.Omit(builder.BlobPath(d.Digest)))
		}
	}
	if _, err := n.Import(t.Context(), blobOf(t, b, false), wanted(named("other", "2"))); err != nil {
		t.Error(err)
	}
}

// The CRI knows an image by the digest of its config, which two manifests may share.
func TestPlannedIDs(t *testing.T) {
	packed := layer("shared", 3000)
	plain := packed
	plain.Compression = builder.None
	b := build(t, builder.Archive{Images: []builder.Image{
		{Names: []string{appName}, Platforms: []builder.PlatformImage{platformImage("linux/amd64", plain)}},
		{Names: []string{toolName}, Platforms: []builder.PlatformImage{platformImage("linux/amd64", packed)}},
	}})
	config := b.Images[0].Platforms[0].Config.Digest
	if b.Images[1].Platforms[0].Config.Digest != config || b.Images[1].Target.Digest == b.Images[0].Target.Digest {
		t.Fatal("want two manifests with one config")
	}
	d, err := newNode(t, "linux/amd64").dry(t, b, false, wanted(owner))
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range d.Plan.Images {
		if img.Config != config || img.ID != config.String() {
			t.Errorf("%s: config %s, ID %q, want %s", img.Name, img.Config, img.ID, config)
		}
	}
}

// What is in the store when an import is planned may be gone when it is used: the plan says where the archive has it.
func TestPresentBlobsHaveAPlace(t *testing.T) {
	for name, format := range map[string]builder.Format{"oci": builder.OCI, "docker": builder.Docker} {
		a := twoImages()
		a.Format = format
		b := build(t, a)
		n := newNode(t, "linux/amd64")
		if _, err := n.Import(t.Context(), blobOf(t, b, false), wanted(owner)); err != nil {
			t.Fatal(err)
		}
		src := blobOf(t, b, false)
		opened, err := Open(t.Context(), src)
		if err != nil {
			t.Fatal(err)
		}
		p, err := n.Plan(t.Context(), opened, wanted(owner))
		if err != nil {
			t.Fatal(err)
		}
		if p.Bytes.Move != 0 || len(p.Blobs) == 0 {
			t.Fatalf("%s: %+v", name, p.Bytes)
		}
		for _, b := range p.Blobs {
			data := b.Extent.Data
			if b.Extent.Member != "" {
				rc, err := src.Section(t.Context(), b.Extent.Offset, b.Extent.Size)
				if err != nil {
					t.Fatal(err)
				}
				if data, err = io.ReadAll(rc); err != nil {
					t.Fatal(err)
				}
			}
			if !b.Present || digest.FromBytes(data) != b.Digest {
				t.Errorf("%s: blob %s (%s): present %v, not at %+v", name, b.Digest, b.MediaType, b.Present, b.Extent)
			}
		}
	}
}
