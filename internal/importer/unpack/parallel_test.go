package unpack

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"github.com/containerd/log"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	"go.uber.org/goleak"
	"golang.org/x/sync/semaphore"
)

func TestMain(m *testing.M) {
	_ = log.SetLevel("error") // containerd's store warns of file systems without fs-verity
	goleak.VerifyTestMain(m)
}

// fakeDaemon is containerd's own content store, metadata database and native snapshotter, by another name, in this process. What
// applies layers looks like containerd's diff service, but for the files.
type fakeDaemon struct {
	store    content.Store
	layers   snapshots.Snapshotter
	name     string          // the snapshotter's
	ignores  bool            // it does not look at the layers below
	mounts   bool            // it mounts what is to be written to, which needs a directory below
	unlisted []digest.Digest // layers with files in directories that they do not list
	meets    chan struct{}   // layers are applied two at a time, or the test hangs

	mu      sync.Mutex
	applied []string // "before", "on top" or "failed", with the layer's digest
}

// newDaemon is one with an image of four layers.
func newDaemon(t *testing.T, name string) (*fakeDaemon, *Image) {
	t.Helper()
	dir := t.TempDir()
	store, err := local.NewStore(filepath.Join(dir, "content"))
	if err != nil {
		t.Fatal(err)
	}
	layers, err := native.NewSnapshotter(filepath.Join(dir, "native"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { layers.Close() })
	bdb, err := bolt.Open(filepath.Join(dir, "meta.db"), 0o600, &bolt.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { bdb.Close() })
	db := metadata.NewDB(bdb, store, map[string]snapshots.Snapshotter{name: layers})
	if err := db.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	d := &fakeDaemon{store: db.ContentStore(), layers: db.Snapshotter(name), name: name}
	img := &Image{Name: "app:1"}
	for _, text := range []string{"one", "two", "three", "four"} {
		l := d.write(t, ocispec.MediaTypeImageLayerGzip, []byte(text))
		img.Layers, img.DiffIDs = append(img.Layers, l), append(img.DiffIDs, l.Digest) // as if decompressed
	}
	config, err := json.Marshal(ocispec.Image{RootFS: ocispec.RootFS{Type: "layers", DiffIDs: img.DiffIDs}})
	if err != nil {
		t.Fatal(err)
	}
	img.Config = d.write(t, ocispec.MediaTypeImageConfig, config)
	img.Manifest = d.write(t, ocispec.MediaTypeImageManifest, []byte("{}"))
	return d, img
}

func (d *fakeDaemon) write(t *testing.T, mediaType string, data []byte) ocispec.Descriptor {
	t.Helper()
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	ctx := namespaces.WithNamespace(t.Context(), "k8s.io")
	if err := content.WriteBlob(ctx, d.store, desc.Digest.String(), strings.NewReader(string(data)), desc); err != nil {
		t.Fatal(err)
	}
	return desc
}

// unpack unpacks an image, and returns how many bytes it made progress of.
func (d *fakeDaemon) unpack(t *testing.T, img *Image) (done int64, err error) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(namespaces.WithNamespace(t.Context(), "k8s.io"))
	defer cancel(nil)
	ctx, timeout := context.WithTimeout(ctx, 20*time.Second)
	defer timeout()
	var ready ReadySet
	var progress atomic.Int64
	u := New(ctx, Options{
		Content: d.store, Applier: d, Snapshotter: d.layers, SnapshotterName: d.name,
		Capabilities: func(context.Context, string) ([]string, error) { return []string{snapshots.RebaseCap}, nil },
		Applies:      semaphore.NewWeighted(2), Writing: new(atomic.Int32),
		Ready: ready.Wait, Progress: func(n int64) { progress.Add(n) }, Fail: cancel,
	})
	blobs := append([]ocispec.Descriptor{img.Manifest, img.Config}, img.Layers...)
	u.Start([]*Image{img}, blobs)
	for _, l := range slices.Backward(img.Layers) {
		ready.Add(l.Digest)
	}
	u.Start([]*Image{img}, blobs) // is no matter
	u.Wait()
	return progress.Load(), context.Cause(ctx)
}

