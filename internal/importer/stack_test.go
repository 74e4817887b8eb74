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

// errNoDirectory is how a containerd tells that it has looked at the snare.
var errNoDirectory = errors.New("lstat /dev/null/home: not a directory")

// lookingApplier is a containerd's diff service, but for the files.
type lookingApplier struct {
	hashingApplier
	blind    bool            // it does not look at the layers below
	mounts   bool            // it mounts what is to be written to, which needs a directory below
	unlisted []digest.Digest // layers with files in directories that they do not list; ours is one

	mu      sync.Mutex
	applied []string // "early", "on top" or "failed", with the layer's digest
	meets   chan struct{}
}

func (l *lookingApplier) Apply(ctx context.Context, d ocispec.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	snare := slices.ContainsFunc(mounts[0].Options, func(o string) bool { return o == "lowerdir=/dev/null" })
	early := snare || mounts[0].Type == "overlay"
	probe := d.MediaType == ocispec.MediaTypeImageLayer
	var err error
	switch {
	case l.mounts && early:
		err = errors.New("mount: invalid argument")
	case snare && probe && !l.blind:
		err = errNoDirectory
	case snare && slices.Contains(l.unlisted, d.Digest):
		for l.count() < 3 && ctx.Err() == nil { // the others would all wait for those below them
			time.Sleep(time.Millisecond)
		}
		err = errNoDirectory
	}
	if probe {
		return ocispec.Descriptor{}, err
	}
	how := map[bool]string{true: "early ", false: "on top "}[early]
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

func (l *lookingApplier) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.applied)
}

// Layers are applied early only by a containerd that tells which of them need those below.
func TestLayersAreAppliedEarly(t *testing.T) {
	b := build(t, single(layer("one", 1000), layer("two", 1000), layer("three", 1000), layer("four", 1000)))
	var layers []digest.Digest
	for _, l := range b.Images[0].Platforms[0].Layers {
		layers = append(layers, l.Digest)
	}
	inOrder := []string{"on top 0", "on top 1", "on top 2", "on top 3"}
	for name, tc := range map[string]struct {
		snapshotter string
		daemon      *lookingApplier
		applied     []string // sorted
		meet        bool
	}{
		"early":                  {"overlayfs", &lookingApplier{}, []string{"early 1", "early 2", "early 3", "on top 0"}, true},
		"another snapshotter":    {"native", &lookingApplier{}, inOrder, false},
		"it does not look":       {"overlayfs", &lookingApplier{blind: true}, inOrder, false},
		"it mounts":              {"overlayfs", &lookingApplier{mounts: true}, inOrder, false},
		"the highest needs more": {"overlayfs", &lookingApplier{unlisted: layers[3:]}, []string{"early 1", "early 2", "failed 3", "on top 0", "on top 3"}, false},
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
	daemon := &lookingApplier{hashingApplier: hashingApplier{begin: begin}, unlisted: []digest.Digest{blobs[3].Digest}}
	n, _ := newNodeUnpackingWith(t, "overlayfs", func(s content.Store) diff.Applier {
		daemon.store = s
		return daemon
	})
	n.services.content = unlabelled{n.services.content, blobs[1].Digest}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	req := wanted(owner)
	req.Unpack = true
	if _, err := n.Import(ctx, blobOf(t, b, false), req); err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), errInjected.Error()) {
		t.Errorf("error %v", err)
	}
}

// failing is a snapshotter that commits nothing on top of others.
type failing struct{ snapshots.Snapshotter }

func (failing) Commit(context.Context, string, string, ...snapshots.Opt) error {
	return errors.New("no commit")
}

// A layer that waits for one below it that cannot be committed does not wait for ever.
func TestLayersBelowFail(t *testing.T) {
	var failed error
	ctx, cancel := context.WithCancel(t.Context())
	s := newStack(failing{}, []digest.Digest{"sha256:one", "sha256:two"}, func(err error) {
		failed = err
		cancel()
	})
	if err := s.Commit(ctx, "sha256:one", "extract-one"); err == nil || failed == nil {
		t.Errorf("error %v, the import's %v", err, failed)
	}
	if err := s.committed.wait(ctx, "sha256:one"); !errors.Is(err, context.Canceled) {
		t.Errorf("who waits gets %v", err)
	}
}
