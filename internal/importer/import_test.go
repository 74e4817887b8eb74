package importer

import (
	"bytes"
	"compress/gzip"
	"errors"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/builder"
)

const (
	appName  = "registry.example/team/app:1"
	toolName = "registry.example/team/tool:2"
)

// layer makes a layer of a given size whose content depends on its name.
func layer(name string, size int64) builder.Layer {
	return builder.Layer{Compression: builder.Gzip, Files: []builder.File{builder.Noise(name, 1, size)}}
}

func platformImage(platform string, layers ...builder.Layer) builder.PlatformImage {
	return builder.PlatformImage{Platform: builder.Platform(platform), Layers: layers}
}

// twoImages is a usual archive: two names, two platforms, a shared base layer.
func twoImages() builder.Archive {
	base := layer("base", 96<<10)
	return builder.Archive{Images: []builder.Image{
		{Names: []string{appName}, Platforms: []builder.PlatformImage{
			platformImage("linux/amd64", base, layer("app-amd64", 64<<10)),
			platformImage("linux/arm64", layer("app-arm64", 64<<10)),
		}},
		{Names: []string{toolName}, Platforms: []builder.PlatformImage{
			platformImage("linux/amd64", base, layer("tool-amd64", 32<<10)),
			platformImage("linux/arm64", layer("tool-arm64", 32<<10)),
		}},
	}}
}

// blobsFor are the digests that one platform's images consist of, each once.
func blobsFor(b *builder.Built, platform int) map[digest.Digest]int64 {
	blobs := map[digest.Digest]int64{}
	for _, img := range b.Images {
		p := img.Platforms[platform]
		for _, d := range append(append(append([]ocispec.Descriptor{p.Manifest, p.Config}, p.Layers...), img.Indexes...), img.Target) {
			blobs[d.Digest] = d.Size
		}
	}
	return blobs
}

func sum(blobs map[digest.Digest]int64) (n int64) {
	for _, size := range blobs {
		n += size
	}
	return n
}

func wanted(o Owner) Request {
	return Request{Owner: o, Selection: archive.Selection{DigestReferences: true}, Pin: true}
}

var owner = Owner{Name: "apps", UID: "11111111-2222", SpecHash: "abc"}

func TestImportPublishesWholeImages(t *testing.T) {
	for _, tc := range []struct {
		name   string
		stream bool
		pack   func(t *testing.T, tar []byte) []byte
	}{
		{"random access", false, nil},
		{"stream", true, nil},
		{"gzip outside", false, gzipped},
		{"zstd outside, streamed", true, zstandard},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t, "linux/amd64")
			b := build(t, twoImages())
			src := blobOf(t, b, tc.stream)
			if tc.pack != nil {
				data, _ := b.Bytes()
				src.Reader = bytes.NewReader(tc.pack(t, data))
			}
			got, err := n.Import(t.Context(), src, wanted(owner))
			if err != nil {
				t.Fatal(err)
			}
			needed := blobsFor(b, 0)
			if len(got.Images) != 2 || got.Images[0].Name != appName || got.Images[1].Name != toolName ||
				got.Images[0].Digest != b.Images[0].Target.Digest {
				t.Errorf("images %v", got.Images)
			}
			if got.IndexDigest != digest.FromBytes(b.Index) {
				t.Errorf("index digest %s, want %s", got.IndexDigest, digest.FromBytes(b.Index))
			}
			s := n.state(t)
			if len(s.Leases)+len(s.Ingests) != 0 {
				t.Errorf("left behind: leases %v, ingests %v", s.Leases, s.Ingests)
			}
			if len(s.Content) != len(needed) {
				t.Errorf("%d blobs in the store, needed %d: foreign platforms' must go", len(s.Content), len(needed))
			}
			for d := range needed {
				if !n.has(t, d) {
					t.Errorf("lacks %s", d)
				}
			}
			for _, name := range []string{appName, toolName, "registry.example/team/app@" + b.Images[0].Target.Digest.String(),
				b.Images[1].Platforms[0].Config.Digest.String()} {
				img := n.image(t, name)
				if img == nil {
					t.Fatalf("no image %s", name)
				}
				if img.Labels[labelPinned] != valuePinned || img.Labels[labelManaged] != valueManaged || img.Labels[ownerLabel(owner)] == "" {
					t.Errorf("labels of %s: %v", name, img.Labels)
				}
			}
			if len(s.Images) != 6 {
				t.Errorf("images %v", s.Images)
			}
			if tc.pack == nil && !tc.stream && got.Bytes.Written != sum(needed) {
				t.Errorf("written %d bytes, needed %d", got.Bytes.Written, sum(needed))
			}
			if got.Bytes.Read != src.BytesRead() || got.Bytes.Skipped != 0 {
				t.Errorf("bytes %+v, read %d", got.Bytes, src.BytesRead())
			}
		})
	}
}

