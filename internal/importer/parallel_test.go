package importer

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// errNoDirectory is how a containerd says that it has looked for the parent of a layer where there is none.
var errNoDirectory = errors.New("lstat /dev/null/home: not a directory")

// probedApplier is a containerd's diff service, but for the files.
type probedApplier struct {
	hashingApplier
	ignores  bool            // it does not look at the layers below
	mounts   bool            // it mounts what is to be written to, which needs a directory below
	unlisted []digest.Digest // layers with files in directories that they do not list; ours is one

	mu      sync.Mutex
	applied []string // "before", "on top" or "failed", with the layer's digest
	meets   chan struct{}
}

func (l *probedApplier) Apply(ctx context.Context, d ocispec.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	probed := slices.ContainsFunc(mounts[0].Options, func(o string) bool { return o == "lowerdir=/dev/null" })
	before := probed || mounts[0].Type == "overlay"
	probe := d.MediaType == ocispec.MediaTypeImageLayer
	var err error
	switch {
	case l.mounts && before:
		err = errors.New("mount: invalid argument")
	case probed && probe && !l.ignores:
		err = errNoDirectory
	case probed && slices.Contains(l.unlisted, d.Digest):
		for l.count() < 3 && ctx.Err() == nil { // the others would all wait for those below them
			time.Sleep(time.Millisecond)
		}
		err = errNoDirectory
	}
	if probe {
		return ocispec.Descriptor{}, err
	}
	how := map[bool]string{true: "before ", false: "on top "}[before]
	if err != nil {
		how = "failed "
	}
	l.mu.Lock()
	l.applied = append(l.applied, how+d.Digest.String())
	l.mu.Unlock()
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if l.meets != nil { // two at a time, or the test hangs
		select {
		case l.meets <- struct{}{}:
		case <-l.meets:
		case <-ctx.Done():
			return ocispec.Descriptor{}, ctx.Err()
		}
	}
	return l.hashingApplier.Apply(ctx, d, mounts, opts...)
}

func (l *probedApplier) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.applied)
}

// Layers are applied before their parents only by a containerd that says which of them need these.
func TestLayersAreAppliedBeforeTheirParents(t *testing.T) {
	b := build(t, single(layer("one", 1000), layer("two", 1000), layer("three", 1000), layer("four", 1000)))
	var layers []digest.Digest
	for _, l := range b.Images[0].Platforms[0].Layers {
		layers = append(layers, l.Digest)
	}
	inOrder := []string{"on top 0", "on top 1", "on top 2", "on top 3"}
	for name, tc := range map[string]struct {
		snapshotter string
		daemon      *probedApplier
		applied     []string // sorted
		meet        bool
	}{
		"before":                 {"overlayfs", &probedApplier{}, []string{"before 1", "before 2", "before 3", "on top 0"}, true},
		"another snapshotter":    {"native", &probedApplier{}, inOrder, false},
		"it does not look":       {"overlayfs", &probedApplier{ignores: true}, inOrder, false},
		"it mounts":              {"overlayfs", &probedApplier{mounts: true}, inOrder, false},
		"the highest needs more": {"overlayfs", &probedApplier{unlisted: layers[3:]}, []string{"before 1", "before 2", "failed 3", "on top 0", "on top 3"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			begin := make(chan struct{})
			close(begin)
			tc.daemon.begin = begin
			if tc.meet {
				tc.daemon.meets = make(chan struct{})
			}
			n, s := newNodeUnpackingWith(t, tc.snapshotter, func(s content.Store) diff.Applier {
				tc.daemon.store = s
				return tc.daemon
			})
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			req := wanted(owner)
			req.Unpack = true
			if _, err := n.Import(ctx, blobOf(t, b, false), req); err != nil {
				t.Fatal(err)
			}
			for k, a := range tc.daemon.applied {
				how, d, _ := strings.Cut(a, "sha256:")
				tc.daemon.applied[k] = how + string(rune('0'+slices.Index(layers, digest.Digest("sha256:"+d))))
			}
			slices.Sort(tc.daemon.applied)
			if diff := cmp.Diff(tc.applied, tc.daemon.applied); diff != "" {
				t.Errorf("layers were applied (-want +got):\n%s", diff)
			}
			parents := 0
			err := s.Walk(n.in(t.Context()), func(_ context.Context, i snapshots.Info) error {
				if i.Kind != snapshots.KindCommitted {
					t.Errorf("%s is left over", i.Name)
				}
				if i.Parent != "" {
					parents++
				}
				return nil
			})
			if err != nil || parents != len(layers)-1 {
				t.Errorf("%d snapshots with parents, %v", parents, err)
			}
		})
	}
}

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

// A layer that waits for one below it, which the Unpacker gives up after it failed with a still lower one, does not wait for
// ever.
func TestLayersBelowAreGivenUp(t *testing.T) {
	b := build(t, single(layer("one", 1000), layer("two", 1000), layer("three", 1000), layer("four", 1000)))
	begin := make(chan struct{})
	close(begin)
	blobs := b.Images[0].Platforms[0].Layers
	daemon := &probedApplier{hashingApplier: hashingApplier{begin: begin}, unlisted: []digest.Digest{blobs[3].Digest}}
	n, _ := newNodeUnpackingWith(t, "overlayfs", func(s content.Store) diff.Applier {
		daemon.store = s
		return daemon
	})
	n.useContent(unlabelled{n.services.content, blobs[1].Digest})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	req := wanted(owner)
	req.Unpack = true
	if _, err := n.Import(ctx, blobOf(t, b, false), req); err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), errInjected.Error()) {
		t.Errorf("error %v", err)
	}
}
