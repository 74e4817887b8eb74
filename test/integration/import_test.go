package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	goruntime "runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/internal/source"
	"github.com/tarlift/tarlift/test/cluster"
)

const app = "registry.example/team/app:1"

// What was imported is unpacked, survives garbage collection, and is known to be there. CRI sees it by all names that its own
// pull would leave, pinned.
func TestImportedImageIsCRIs(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{CRI: true})
	path := fileOf(t, tarOf(t, builder.Archive{Images: []builder.Image{image(app, gzipLayer("a", 40_000), gzipLayer("b", 20_000))}}))
	i, req := r.importer(t), request("1")
	got, err := i.Import(t.Context(), open(t, path), req)
	if err != nil {
		t.Fatal(err)
	}
	collect(t, r)
	published := r.namesOf(t, app)
	for _, name := range published {
		r.pinned(t, name, true)
		status, err := r.cri().ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}})
		if err != nil {
			t.Fatal(err)
		}
		if i := status.Image; i.Id != published[2] || !slices.Equal(i.RepoTags, published[:1]) || !slices.Equal(i.RepoDigests, published[1:2]) {
			t.Errorf("CRI has %s as %v, want %v", name, i, published)
		}
		record, err := r.ImageService().Get(r.ctx, name)
		if err != nil || record.Target.Digest != got.Images[0].Digest || record.Labels["io.cri-containerd.image"] != "managed" {
			t.Errorf("%s stands for %s, labels %v, %v", name, record.Target.Digest, record.Labels, err)
		}
	}
	image, err := r.GetImage(r.ctx, app)
	if err != nil {
		t.Fatal(err)
	}
	if unpacked, err := image.IsUnpacked(r.ctx, "overlayfs"); err != nil || !unpacked {
		t.Errorf("unpacked %v, error %v", unpacked, err)
	}
	again, loss, ok, err := i.Imported(t.Context(), req.Owner)
	if err != nil || !ok || loss != "" || again.IndexDigest != got.IndexDigest {
		t.Errorf("imported %v %+v, error %v", ok, again, err)
	}
	s := r.state(t)
	if len(s["leases"])+len(s["ingests"]) != 0 || !slices.Equal(r.allNames(t, "k8s.io"), published) || !slices.Equal(got.Names, published) {
		t.Errorf("names %v, state %v", got.Names, s)
	}
	removeLeaf(t, r)
	if _, loss, ok, err := i.Imported(t.Context(), req.Owner); !ok || loss == "" || err != nil {
		t.Errorf("imported %v without its top snapshot, loss %q, error %v", ok, loss, err)
	}
	if moved, err := i.Import(t.Context(), open(t, path), req); err != nil || moved.Bytes.Written != 0 {
		t.Errorf("moved %+v, error %v", moved.Bytes, err)
	}
	if _, loss, ok, _ := i.Imported(t.Context(), req.Owner); !ok || loss != "" {
		t.Error("not unpacked again")
	}
}

// collect makes containerd collect its garbage.
func collect(t *testing.T, r *runtime) {
	t.Helper()
	l, err := r.LeasesService().Create(r.ctx, leases.WithRandomID())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.LeasesService().Delete(r.ctx, l, leases.SynchronousDelete); err != nil {
		t.Fatal(err)
	}
}

// removeLeaf removes a snapshot that is nobody's parent.
func removeLeaf(t *testing.T, r *runtime) {
	t.Helper()
	s := r.SnapshotService("overlayfs")
	for _, name := range r.state(t)["snapshots"] {
		if err := s.Remove(r.ctx, name); err == nil {
			return
		}
	}
	t.Fatal("no snapshot could be removed")
}

// A layer whose content is not what the config says is found while unpacking, after all has been transferred.
func TestWrongDiffIDChangesNothing(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{})
	r.bystander(t)
	before := r.state(t)
	_, err := r.importer(t).Import(t.Context(), open(t, fileOf(t, wrongDiffIDs(t))), request("1"))
	if !errors.Is(err, archive.ErrDigestMismatch) {
		t.Errorf("error %v", err)
	}
	unchanged(t, before, r.state(t))
}