func gzipped(t *testing.T, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zstandard(t *testing.T, data []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(data, nil)
}

func TestPresentBlobsAreNotMoved(t *testing.T) {
	b := build(t, twoImages())
	needed := sum(blobsFor(b, 0))
	for _, stream := range []bool{false, true} {
		n := newNode(t, "linux/amd64")
		if _, err := n.Import(t.Context(), blobOf(t, b, false), wanted(owner)); err != nil {
			t.Fatal(err)
		}
		again := blobOf(t, b, stream)
		other := owner
		other.UID, other.Name = "33333333", "more"
		got, err := n.Import(t.Context(), again, wanted(other))
		if err != nil {
			t.Fatal(err)
		}
		if got.Bytes.Skipped != needed {
			t.Errorf("stream %v: skipped %d of %d bytes", stream, got.Bytes.Skipped, needed)
		}
		if !stream && (got.Bytes.Written != 0 || got.Bytes.Read > 64<<10 || again.opened.Load() != 0) {
			t.Errorf("moved %+v, %d sections opened", got.Bytes, again.opened.Load())
		}
		// A stream cannot know that a foreign platform's blob will not be wanted, but writes nothing twice.
		if foreign := sum(blobsFor(b, 1)); stream && got.Bytes.Written > foreign {
			t.Errorf("stream: written %d, more than the %d bytes of the other platform", got.Bytes.Written, foreign)
		}
	}
}

func TestDockerArchives(t *testing.T) {
	for _, tc := range []struct {
		name        string
		format      builder.Format
		compression builder.Compression
		stream      bool
	}{
		{"classic", builder.DockerClassic, builder.None, false},
		{"classic, streamed", builder.DockerClassic, builder.None, true},
		{"flat", builder.Docker, builder.None, false},
		{"flat, gzip layers", builder.Docker, builder.Gzip, false},
		{"flat, gzip layers, streamed", builder.Docker, builder.Gzip, true},
		{"hybrid", builder.Hybrid, builder.Gzip, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			shared := builder.Layer{Compression: tc.compression, Files: []builder.File{builder.Noise("shared", 2, 9000)}}
			own := builder.Layer{Compression: tc.compression, Files: []builder.File{builder.Noise("own", 3, 5000)}}
			b := build(t, builder.Archive{Format: tc.format, Images: []builder.Image{
				{Names: []string{appName, "registry.example/team/app:latest"}, Platforms: []builder.PlatformImage{platformImage("linux/amd64", shared, own)}},
				{Names: []string{toolName}, Platforms: []builder.PlatformImage{platformImage("linux/amd64", shared)}},
			}})
			n := newNode(t, "linux/amd64")
			got, err := n.Import(t.Context(), blobOf(t, b, tc.stream), wanted(owner))
			if err != nil {
				t.Fatal(err)
			}
			if len(got.Images) != 3 {
				t.Fatalf("images %v", got.Images)
			}
			s := n.state(t)
			if len(s.Leases)+len(s.Ingests) != 0 {
				t.Errorf("left behind: %v %v", s.Leases, s.Ingests)
			}
			if tc.compression != builder.None {
				return
			}
			// What containerd's own import makes of the same bytes.
			plain := newNode(t, "linux/amd64")
			data, _ := b.Bytes()
			imgs, err := plain.client.Import(plain.in(t.Context()), bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			for _, img := range imgs {
				if ours := n.image(t, img.Name); ours == nil || ours.Target.Digest != img.Target.Digest {
					t.Errorf("%s: %v, containerd's import gives %s", img.Name, ours, img.Target.Digest)
				}
			}
		})
	}
}

func TestBestPlatformIsChosen(t *testing.T) {
	for _, tc := range []struct {
		name, node string
		has        []string
		want       string // empty: none
	}{
		{"exact", "linux/arm64", []string{"linux/amd64", "linux/arm64"}, "linux/arm64"},
		{"older variant serves", "linux/arm/v7", []string{"linux/amd64", "linux/arm/v6"}, "linux/arm/v6"},
		{"best variant wins", "linux/arm/v7", []string{"linux/arm/v6", "linux/arm/v7", "linux/arm/v5"}, "linux/arm/v7"},
		{"64 bit before 32", "linux/amd64", []string{"linux/386", "linux/amd64"}, "linux/amd64"},
		{"newer variant does not serve", "linux/arm/v6", []string{"linux/arm/v7"}, ""},
		{"other", "linux/s390x", []string{"linux/amd64", "linux/arm64"}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			img := builder.Image{Names: []string{appName}}
			for _, p := range tc.has {
				img.Platforms = append(img.Platforms, platformImage(p, layer(p, 2000)))
			}
			n := newNode(t, tc.node)
			b := build(t, builder.Archive{Images: []builder.Image{img}})
			a, err := Open(t.Context(), blobOf(t, b, false))
			if err != nil {
				t.Fatal(err)
			}
			plan, err := n.Plan(t.Context(), a, wanted(owner))
			if tc.want == "" {
				if !errors.Is(err, ErrNoMatchingPlatform) {
					t.Fatalf("error %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if plan.Images[0].Platform != tc.want {
				t.Errorf("chose %s, want %s", plan.Images[0].Platform, tc.want)
			}
			if _, err := n.Import(t.Context(), blobOf(t, b, false), wanted(owner)); err != nil {
				t.Error(err)
			}
		})
	}
}

// containerd looks at one child of each index only. What it will not find must not be promised.
func TestPlatformThatContainerdWouldNotFind(t *testing.T) {
	image := func(platforms ...string) builder.Image {
		img := builder.Image{Names: []string{appName}, NoPlatform: true}
		for _, p := range platforms {
			img.Platforms = append(img.Platforms, platformImage(p, layer(p, 2000)))
		}
		return img
	}
	for _, tc := range []struct {
		name string
		img  builder.Image
		want error
	}{
		{"the first without a platform is ours", image("linux/amd64", "linux/arm64"), nil},
		{"the first without a platform is another's", image("linux/arm64", "linux/amd64"), ErrNoMatchingPlatform},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t, "linux/amd64")
			b := build(t, builder.Archive{Images: []builder.Image{tc.img}})
			before := n.state(t)
			if _, err := n.Import(t.Context(), blobOf(t, b, false), wanted(owner)); !errors.Is(err, tc.want) {
				t.Errorf("error %v", err)
			}
			if tc.want != nil {
				unchanged(t, before, n.state(t))
			}
		})
	}
}

