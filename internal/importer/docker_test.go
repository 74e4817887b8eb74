package importer

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"maps"
	"path"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/builder"
)

// dockerImages are three of amd64. All stand on one base layer; the last is the
// first one again under a name of its own.
func dockerImages(c builder.Compression) []builder.Image {
	platform := func(names ...string) builder.PlatformImage {
		p := platformImage("linux/amd64")
		for _, name := range append([]string{"base"}, names...) {
			l := layer(name, 256<<10)
			l.Compression = c
			p.Layers = append(p.Layers, l)
		}
		return p
	}
	return []builder.Image{
		{Names: []string{appName, "registry.example/team/app:latest"}, Platforms: []builder.PlatformImage{platform("app")}},
		{Names: []string{toolName}, Platforms: []builder.PlatformImage{platform("tool", "data")}},
		{Names: []string{"registry.example/copy/app:1"}, Platforms: []builder.PlatformImage{platform("app")}},
	}
}

// dockerArchives are the forms that docker archives have.
var dockerArchives = []struct {
	name        string
	format      builder.Format
	compression builder.Compression
	edit        builder.Edit
}{
	{"raw layers by diffID", builder.Docker, builder.None, nil},
	{"a directory a layer, equal ones symlinked", builder.DockerClassic, builder.None, nil},
	{"equal ones hard linked", builder.DockerClassic, builder.None, hardLinks},
	{"symlinks before their targets", builder.DockerClassic, builder.None, linksFirst},
	{"gzip layers by digest", builder.DockerDigest, builder.Gzip, nil},
	{"gzip layers by diffID", builder.Docker, builder.Gzip, nil},
}

// hardLinks makes hard links of symlinks.
func hardLinks(ms []builder.Member) []builder.Member {
	for i, m := range ms {
		if m.Typeflag == tar.TypeSymlink {
			ms[i].Typeflag, ms[i].Linkname = tar.TypeLink, path.Join(path.Dir(m.Name), m.Linkname)
		}
	}
	return ms
}

// linksFirst is the order of docker save, which walks over its layers by name.
func linksFirst(ms []builder.Member) []builder.Member {
	for _, m := range ms {
		if m.Typeflag == tar.TypeSymlink {
			ms = builder.First(m.Name)(ms)
		}
	}
	return ms
}

// formerStores are what a node's content store may hold when an archive comes.
var formerStores = []struct {
	name string
	fill func(t *testing.T, n *node, images []builder.Image)
}{
	{"nothing", func(*testing.T, *node, []builder.Image) {}},
	{"compressed twins of the layers", func(t *testing.T, n *node, images []builder.Image) {
		for diffID, data := range rawLayers(t, images) {
			var b bytes.Buffer
			w, _ := gzip.NewWriterLevel(&b, gzip.BestSpeed)
			if _, err := w.Write(data); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			n.hold(t, b.Bytes(), map[string]string{"containerd.io/uncompressed": diffID.String()})
		}
	}},
	{"the raw layers", func(t *testing.T, n *node, images []builder.Image) {
		for _, data := range rawLayers(t, images) {
			n.hold(t, data, nil)
		}
	}},
	{"the images of an OCI archive", func(t *testing.T, n *node, images []builder.Image) {
		former := builder.Archive{Images: slices.Clone(images)}
		for i := range former.Images {
			former.Images[i].Names = []string{"registry.example/former/image:" + string(rune('a'+i))}
		}
		if _, err := n.Import(t.Context(), blobOf(t, build(t, former), false), wanted(named("former", "9"))); err != nil {
			t.Fatal(err)
		}
	}},
}

// hold writes a blob that no garbage collection takes away.
func (n *node) hold(t *testing.T, data []byte, labels map[string]string) {
	t.Helper()
	all := map[string]string{"containerd.io/gc.root": "test"}
	maps.Copy(all, labels)
	d := ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
	err := content.WriteBlob(n.in(t.Context()), n.services.content, d.Digest.String(), bytes.NewReader(data), d, content.WithLabels(all))
	if err != nil {
		t.Fatal(err)
	}
}

// rawLayers are the layers of images without compression, by their diffIDs.
func rawLayers(t *testing.T, images []builder.Image) map[digest.Digest][]byte {
	t.Helper()
	raw := builder.Archive{Format: builder.Docker}
	for _, img := range images {
		img.Platforms = slices.Clone(img.Platforms)
		layers := slices.Clone(img.Platforms[0].Layers)
		for i := range layers {
			layers[i].Compression = builder.None
		}
		img.Platforms[0].Layers = layers
		raw.Images = append(raw.Images, img)
	}
	out := map[digest.Digest][]byte{}
	for _, m := range build(t, raw).Members {
		if path.Ext(m.Name) != ".tar" {
			continue
		}
		var b bytes.Buffer
		if _, err := b.ReadFrom(m.Open()); err != nil {
			t.Fatal(err)
		}
		out[digest.FromBytes(b.Bytes())] = b.Bytes()
	}
	return out
}