// An image may have no layers at all, and many.
func TestNumbersOfLayers(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{})
	var many []builder.Layer
	for k := range 100 {
		many = append(many, gzipLayer(fmt.Sprint("layer-", k), 100))
	}
	for name, layers := range map[string][]builder.Layer{"none": nil, "many": many} {
		i, req := r.importer(t), request(name)
		before, most := goruntime.NumGoroutine(), 0
		req.Progress = func(importer.Progress) { most = max(most, goruntime.NumGoroutine()) }
		path := fileOf(t, tarOf(t, builder.Archive{Images: []builder.Image{image("registry.example/"+name+":1", layers...)}}))
		if _, err := i.Import(t.Context(), open(t, path), req); err != nil {
			t.Fatal(err)
		}
		if _, loss, ok, err := i.Imported(t.Context(), req.Owner); !ok || loss != "" || err != nil {
			t.Errorf("%s: imported %v, error %v", name, ok, err)
		}
		// Each layer that is unpacked has one. A stream of each blob that was not ended would add some more.
		if most > before+len(layers)+50 {
			t.Errorf("%s: %d goroutines, %d before", name, most, before)
		}
	}
}

// A layer that has its digest but is no tar is the archive's fault, with the same text every time.
func TestLayerThatIsNoTar(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{})
	before := r.state(t)
	junk := bytes.Repeat([]byte("no tar archive "), 1000)
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(junk), Size: int64(len(junk))}
	data := handmade(t, []ocispec.Descriptor{d}, []digest.Digest{d.Digest}, builder.FileMember(builder.BlobPath(d.Digest), junk))
	path, texts := fileOf(t, data), map[string]bool{}
	for range 2 {
		_, err := r.importer(t).Import(t.Context(), open(t, path), request("1"))
		if !errors.Is(err, archive.ErrInvalid) {
			t.Fatalf("error %v", err)
		}
		texts[err.Error()] = true
	}
	if len(texts) != 1 {
		t.Errorf("different texts: %v", texts)
	}
	unchanged(t, before, r.state(t))
}

// containerd restarts while an import without Keep is under way: what it left is cleared up when it is back.
func TestClearedUpAfterARestart(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{})
	r.bystander(t)
	before := r.state(t)
	path := fileOf(t, tarOf(t, builder.Archive{Images: []builder.Image{image(app, gzipLayer("a", 4<<20), gzipLayer("b", 12<<20))}}))
	var once sync.Once
	started := make(chan error, 1)
	src := &faulty{Blob: open(t, path), at: 10 << 20, fault: func() error {
		once.Do(func() {
			r.Containerd.Kill()
			go func() {
				time.Sleep(time.Second) // the importer has noticed by then
				started <- r.Containerd.Start(t.Context())
			}()
		})
		return nil
	}}
	if _, err := r.importer(t).Import(t.Context(), src, request("1")); !errors.Is(err, importer.ErrRuntimeUnavailable) {
		t.Errorf("error %v", err)
	}
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	unchanged(t, before, r.state(t))
}

// The daemon dies while a blob is on its way. The next attempt continues, and a failed one without Keep would
// have left nothing.
func TestDaemonKilledDuringTransfer(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{})
	path := fileOf(t, tarOf(t, builder.Archive{Images: []builder.Image{image(app, gzipLayer("a", 4<<20), gzipLayer("b", 12<<20))}}))
	i, req := r.importer(t), request("1")
	req.Keep = true
	var once sync.Once
	src := &faulty{Blob: open(t, path), at: 10 << 20, fault: func() error {
		once.Do(func() { r.Containerd.Kill() })
		return nil
	}}
	_, err := i.Import(t.Context(), src, req)
	if !errors.Is(err, importer.ErrRuntimeUnavailable) {
		t.Fatalf("error %v", err)
	}
	if err := r.Containerd.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, err := i.Import(t.Context(), open(t, path), req)
	for deadline := time.Now().Add(10 * time.Second); errors.Is(err, importer.ErrRuntimeUnavailable) && time.Now().Before(deadline); {
		time.Sleep(50 * time.Millisecond) // the client pauses between two dials
		got, err = i.Import(t.Context(), open(t, path), req)
	}
	if err != nil {
		t.Fatal(err)
	}
	if got.Bytes.Read > 9<<20 {
		t.Errorf("read %d bytes again", got.Bytes.Read)
	}
	s := r.state(t)
	if len(s["leases"])+len(s["ingests"]) != 0 {
		t.Errorf("left behind %v %v", s["leases"], s["ingests"])
	}
}

