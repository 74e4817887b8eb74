// Package integration tests the importer and the command line on a real containerd.
package integration

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/google/go-cmp/cmp"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/internal/source"
	"github.com/tarlift/tarlift/test/cluster"
)

func TestMain(m *testing.M) { cluster.Main(m) }

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
	i, err := importer.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { i.Close() })
	return i
}

// state is all that an import could change in a namespace, as sorted lines.
func (r *runtime) state(t *testing.T) map[string][]string {
	t.Helper()
	s := map[string][]string{"images": {}, "content": {}, "ingests": {}, "leases": {}, "snapshots": {}}
	images, err := r.ImageService().List(r.ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range images {
		s["images"] = append(s["images"], fmt.Sprint(i.Name, " ", i.Target.Digest, " ", labels(i.Labels)))
	}
	err = r.ContentStore().Walk(r.ctx, func(i content.Info) error {
		s["content"] = append(s["content"], i.Digest.String())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	ingests, err := r.ContentStore().ListStatuses(r.ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range ingests {
		s["ingests"] = append(s["ingests"], i.Ref)
	}
	leases, err := r.LeasesService().List(r.ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range leases {
		s["leases"] = append(s["leases"], l.ID)
	}
	err = r.SnapshotService("overlayfs").Walk(r.ctx, func(_ context.Context, i snapshots.Info) error {
		s["snapshots"] = append(s["snapshots"], i.Name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, lines := range s {
		slices.Sort(lines)
	}
	return s
}

// labels leaves out the lease of the import that wrote a name, which is another each time.
func labels(l map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(l)) {
		out = append(out, k+"="+leaseField.ReplaceAllString(l[k], ""))
	}
	return strings.Join(out, ",")
}

var leaseField = regexp.MustCompile(`,"lease":"[^"]*"`)

func unchanged(t *testing.T, before, after map[string][]string) {
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

func request(uid string) importer.Request {
	return importer.Request{
		Owner:     importer.Owner{Name: "archive-" + uid, UID: uid, SpecHash: "spec"},
		Selection: archive.Selection{DigestReferences: true}, Unpack: true, Pin: true,
	}
}
