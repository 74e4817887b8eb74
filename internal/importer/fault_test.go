package importer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/internal/importer/transfer"
)

// What archives are refused for is in the corpus. This is the request's fault.
func TestNothingSelectedChangesNothing(t *testing.T) {
	b := build(t, twoImages())
	for _, stream := range []bool{false, true} {
		n := newNode(t, "linux/amd64")
		bystander(t, n)
		before := n.state(t)
		req := wanted(owner)
		req.Selection.Include = []string{"nobody.example/**"}
		if _, err := n.Import(t.Context(), blobOf(t, b, stream), req); !errors.Is(err, archive.ErrInvalidName) {
			t.Errorf("error %v", err)
		}
		unchanged(t, before, n.state(t))
	}
}

// The faults that the importer exists to prevent do happen with containerd's import alone.
func TestPlainImportPublishesBrokenImages(t *testing.T) {
	b := build(t, twoImages())
	b.Edit(builder.Omit(builder.BlobPath(b.Images[0].Platforms[0].Layers[1].Digest)))
	data, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	n := newNode(t, "linux/amd64")
	ctx := n.in(t.Context())
	if _, err := n.client.Import(ctx, bytes.NewReader(data), client.WithImportPlatform(platforms.OnlyStrict(n.platform))); err != nil {
		t.Fatalf("containerd refuses it by now: %v", err)
	}
	img := n.image(t, appName)
	if img == nil {
		t.Fatal("not published")
	}
	_, _, _, missing, err := images.Check(ctx, n.services.content, img.Target, platforms.Only(n.platform))
	if err != nil || len(missing) != 1 {
		t.Errorf("missing %v, error %v", missing, err)
	}
}

// bystander puts an image into the store that nobody may touch.
func bystander(t *testing.T, n *node) {
	t.Helper()
	b := build(t, builder.Archive{Images: []builder.Image{{Names: []string{"bystander.example/x:1"}, Platforms: []builder.PlatformImage{platformImage("linux/amd64", layer("bystander", 4000))}}}})
	data, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.client.Import(n.in(t.Context()), bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	if _, err := n.db.GarbageCollect(t.Context()); err != nil {
		t.Fatal(err)
	}
}

var errInjected = errors.New("injected")

func TestKeptAttemptContinues(t *testing.T) {
	b := build(t, builder.Archive{Images: []builder.Image{{Names: []string{appName}, Platforms: []builder.PlatformImage{
		platformImage("linux/amd64", layer("a", 8<<20), layer("b", 24<<20))}}}})
	for _, keep := range []bool{true, false} {
		n := newNode(t, "linux/amd64")
		before := n.state(t)
		req := wanted(owner)
		req.Keep = keep
		src := blobOf(t, b, false)
		src.onBytes = func(int64) error {
			if src.read.Load() > 24<<20 {
				return errInjected
			}
			return nil
		}
		if _, err := n.Import(t.Context(), src, req); !errors.Is(err, errInjected) {
			t.Fatalf("error %v", err)
		}
		if n.image(t, appName) != nil {
			t.Fatal("published after a failure")
		}
		if _, err := n.db.GarbageCollect(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !keep {
			unchanged(t, before, n.state(t))
			continue
		}
		if s := n.state(t); len(s.Leases) != 1 || len(s.Ingests) == 0 || len(s.Content) == 0 {
			t.Fatalf("kept %+v", s)
		}
		got, err := n.Import(t.Context(), blobOf(t, b, false), req)
		if err != nil {
			t.Fatal(err)
		}
		// Of each blob that was on its way, two pieces had been read and not yet been written.
		if missing := int64(8<<20) + 2*2*transfer.PieceSize; got.Bytes.Read > missing+1<<20 {
			t.Errorf("read %d bytes, of which %d at most were missing", got.Bytes.Read, missing)
		}
		if s := n.state(t); len(s.Leases)+len(s.Ingests) != 0 {
			t.Errorf("left behind %+v", s)
		}
	}
}

func TestReleaseDropsWhatWasKept(t *testing.T) {
	b := build(t, builder.Archive{Images: []builder.Image{{Names: []string{appName}, Platforms: []builder.PlatformImage{platformImage("linux/amd64", layer("b", 5<<20))}}}})
	n := newNode(t, "linux/amd64")
	bystander(t, n)
	before := n.state(t)
	fail := func(o Owner) {
		src := blobOf(t, b, false)
		src.onBytes = func(int64) error {
			if src.read.Load() > 2<<20 {
				return errInjected
			}
			return nil
		}
		req := wanted(o)
		req.Keep = true
		if _, err := n.Import(t.Context(), src, req); !errors.Is(err, errInjected) {
			t.Fatal(err)
		}
	}
	fail(owner)
	first := n.state(t)
	fail(owner)
	if s := n.state(t); len(s.Leases) != 1 || len(s.Ingests) == 0 || !slices.Equal(s.Ingests, first.Ingests) {
		t.Errorf("leases %v, ingests %v, then %v, %v: not adopted", first.Leases, first.Ingests, s.Leases, s.Ingests)
	}
	next := owner
	next.SpecHash = "another"
	fail(next)
	if s := n.state(t); len(s.Leases) != 1 || slices.Equal(s.Leases, first.Leases) {
		t.Errorf("leases after a new spec: %v", s.Leases)
	}
	if err := n.Release(t.Context(), owner.UID); err != nil {
		t.Fatal(err)
	}
	unchanged(t, before, n.state(t))
}

func TestInterruptedImportChangesNothing(t *testing.T) {
	b := build(t, twoImages())
	n := newNode(t, "linux/amd64")
	bystander(t, n)
	before := n.state(t)
	for _, at := range []Phase{PhaseTransferring, PhaseImporting, PhasePublishing} {
		ctx, cancel := context.WithCancel(t.Context())
		req := wanted(Owner{})
		req.Progress = func(p Progress) {
			if p.Phase == at {
				cancel()
			}
		}
		_, err := n.Import(ctx, cancelled{blobOf(t, b, false)}, req)
		cancel()
		if !errors.Is(err, context.Canceled) && !strings.Contains(errText(err), "canceled") {
			t.Errorf("%s: error %v", at, err)
		}
		unchanged(t, before, n.state(t))
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// cancelled is a source whose sections end with their context, as those of the real sources do.
type cancelled struct{ *memory }

func (c cancelled) Section(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return c.memory.Section(ctx, off, n)
}