// Importers of the same blobs neither block nor spoil one another.
func TestImportersSideBySide(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{})
	path := fileOf(t, tarOf(t, builder.Archive{Images: []builder.Image{image(app, gzipLayer("a", 2<<20), gzipLayer("b", 3<<20))}}))
	var all errgroup.Group
	for k := range 4 {
		i, src := r.importer(t), open(t, path)
		all.Go(func() error {
			_, err := i.Import(t.Context(), src, request(fmt.Sprint(k)))
			return err
		})
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
	for k := range 4 {
		if _, loss, ok, err := r.importer(t).Imported(t.Context(), request(fmt.Sprint(k)).Owner); !ok || loss != "" || err != nil {
			t.Errorf("archive %d: imported %v, error %v", k, ok, err)
		}
	}
	s := r.state(t)
	if len(s["leases"])+len(s["ingests"]) != 0 || !slices.Equal(r.allNames(t, "k8s.io"), r.namesOf(t, app)) {
		t.Errorf("state %v", s)
	}
}

// A source that stalls holds up its own import only. With the references that containerd's import derives from
// member names, the second import would wait for the first.
func TestStalledImportBlocksNobody(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{})
	path := fileOf(t, tarOf(t, builder.Archive{Images: []builder.Image{image(app, gzipLayer("a", 2<<20), gzipLayer("b", 3<<20))}}))
	stalled, release := make(chan struct{}), make(chan struct{})
	var first errgroup.Group
	src := &faulty{Blob: open(t, path), at: 1 << 20, fault: func() error {
		select {
		case stalled <- struct{}{}:
			<-release
		case <-release:
		}
		return nil
	}}
	i := r.importer(t)
	first.Go(func() error {
		_, err := i.Import(t.Context(), src, request("slow"))
		return err
	})
	<-stalled
	if _, err := i.Import(t.Context(), open(t, path), request("quick")); err != nil {
		t.Error(err)
	}
	if _, _, ok, _ := i.Imported(t.Context(), request("slow").Owner); ok {
		t.Error("the stalled import had ended")
	}
	close(release)
	if err := first.Wait(); err != nil {
		t.Error(err)
	}
}

// faulty calls fault before every read of a section once at bytes have been taken from the source.
type faulty struct {
	source.Blob
	at    int64
	fault func() error
}

func (f *faulty) Section(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	r, err := f.Blob.Section(ctx, off, n)
	return &faultySection{r, f}, err
}

type faultySection struct {
	io.ReadCloser
	f *faulty
}

func (s *faultySection) Read(p []byte) (int, error) {
	if s.f.BytesRead() >= s.f.at {
		if err := s.f.fault(); err != nil {
			return 0, err
		}
	}
	return s.ReadCloser.Read(p)
}

// wrongDiffIDs is an archive whose config has the diff IDs of its two layers in the wrong order; every digest is
// that of its blob.
func wrongDiffIDs(t *testing.T) []byte {
	t.Helper()
	b, err := builder.Archive{Images: []builder.Image{{Names: []string{app}, Platforms: []builder.PlatformImage{
		{Platform: builder.Platform("linux/amd64"), Layers: []builder.Layer{gzipLayer("a", 40_000), gzipLayer("b", 20_000)}},
	}}}}.Build()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	built := b.Images[0].Platforms[0]
	var layers []builder.Member
	for _, m := range b.Members {
		if m.Name == builder.BlobPath(built.Layers[0].Digest) || m.Name == builder.BlobPath(built.Layers[1].Digest) {
			layers = append(layers, m)
		}
	}
	return handmade(t, built.Layers, []digest.Digest{built.DiffIDs[1], built.DiffIDs[0]}, layers...)
}

// handmade is an archive of one image of these layers and diff IDs, whatever they are.
func handmade(t *testing.T, layers []ocispec.Descriptor, diffIDs []digest.Digest, blobs ...builder.Member) []byte {
	t.Helper()
	config := ocispec.Image{Platform: builder.Platform("linux/amd64"), RootFS: ocispec.RootFS{Type: "layers", DiffIDs: diffIDs}}
	members := append(blobs, builder.FileMember("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)))
	blob := func(mediaType string, v any) ocispec.Descriptor {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
		members = append(members, builder.FileMember(builder.BlobPath(d.Digest), data))
		return d
	}
	two := specs.Versioned{SchemaVersion: 2}
	manifest := blob(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: two, MediaType: ocispec.MediaTypeImageManifest,
		Config: blob(ocispec.MediaTypeImageConfig, config), Layers: layers,
	})
	manifest.Annotations = map[string]string{images.AnnotationImageName: app}
	index, err := json.Marshal(ocispec.Index{Versioned: two, Manifests: []ocispec.Descriptor{manifest}})
	if err != nil {
		t.Fatal(err)
	}
	data, err := builder.TarBytes(append(members, builder.FileMember("index.json", index))...)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
