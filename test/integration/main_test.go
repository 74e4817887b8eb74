// Package integration tests the importer and the command line on a real containerd.
package integration

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/distribution/reference"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/internal/source"
	"github.com/tarlift/tarlift/test/cluster"
	"github.com/tarlift/tarlift/test/node"
)

func TestMain(m *testing.M) {
	if os.Getenv(importsEnv) != "" {
		os.Exit(runImports())
	}
	cluster.Main(m)
}

// runtime is a containerd of a test's own.
type runtime struct {
	*cluster.Node
	*client.Client
	ctx context.Context // of CRI's namespace
}

func startRuntime(t *testing.T, o cluster.ContainerdOptions) *runtime {
	t.Helper()
	n, err := cluster.StartContainerd(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Stop(); err != nil {
			t.Error(err)
		}
	})
	c, err := client.New(n.ContainerdAddress)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &runtime{n, c, namespaces.WithNamespace(t.Context(), "k8s.io")}
}

func (r *runtime) importer(t *testing.T) *importer.Importer {
	t.Helper()
	return r.importerWith(t, importer.Options{})
}

func (r *runtime) importerWith(t *testing.T, o importer.Options) *importer.Importer {
	t.Helper()
	o.Address = r.ContainerdAddress
	if o.Reserve == (importer.Reserve{}) {
		o.Reserve = reserve(t, littleReserve)
	}
	i, err := importer.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { i.Close() })
	return i
}

// littleReserve lets tests run on a machine that is fuller than a node should be.
const littleReserve = "1%"

func reserve(t *testing.T, s string) (r importer.Reserve) {
	t.Helper()
	if err := r.Set(s); err != nil {
		t.Fatal(err)
	}
	return r
}

// state is all that an import could change in CRI's namespace.
func (r *runtime) state(t *testing.T) node.State {
	t.Helper()
	s, err := node.StateOf(r.ctx, r.Client)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func unchanged(t *testing.T, before, after node.State) {
	t.Helper()
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("containerd's state changed (-before +after):\n%s", diff)
	}
}

// bystander imports an image that nobody may touch, the way others do it.
func (r *runtime) bystander(t *testing.T) {
	t.Helper()
	data := tarOf(t, builder.Archive{Images: []builder.Image{image("bystander.example/x:1", gzipLayer("bystander", 5000))}})
	images, err := r.Import(r.ctx, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range images {
		if err := client.NewImage(r.Client, i).Unpack(r.ctx, "overlayfs"); err != nil {
			t.Fatal(err)
		}
	}
	collect(t, r) // the other platform's blobs, which that import brought too
}

func gzipLayer(name string, size int64) builder.Layer {
	return builder.Layer{Compression: builder.Gzip, Files: []builder.File{builder.Noise(name, 1, size)}}
}

func image(name string, layers ...builder.Layer) builder.Image {
	return builder.Image{Names: []string{name}, Platforms: []builder.PlatformImage{
		{Platform: builder.Platform("linux/amd64"), Layers: layers},
		{Platform: builder.Platform("linux/arm64"), Layers: []builder.Layer{gzipLayer("arm64", 3000)}},
	}}
}

func tarOf(t *testing.T, a builder.Archive) []byte {
	t.Helper()
	data, err := a.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func fileOf(t *testing.T, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "archive.tar")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t *testing.T, path string) source.Blob {
	t.Helper()
	b, err := source.OpenFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// names are those of an image, sorted, as a pull by the CRI leaves them: its tag, its digest reference, and its id, which is
// its config's digest.
func names(tag string, target, config digest.Digest) []string {
	return []string{tag, digestReference(tag, target), config.String()}
}

// digestReference is an image's name@digest.
func digestReference(tag string, target digest.Digest) string {
	name, err := reference.ParseNormalizedNamed(tag)
	if err != nil {
		panic(err)
	}
	return reference.TrimNamed(name).String() + "@" + target.String()
}

// namesOf are the names of an image that containerd has under this tag.
func (r *runtime) namesOf(t *testing.T, tag string) []string {
	t.Helper()
	img, err := r.GetImage(r.ctx, tag)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.Config(r.ctx)
	if err != nil {
		t.Fatal(err)
	}
	return names(tag, img.Target().Digest, config.Digest)
}

// allNames are those of a namespace, sorted.
func (r *runtime) allNames(t *testing.T, namespace string) (all []string) {
	t.Helper()
	list, err := r.ImageService().List(namespaces.WithNamespace(t.Context(), namespace))
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range list {
		all = append(all, img.Name)
	}
	slices.Sort(all)
	return all
}

func request(uid string) importer.Request {
	return importer.Request{
		Owner:     importer.Owner{Name: "archive-" + uid, UID: uid, SpecHash: "spec"},
		Selection: archive.Selection{DigestReferences: true}, Unpack: true, Pin: true,
	}
}
