package importer

import (
	"archive/tar"
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/internal/source"
)

// manyImages is an archive for measuring: images of layers blobs each, none of
// which two images share, and blobs that no image needs.
type manyImages struct{ images, layers, unneeded int }

// members of the tar: oci-layout and index.json, and each image's manifest, config and layers.
func (m manyImages) members() int { return 2 + m.images*(2+m.layers) + m.unneeded }

// BenchmarkPlan plans an import into a store that holds nothing, of an archive
// that was opened. Of the most members that there may be, 60 % are layers: the
// manifests and configs that name more would be above MaxMetadataBytes.
func BenchmarkPlan(b *testing.B) {
	for _, m := range []manyImages{{1, 1, 0}, {100, 8, 0}, {150, 400, archive.MaxMembers - 2 - 150*402}} {
		b.Run(fmt.Sprintf("members=%d", m.members()), func(b *testing.B) {
			i := contentOnly(b)
			src, err := source.OpenFile(b.Context(), m.write(b))
			if err != nil {
				b.Fatal(err)
			}
			defer src.Close()
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer() // an archive remembers the metadata that was read
				a, err := Open(b.Context(), src)
				if err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				p, err := i.Plan(b.Context(), a, wanted(owner))
				if err != nil {
					b.Fatal(err)
				}
				if want := m.images * (2 + m.layers); len(p.Images) != m.images || len(p.Blobs) != want {
					b.Fatalf("%d images of %d blobs, want %d of %d", len(p.Images), len(p.Blobs), m.images, want)
				}
			}
		})
	}
}

// contentOnly is an importer as newNode makes it, with nothing but what a plan asks.
func contentOnly(b *testing.B) *Importer {
	b.Helper()
	dir := b.TempDir()
	store, err := local.NewStore(filepath.Join(dir, "content"))
	if err != nil {
		b.Fatal(err)
	}
	bdb, err := bolt.Open(filepath.Join(dir, "meta.db"), 0o600, &bolt.Options{NoSync: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { bdb.Close() })
	db := metadata.NewDB(bdb, store, nil)
	if err := db.Init(b.Context()); err != nil {
		b.Fatal(err)
	}
	return &Importer{services: services{content: db.ContentStore()}, options: Options{Namespace: "k8s.io"}, platform: builder.Platform("linux/amd64")}
}

// write writes the archive to a file of the benchmark.
func (m manyImages) write(b *testing.B) (path string) {
	b.Helper()
	path = filepath.Join(b.TempDir(), "many.tar")
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	buffered := bufio.NewWriter(f)
	w := &blobWriter{b, tar.NewWriter(buffered)}
	idx := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for i := range m.images {
		idx.Manifests = append(idx.Manifests, w.image(i, m.layers))
	}
	for i := range m.unneeded {
		w.blob("", fmt.Appendf(nil, "unneeded %d", i))
	}
	w.file(ocispec.ImageIndexFile, w.marshal(idx))
	w.file(ocispec.ImageLayoutFile, w.marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}))
	for _, end := range []func() error{w.Close, buffered.Flush, f.Close} {
		if err := end(); err != nil {
			b.Fatal(err)
		}
	}
	return path
}

// blobWriter writes the members of a layout. Its layers are no tars: plans do not look into them.
type blobWriter struct {
	*testing.B
	*tar.Writer
}

// image writes an image and describes it as index.json does.
func (w *blobWriter) image(number, layers int) ocispec.Descriptor {
	config := ocispec.Image{Platform: builder.Platform("linux/amd64")}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for k := range layers {
		d := w.blob(ocispec.MediaTypeImageLayer, fmt.Appendf(nil, "layer %d of image %d", k, number))
		manifest.Layers = append(manifest.Layers, d)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, d.Digest)
	}
	manifest.Config = w.blob(ocispec.MediaTypeImageConfig, w.marshal(config))
	d := w.blob(ocispec.MediaTypeImageManifest, w.marshal(manifest))
	d.Annotations = map[string]string{ocispec.AnnotationRefName: fmt.Sprintf("registry.example/team/app%d:1", number)}
	d.Platform = &config.Platform
	return d
}

func (w *blobWriter) blob(mediaType string, data []byte) ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	w.file(builder.BlobPath(d.Digest), data)
	return d
}

func (w *blobWriter) file(name string, data []byte) {
	w.Helper()
	if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(data)), Mode: 0o644}); err != nil {
		w.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		w.Fatal(err)
	}
}

func (w *blobWriter) marshal(v any) []byte {
	w.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		w.Fatal(err)
	}
	return data
}
