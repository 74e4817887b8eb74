package archive_test

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	containerdarchive "github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/builder"
)

// contentStore is containerd's own, in a directory of the test.
func contentStore(t *testing.T) content.Store {
	t.Helper()
	dir := t.TempDir()
	cs, err := local.NewStore(filepath.Join(dir, "content"))
	if err != nil {
		t.Fatal(err)
	}
	db, err := bolt.Open(filepath.Join(dir, "meta.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return metadata.NewDB(db, cs, nil).ContentStore()
}

// dockerImages share a layer; the second has the first layer twice.
func dockerImages(c builder.Compression) []builder.Image {
	base := builder.Layer{Files: []builder.File{{Name: "base", Data: []byte("base")}}, Compression: c}
	app := func(s string) builder.Layer {
		return builder.Layer{Files: []builder.File{{Name: "app", Data: []byte(s)}}, Compression: c}
	}
	return []builder.Image{
		{Names: []string{"app:1", "example.com/app:1", "example.com:5000/a/b:2"}, Platforms: []builder.PlatformImage{{Platform: builder.Platform("linux/arm/v7"), Layers: []builder.Layer{base, app("1")}}}},
		{Names: []string{"app:2"}, Platforms: []builder.PlatformImage{{Platform: builder.Platform("linux/arm64"), Layers: []builder.Layer{base, app("2"), base}}}},
		{Platforms: []builder.PlatformImage{{Platform: builder.Platform("windows/amd64")}}},
	}
}

// TestDockerArchivesAreContainerds: index.json and manifests that are made of a
// docker archive are those that `ctr images import` makes.
func TestDockerArchivesAreContainerds(t *testing.T) {
	for _, tc := range []struct {
		name    string
		archive builder.Archive
	}{
		{"classic, equal layers as symlinks", builder.Archive{Format: builder.DockerClassic, Images: dockerImages(builder.None)}},
		{"new", builder.Archive{Format: builder.Docker, Images: dockerImages(builder.None)}},
		{"gzip layers", builder.Archive{Format: builder.Docker, Images: dockerImages(builder.Gzip)}},
		{"zstd layers", builder.Archive{Format: builder.Docker, Images: dockerImages(builder.Zstd)}},
		{"gzip layers named by their digest", builder.Archive{Format: builder.DockerDigest, Images: dockerImages(builder.Gzip)}},
		{"zstd layers named so", builder.Archive{Format: builder.DockerDigest, Images: dockerImages(builder.Zstd)}},
		{"layers without compression named so", builder.Archive{Format: builder.DockerDigest, Images: dockerImages(builder.None)}},
		{"only manifest.json of a hybrid", builder.Archive{Format: builder.Hybrid, Images: dockerImages(builder.Gzip), Edits: []builder.Edit{builder.Omit("oci-layout", "index.json")}}},
	} {
		data := bytesOf(t, tc.archive)
		ctx := namespaces.WithNamespace(t.Context(), "test")
		want, err := containerdarchive.ImportIndex(ctx, contentStore(t), bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		for _, mode := range modes {
			t.Run(tc.name+"/"+mode.name, func(t *testing.T) {
				tree, err := mode.tree(ctx, data)
				if err != nil {
					t.Fatal(err)
				}
				l, err := archive.Decode(ctx, tree)
				if err != nil {
					t.Fatal(err)
				}
				if l.Format != archive.FormatDocker || l.IndexDigest != want.Digest {
					t.Errorf("%s index %s, want %s: %s", l.Format, l.IndexDigest, want.Digest, l.Index)
				}
				wantError(t, use(ctx, tree), nil)
			})
		}
	}
}

// TestDockerBlobsAreFound: what Locate says is where the bytes are.
func TestDockerBlobsAreFound(t *testing.T) {
	for _, f := range []builder.Format{builder.Docker, builder.DockerClassic} {
		b := build(t, builder.Archive{Format: f, Images: dockerImages(builder.None)})
		data := bytesOf(t, b)
		l := decodeRandom(t, data)
		for i, img := range b.Images {
			p := img.Platforms[0]
			for _, d := range append(p.Layers, p.Config) {
				e, ok := l.Locate(d.Digest)
				if !ok || d.Digest.Algorithm().FromBytes(data[e.Offset:e.Offset+e.Size]) != d.Digest {
					t.Errorf("image %d: blob %s is not at %+v", i, d.Digest, e)
				}
			}
			e, ok := l.Locate(p.Manifest.Digest)
			if !ok || p.Manifest.Digest.Algorithm().FromBytes(e.Data) != p.Manifest.Digest {
				t.Errorf("image %d: manifest %s was not made", i, p.Manifest.Digest)
			}
			_, err := l.ReadBlob(t.Context(), p.Config, 10)
			wantError(t, err, archive.ErrLimit)
		}
	}
}

func decodeRandom(t *testing.T, data []byte) *archive.Layout {
	t.Helper()
	tree, err := archive.ReadTree(t.Context(), atBytes(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	l, err := archive.Decode(t.Context(), tree)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestCompressedDockerLayersAreReadOnce: nothing tells the digest of those that are
// named by their diffID.
func TestCompressedDockerLayersAreReadOnce(t *testing.T) {
	r := atBytes(bytesOf(t, builder.Archive{Format: builder.Docker, Images: dockerImages(builder.Gzip)}))
	tree, err := archive.ReadTree(t.Context(), r, r.size)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := archive.Decode(t.Context(), tree); err != nil {
		t.Fatal(err)
	}
	if r.sections != 3 {
		t.Errorf("3 layers took %d reads", r.sections)
	}
}

func dataOf(t *testing.T, m builder.Member) []byte {
	t.Helper()
	var buf bytes.Buffer
	if _, err := buf.ReadFrom(m.Open()); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// TestWrongDockerLayer: in a stream the bytes have passed and are known to be
// wrong; by random access the digest is what the config says, and writing the
// layer under it will tell.
func TestWrongDockerLayer(t *testing.T) {
	a := builder.Archive{Format: builder.Docker, Images: dockerImages(builder.None)[:1]}
	b := build(t, a)
	b.Edit(builder.Corrupt(b.Images[0].Platforms[0].DiffIDs[0].Encoded() + ".tar"))
	data := bytesOf(t, b)
	wantError(t, open(t.Context(), modes[1].tree, data), archive.ErrDigestMismatch)
	l := decodeRandom(t, data)
	if diff := cmp.Diff(b.Images[0].Target.Digest, l.Manifests[0].Digest); diff != "" {
		t.Error(diff)
	}
}

// TestHybridIsOCI: of an archive with both, the layout counts.
func TestHybridIsOCI(t *testing.T) {
	a := builder.Archive{Format: builder.Hybrid, Images: dockerImages(builder.Gzip)[:2]}
	for _, mode := range modes {
		b := build(t, a)
		tree, err := mode.tree(t.Context(), bytesOf(t, b))
		if err != nil {
			t.Fatal(err)
		}
		l, err := archive.Decode(t.Context(), tree)
		if err != nil {
			t.Fatal(err)
		}
		if l.Format != archive.FormatOCI || l.IndexDigest != b.IndexDigest || len(l.Manifests) != 4 {
			t.Errorf("%s index %s of %d", l.Format, l.IndexDigest, len(l.Manifests))
		}
	}
}

// TestPartialArchive: with platforms and attestations absent, as `ctr images
// export` leaves them out, the leaves are there and the present one is whole.
func TestPartialArchive(t *testing.T) {
	img := builder.Image{
		Names:        []string{"example.com/app:1"},
		Platforms:    []builder.PlatformImage{platformImage("linux/amd64"), platformImage("linux/arm64")},
		Attestations: true, AttestationsAbsent: true,
	}
	img.Platforms[1].Absent = true
	b := build(t, builder.Archive{Images: []builder.Image{img}})
	l := decodeRandom(t, bytesOf(t, b))
	leaves, err := (&archive.Resolver{Fetch: fetchFrom(l)}).PlatformManifests(t.Context(), l.Manifests[0])
	if err != nil {
		t.Fatal(err)
	}
	var got []ocispec.Descriptor
	for _, leaf := range leaves {
		got = append(got, ocispec.Descriptor{Digest: leaf.Digest})
	}
	want := []ocispec.Descriptor{{Digest: b.Images[0].Platforms[0].Manifest.Digest}, {Digest: b.Images[0].Platforms[1].Manifest.Digest}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	_, err = archive.ReadManifest(t.Context(), fetchFrom(l), leaves[0].Descriptor)
	wantError(t, err, nil)
	_, err = archive.ReadManifest(t.Context(), fetchFrom(l), leaves[1].Descriptor)
	wantError(t, err, archive.ErrMissing)
}

// TestMetadataIsReadOnce: a remote archive is not asked again, and the whole is bounded.
func TestMetadataIsReadOnce(t *testing.T) {
	r := atBytes(bytesOf(t, simple()))
	tree, err := archive.ReadTree(t.Context(), r, r.size)
	if err != nil {
		t.Fatal(err)
	}
	l, err := archive.Decode(t.Context(), tree)
	if err != nil {
		t.Fatal(err)
	}
	read := func() int64 {
		before := r.read
		if _, err := archive.ReadManifest(context.Background(), fetchFrom(l), l.Manifests[0]); err != nil {
			t.Fatal(err)
		}
		return r.read - before
	}
	if first, again := read(), read(); first == 0 || again != 0 {
		t.Errorf("%d bytes were read, then %d", first, again)
	}
}

func TestMetadataIsBounded(t *testing.T) {
	// Three configs of 6 MiB: each is below its own bound.
	images := dockerImages(builder.None)[:1]
	for range 2 {
		images = append(images, images[0])
	}
	var edits []builder.Edit
	for i := range images {
		images[i].Platforms = []builder.PlatformImage{platformImage("linux/amd64")}
		images[i].Platforms[0].Config.Cmd = []string{strings.Repeat("x", 6<<20), string(rune('a' + i))}
		images[i].Names = nil
	}
	data := bytesOf(t, builder.Archive{Format: builder.Docker, Images: images, Edits: edits})
	for _, mode := range modes {
		wantError(t, open(t.Context(), mode.tree, data), archive.ErrLimit)
	}
}
