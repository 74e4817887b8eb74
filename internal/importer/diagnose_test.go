package importer

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/internal/importer/cri"
)

// What an import has under way, and what a failed one has kept, is told; looking changes nothing.
func TestLeftovers(t *testing.T) {
	n := newNode(t, "linux/amd64")
	look := func(want Leftovers) {
		t.Helper()
		before := n.state(t)
		got, err := n.Leftovers(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if (got.Oldest.IsZero()) != (got.Leases == 0) || time.Since(got.Oldest) < 0 {
			t.Errorf("the oldest lease is of %s", got.Oldest)
		}
		got.Oldest = time.Time{}
		if got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
		unchanged(t, before, n.state(t))
	}
	look(Leftovers{})
	for _, o := range []Owner{{}, owner} {
		a, ctx, err := n.begin(n.in(t.Context()), &memory{}, Request{Owner: o, Keep: true})
		if err != nil {
			t.Fatal(err)
		}
		d := ocispec.Descriptor{Digest: digest.FromString("blob of " + o.UID), Size: 20}
		cut := func(int64) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("0123456789")), nil }
		if err := a.session.EnsureBlob(ctx, d, cut); !errors.Is(err, archive.ErrTruncated) {
			t.Fatal(err)
		}
		if o.UID == "" {
			look(Leftovers{Leases: 1, Ingests: 1, Bytes: 10})
		}
		if err := a.end(ctx, errInjected); !errors.Is(err, errInjected) {
			t.Fatal(err)
		}
	}
	look(Leftovers{Leases: 2, Ingests: 2, Bytes: 20})
	if err := n.Release(t.Context(), owner.UID); err != nil {
		t.Fatal(err)
	}
	look(Leftovers{Leases: 1, Ingests: 1, Bytes: 10})
}

func TestHeld(t *testing.T) {
	n := newNode(t, "linux/amd64")
	built := version(t, "one")
	for _, o := range []Owner{owner, {}} {
		if _, err := n.Import(t.Context(), blobOf(t, built, false), wanted(o)); err != nil {
			t.Fatal(err)
		}
	}
	ask := func() (held []Held, gone int, lost []string) {
		t.Helper()
		held, gone, err := n.Held(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if lost, err = n.ContentLost(t.Context(), held); err != nil {
			t.Fatal(err)
		}
		return held, gone, lost
	}
	unpinned := func(held []Held) (names []string) {
		for _, h := range held {
			if h.Unpinned {
				names = append(names, h.Name)
			}
		}
		return slices.Compact(names)
	}
	held, gone, lost := ask()
	if len(held) == 0 || gone != 0 || len(lost) != 0 || unpinned(held) != nil {
		t.Fatalf("%+v, %d gone, lost %q", held, gone, lost)
	}
	ctx := n.in(t.Context())
	img := *n.image(t, appName)
	img.Labels[labelPinned] = ""
	if _, err := n.services.images.Update(ctx, img, "labels."+labelPinned); err != nil {
		t.Fatal(err)
	}
	if held, _, _ = ask(); !slices.Equal(unpinned(held), []string{appName}) {
		t.Errorf("unpinned %q", unpinned(held))
	}
	known := fakeImages{ids: map[string]digest.Digest{}}
	for _, h := range held {
		known.ids[h.Name] = built.Images[0].Platforms[0].Config.Digest
	}
	n.cri = cri.Client{Images: known}
	if names, unknown, err := n.NotVisible(t.Context(), held); len(names) != 0 || unknown != "" || err != nil {
		t.Errorf("not visible %q, unknown %q, %v", names, unknown, err)
	}
	delete(known.ids, appName)
	if names, unknown, err := n.NotVisible(t.Context(), held); !slices.Equal(names, []string{appName}) || unknown != "" || err != nil {
		t.Errorf("not visible %q, unknown %q, %v", names, unknown, err)
	}
	if err := n.services.content.Delete(ctx, built.Images[0].Platforms[0].Layers[0].Digest); err != nil {
		t.Fatal(err)
	}
	if _, _, lost = ask(); len(lost) != 1 || !strings.Contains(lost[0], "lacks sha256:") {
		t.Errorf("lost %q", lost)
	}
	if err := n.services.images.Delete(ctx, appName); err != nil {
		t.Fatal(err)
	}
	if _, gone, _ = ask(); gone != 1 {
		t.Errorf("%d names are gone", gone)
	}
}

// future is a lease manager whose clock goes ahead.
type future struct {
	leases.Manager
	ahead time.Duration
}

func (f future) List(context.Context, ...string) ([]leases.Lease, error) {
	return []leases.Lease{{ID: "l", CreatedAt: time.Now().Add(f.ahead)}}, nil
}

func TestNewest(t *testing.T) {
	n := newNode(t, "linux/amd64")
	if what, when, err := n.Newest(t.Context()); what != "" || !when.IsZero() || err != nil {
		t.Errorf("empty: %q, %s, %v", what, when, err)
	}
	if _, err := n.Import(t.Context(), blobOf(t, build(t, builder.Archive{Images: []builder.Image{{
		Names: []string{appName}, Platforms: []builder.PlatformImage{platformImage("linux/amd64", layer("x", 10))},
	}}}), false), wanted(Owner{})); err != nil {
		t.Fatal(err)
	}
	if what, when, err := n.Newest(t.Context()); !strings.HasPrefix(what, "image ") || time.Since(when) > time.Minute || time.Since(when) < 0 || err != nil {
		t.Errorf("%q, %s, %v", what, when, err)
	}
	n.services.leases = future{n.services.leases, time.Hour}
	if what, when, err := n.Newest(t.Context()); what != "lease l" || time.Until(when) < 50*time.Minute || err != nil {
		t.Errorf("%q, %s, %v", what, when, err)
	}
}