func (d *fakeDaemon) Apply(
	ctx context.Context, layer ocispec.Descriptor, mounts []mount.Mount, _ ...diff.ApplyOpt,
) (ocispec.Descriptor, error) {
	probed := slices.Contains(mounts[0].Options, "lowerdir=/dev/null")
	before := probed || mounts[0].Type == "overlay"
	ours := layer.MediaType == ocispec.MediaTypeImageLayer // by which it is found out what this daemon does
	noDirectory := errors.New("lstat /dev/null/home: not a directory")
	var err error
	switch {
	case d.mounts && before:
		err = errors.New("mount: invalid argument")
	case probed && ours && !d.ignores:
		err = noDirectory
	case probed && slices.Contains(d.unlisted, layer.Digest):
		for d.count() < 3 && ctx.Err() == nil { // the others would all wait for those below them
			time.Sleep(time.Millisecond)
		}
		err = noDirectory
	}
	if ours {
		return ocispec.Descriptor{}, err
	}
	how := map[bool]string{true: "before ", false: "on top "}[before]
	if err != nil {
		how = "failed "
	}
	d.mu.Lock()
	d.applied = append(d.applied, how+layer.Digest.String())
	d.mu.Unlock()
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if d.meets != nil {
		select {
		case d.meets <- struct{}{}:
		case <-d.meets:
		case <-ctx.Done():
			return ocispec.Descriptor{}, ctx.Err()
		}
	}
	data, err := content.ReadBlob(ctx, d.store, layer)
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(data), Size: layer.Size}, err
}

func (d *fakeDaemon) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.applied)
}

// Layers are applied before their parents only by a containerd that says which of them need these.
func TestLayersAreAppliedBeforeTheirParents(t *testing.T) {
	inOrder := []string{"on top 0", "on top 1", "on top 2", "on top 3"}
	for name, tc := range map[string]struct {
		snapshotter string
		set         func(*fakeDaemon, *Image)
		applied     []string // sorted; nil for one that needs its parent
	}{
		"in parallel": {
			"overlayfs", func(d *fakeDaemon, _ *Image) { d.meets = make(chan struct{}) },
			[]string{"before 1", "before 2", "before 3", "on top 0"},
		},
		"another snapshotter": {"native", func(*fakeDaemon, *Image) {}, inOrder},
		"it does not look":    {"overlayfs", func(d *fakeDaemon, _ *Image) { d.ignores = true }, inOrder},
		"it mounts":           {"overlayfs", func(d *fakeDaemon, _ *Image) { d.mounts = true }, inOrder},
		"the highest needs more": {
			"overlayfs", func(d *fakeDaemon, img *Image) { d.unlisted = img.DiffIDs[3:] },
			nil, // those below may have been committed before, or not
		},
	} {
		t.Run(name, func(t *testing.T) {
			d, img := newDaemon(t, tc.snapshotter)
			tc.set(d, img)
			done, err := d.unpack(t, img)
			if want := img.Manifest.Size + img.Config.Size + int64(len("onetwothreefour")); err != nil || done != want {
				t.Fatalf("error %v, progress of %d bytes, want %d", err, done, want)
			}
			for k, a := range d.applied {
				how, sum, _ := strings.Cut(a, "sha256:")
				d.applied[k] = how + strconv.Itoa(slices.Index(img.DiffIDs, digest.Digest("sha256:"+sum)))
			}
			slices.Sort(d.applied)
			if tc.applied == nil {
				if !slices.Contains(d.applied, "failed 3") || !slices.Contains(d.applied, "on top 3") {
					t.Errorf("layers were applied: %q", d.applied)
				}
			} else if diff := cmp.Diff(tc.applied, d.applied); diff != "" {
				t.Errorf("layers were applied (-want +got):\n%s", diff)
			}
			parents := 0
			ctx := namespaces.WithNamespace(t.Context(), "k8s.io")
			err = d.layers.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
				if i.Kind != snapshots.KindCommitted {
					t.Errorf("%s is left over", i.Name)
				}
				if i.Parent != "" {
					parents++
				}
				return nil
			})
			if err != nil || parents != len(img.Layers)-1 {
				t.Errorf("%d snapshots with parents, %v", parents, err)
			}
			if left, err := Estimate(ctx, d.layers, []*Image{img}); left != 0 || err != nil {
				t.Errorf("%d bytes are left to unpack, error %v", left, err)
			}
		})
	}
}

var errInjected = errors.New("injected")

// unlabelled is a content store that lets nobody say what a blob is when it is not compressed, as after a restart.
type unlabelled struct {
	content.Store
	blob digest.Digest
}

func (u unlabelled) Update(ctx context.Context, info content.Info, paths ...string) (content.Info, error) {
	if info.Digest == u.blob && slices.Contains(paths, "labels."+labels.LabelUncompressed) {
		return info, errInjected
	}
	return u.Store.Update(ctx, info, paths...)
}

// A layer that was applied and cannot be labelled ends the import.
func TestLayerThatCannotBeLabelled(t *testing.T) {
	d, img := newDaemon(t, "overlayfs")
	d.store = unlabelled{d.store, img.Layers[1].Digest}
	if _, err := d.unpack(t, img); err == nil || !strings.Contains(err.Error(), errInjected.Error()) {
		t.Errorf("error %v", err)
	}
}