// containerd's import numbers the children of an index anew for each platform, and would let go of the other's.
func TestSecondPlatformLeavesTheFirst(t *testing.T) {
	n := newNode(t, "linux/arm64")
	b := build(t, twoImages())
	if _, err := n.Import(t.Context(), blobOf(t, b, false), wanted(owner)); err != nil {
		t.Fatal(err)
	}
	other := n.other("linux/amd64")
	for range 2 {
		if _, err := other.Import(t.Context(), blobOf(t, b, false), wanted(named("other", "2"))); err != nil {
			t.Fatal(err)
		}
	}
	for platform := range 2 {
		for d := range blobsFor(b, platform) {
			if !n.has(t, d) {
				t.Errorf("platform %d lacks %s", platform, d)
			}
		}
	}
}

func TestOtherPlatformsImagesAreLeftOut(t *testing.T) {
	a := twoImages()
	a.Images[1].Platforms = a.Images[1].Platforms[1:] // the tool is for arm64 only
	n := newNode(t, "linux/amd64")
	got, err := n.Import(t.Context(), blobOf(t, build(t, a), false), wanted(owner))
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Images) != 1 || got.Images[0].Name != appName || n.image(t, toolName) != nil {
		t.Errorf("images %v", got.Images)
	}
}

// What an archive leaves out must be in the store, as after `ctr images export` of one platform.
func TestPartialArchiveCountsOnTheStore(t *testing.T) {
	whole := build(t, twoImages())
	n := newNode(t, "linux/amd64")
	if _, err := n.Import(t.Context(), blobOf(t, whole, false), wanted(owner)); err != nil {
		t.Fatal(err)
	}
	partial := build(t, twoImages())
	partial.Edit(builder.Omit(builder.BlobPath(whole.Images[0].Platforms[0].Layers[0].Digest), builder.BlobPath(whole.Images[0].Platforms[1].Manifest.Digest)))
	other := owner
	other.UID, other.Name = "4444", "partial"
	if _, err := n.Import(t.Context(), blobOf(t, partial, false), wanted(other)); err != nil {
		t.Errorf("a store that has the layer: %v", err)
	}
	if _, err := newNode(t, "linux/amd64").Import(t.Context(), blobOf(t, partial, false), wanted(other)); !errors.Is(err, ErrContentIncomplete) {
		t.Errorf("an empty store: %v", err)
	}
}