// TestDockerDigestsAreTheArchives: all nodes must agree on an image's digest, so
// it comes of the archive alone. containerd's own import takes a compressed twin
// of a layer that it finds in its store, and gives the image another digest.
func TestDockerDigestsAreTheArchives(t *testing.T) {
	for _, form := range dockerArchives {
		images := dockerImages(form.compression)
		b := build(t, builder.Archive{Format: form.format, Images: images})
		if form.edit != nil {
			b.Edit(form.edit)
		}
		want := map[string]digest.Digest{}
		for _, img := range b.Images {
			for _, name := range img.Names {
				want[name] = img.Target.Digest
			}
		}
		stores := formerStores
		if form.format == builder.DockerClassic {
			stores = stores[:1] // links are followed whatever the store holds
		}
		for _, store := range stores {
			for _, mode := range []string{"random", "stream"} {
				t.Run(form.name+"/"+store.name+"/"+mode, func(t *testing.T) {
					t.Parallel() // the content store waits for the disk most of the time
					n := newNode(t, "linux/amd64")
					store.fill(t, n, images)
					got, err := n.Import(t.Context(), blobOf(t, b, mode == "stream"), wanted(owner))
					if err != nil {
						t.Fatal(err)
					}
					if len(got.Images) != len(want) {
						t.Errorf("%d images, want %d", len(got.Images), len(want))
					}
					published := n.imported(t, "linux/amd64")
					for _, img := range got.Images {
						if img.Digest != want[img.Name] || published[img.Name] != img.Digest.String() {
							t.Errorf("%s: reported %s, published %s, want %s", img.Name, img.Digest, published[img.Name], want[img.Name])
						}
					}
				})
			}
		}
	}
}

// TestDockerLayersAreMovedOnce, however many images have them and however many
// names lead to them.
func TestDockerLayersAreMovedOnce(t *testing.T) {
	for _, form := range dockerArchives {
		t.Run(form.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, "linux/amd64")
			b := build(t, builder.Archive{Format: form.format, Images: dockerImages(form.compression)})
			if form.edit != nil {
				b.Edit(form.edit)
			}
			needed := blobsFor(b, 0)
			src := blobOf(t, b, false)
			got, err := n.Import(t.Context(), src, wanted(owner))
			if err != nil {
				t.Fatal(err)
			}
			if got.Bytes.Written != sum(needed) || got.Bytes.Skipped != 0 {
				t.Errorf("%d bytes were written, %d skipped, needed %d", got.Bytes.Written, got.Bytes.Skipped, sum(needed))
			}
			// Compressed layers whose names are their diffIDs are read before, for their digests.
			most := sum(needed) + 64<<10
			if form.format == builder.Docker && form.compression != builder.None {
				most += sum(needed)
			}
			if src.BytesRead() > most {
				t.Errorf("%d bytes were read, needed %d", src.BytesRead(), sum(needed))
			}
			if s := n.state(t); len(s.Content) != len(needed) {
				t.Errorf("%d blobs in the store, needed %d", len(s.Content), len(needed))
			}
		})
	}
}

// TestFalseLayerNames: a layer that is not what its name says is never published,
// not even when nothing but its last byte is wrong.
func TestFalseLayerNames(t *testing.T) {
	for _, tc := range []struct {
		name        string
		compression builder.Compression
		edit        func(b *builder.Built, member string)
	}{
		{"another blob's digest", builder.Gzip, func(b *builder.Built, member string) {
			other := b.Images[1].Platforms[0].Layers[2].Digest.Encoded() + ".tar.gz"
			b.Edit(builder.Omit(other), builder.Rename(member, other), func(ms []builder.Member) []builder.Member {
				return builder.Add(builder.LinkMember(member, other))(ms)
			})
		}},
		{"a byte is wrong", builder.Gzip, func(b *builder.Built, member string) { b.Edit(builder.Corrupt(member)) }},
		{"a byte of a raw layer is wrong", builder.None, func(b *builder.Built, member string) { b.Edit(builder.Corrupt(member)) }},
	} {
		for _, mode := range []string{"random", "stream"} {
			t.Run(tc.name+"/"+mode, func(t *testing.T) {
				t.Parallel()
				n := newNode(t, "linux/amd64")
				before := n.state(t)
				b := build(t, builder.Archive{Format: builder.DockerDigest, Images: dockerImages(tc.compression)})
				tc.edit(b, b.Images[0].Platforms[0].Layers[1].Digest.Encoded()+".tar.gz")
				_, err := n.Import(t.Context(), blobOf(t, b, mode == "stream"), wanted(owner))
				if !errors.Is(err, archive.ErrDigestMismatch) {
					t.Errorf("%v, want ErrDigestMismatch", err)
				}
				unchanged(t, before, n.state(t))
			})
		}
	}
}
