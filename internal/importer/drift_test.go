package importer

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive/builder"
)

// loss is what an owner's import has lost, which was found.
func (n *node) loss(t *testing.T, o Owner) string {
	t.Helper()
	_, loss, found, err := n.Imported(t.Context(), o)
	if err != nil || !found {
		t.Fatalf("found %v, error %v", found, err)
	}
	return loss
}

// foreign gives a name another meaning, and all of its labels too, as a pull does.
func (n *node) foreign(t *testing.T, name string, b *builder.Built) {
	t.Helper()
	ctx := n.in(t.Context())
	data, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.client.Import(ctx, strings.NewReader(string(data))); err != nil {
		t.Fatal(err)
	}
	img := images.Image{Name: name, Target: b.Images[0].Target}
	_ = n.services.images.Delete(ctx, name)
	if _, err := n.services.images.Create(ctx, img); err != nil {
		t.Fatal(err)
	}
}

func TestRepair(t *testing.T) {
	one, two := version(t, "one"), version(t, "two")
	a := named("a", "1")
	for _, tc := range []struct {
		name     string
		harm     func(t *testing.T, n *node)
		repaired int
		loss     string // that remains
	}{
		{"nothing", func(*testing.T, *node) {}, 0, ""},
		{"pin", func(t *testing.T, n *node) {
			set(t, n, images.Image{Name: appName, Labels: map[string]string{labelPinned: ""}}, "labels."+labelPinned)
		}, 1, ""},
		{"mark for the CRI", func(t *testing.T, n *node) {
			set(t, n, images.Image{Name: appName, Labels: map[string]string{labelManaged: ""}}, "labels."+labelManaged)
		}, 1, ""},
		{"target, which the reference holds", func(t *testing.T, n *node) {
			set(t, n, images.Image{Name: appName, Target: two.Images[0].Target}, "target")
		}, 1, ""},
		{"target, whose content is not whole", func(t *testing.T, n *node) {
			set(t, n, images.Image{Name: appName, Target: two.Images[0].Target}, "target")
			lose(t, n, one.Images[0].Platforms[0].Layers[0].Digest)
		}, 0, "stands for "},
		{"target, which another archive wants", func(t *testing.T, n *node) {
			set(t, n, images.Image{Name: appName, Target: two.Images[0].Target}, "target")
			n.bring(t, two, named("b", "2"))
		}, 0, "stands for "},
		{"labels and target", func(t *testing.T, n *node) { n.foreign(t, appName, two) }, 0, "1 of 3 names missing"},
		{"a name", func(t *testing.T, n *node) {
			if err := n.services.images.Delete(n.in(t.Context()), appName); err != nil {
				t.Fatal(err)
			}
		}, 0, "1 of 3 names missing"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t, "linux/amd64")
			n.bring(t, one, a)
			tc.harm(t, n)
			if loss := n.loss(t, a); (loss == "") != (tc.name == "nothing") {
				t.Errorf("lost %q", loss)
			}
			repaired, err := n.Repair(t.Context(), a)
			if err != nil || repaired != tc.repaired {
				t.Errorf("repaired %d, error %v", repaired, err)
			}
			if loss := n.loss(t, a); !strings.Contains(loss, tc.loss) || (tc.loss == "") != (loss == "") {
				t.Errorf("lost %q after the repair", loss)
			}
		})
	}
}

// A name that somebody has given another digest, and from which our label went with that, comes back by another import of
// the same archive: its other names tell that it was ours, or the caller does.
func TestImportTakesItsNamesBack(t *testing.T) {
	one, two := version(t, "one"), version(t, "two")
	a := named("a", "1")
	changed := a
	changed.SpecHash = "changed"
	for _, tc := range []struct {
		name       string
		first      bool // had imported it before
		references bool
		then       Owner
		owned      []string
		conflict   bool
	}{
		{"never imported", false, true, a, nil, true},
		{"another name is left", true, true, a, nil, false},
		{"the spec has changed", true, true, changed, nil, true},
		{"no name is left", true, false, a, nil, true},
		{"no name is left, but the caller knows", true, false, a, []string{appName}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, req := newNode(t, "linux/amd64"), wanted(a)
			req.Selection.DigestReferences = tc.references
			if tc.first {
				if _, err := n.Import(t.Context(), blobOf(t, one, false), req); err != nil {
					t.Fatal(err)
				}
			}
			n.foreign(t, appName, two)
			if id := one.Images[0].Platforms[0].Config.Digest.String(); !tc.references && n.image(t, id) != nil {
				if err := n.services.images.Delete(n.in(t.Context()), id); err != nil {
					t.Fatal(err)
				}
			}
			req.Owner, req.Owned = tc.then, tc.owned
			got, err := n.Import(t.Context(), blobOf(t, one, false), req)
			if errors.Is(err, ErrNameConflict) != tc.conflict || (err != nil) != tc.conflict {
				t.Fatalf("error %v", err)
			}
			if tc.conflict {
				return
			}
			if tc.references && got.Bytes.Written != 0 {
				t.Errorf("moved %+v", got.Bytes)
			}
			if loss := n.loss(t, a); loss != "" {
				t.Errorf("lost %q", loss)
			}
		})
	}
}

// Two archives that want a name for different images do not take it from each other for ever.
func TestImportLeavesOthersName(t *testing.T) {
	n, one, two := newNode(t, "linux/amd64"), version(t, "one"), version(t, "two")
	a := named("a", "1")
	n.bring(t, one, a)
	req := wanted(named("b", "2"))
	req.Replace = true
	if _, err := n.Import(t.Context(), blobOf(t, two, false), req); err != nil {
		t.Fatal(err)
	}
	req = wanted(a)
	req.Owned = []string{appName}
	if _, err := n.Import(t.Context(), blobOf(t, one, false), req); !errors.Is(err, ErrNameConflict) {
		t.Errorf("error %v", err)
	}
}

// A lost blob is fetched again, and nothing else is.
func TestImportFetchesWhatIsLost(t *testing.T) {
	b := build(t, twoImages())
	n := newNode(t, "linux/amd64")
	n.bring(t, b, owner)
	lost := b.Images[0].Platforms[0].Layers[1]
	lose(t, n, lost.Digest)
	if loss := n.loss(t, owner); loss != appName+" lacks "+lost.Digest.String() {
		t.Errorf("lost %q", loss)
	}
	got := n.bring(t, b, owner)
	if got.Bytes.Written != lost.Size || got.Bytes.Read > lost.Size+16<<10 {
		t.Errorf("moved %+v for a blob of %d bytes", got.Bytes, lost.Size)
	}
	if loss := n.loss(t, owner); loss != "" {
		t.Errorf("lost %q", loss)
	}
}

// vanishing loses a blob once another has been looked at.
type vanishing struct {
	content.Store
	blob, after digest.Digest
	gone        *bool
}

func (v vanishing) ReaderAt(ctx context.Context, d ocispec.Descriptor) (content.ReaderAt, error) {
	if d.Digest == v.after {
		*v.gone = true
	}
	if *v.gone && d.Digest == v.blob {
		return nil, errdefs.ErrNotFound
	}
	return v.Store.ReaderAt(ctx, d)
}

// An image that is deleted while it is looked at is a loss like any other.
func TestLossWhileLooking(t *testing.T) {
	n, one := newNode(t, "linux/amd64"), version(t, "one")
	n.bring(t, one, owner)
	p := one.Images[0].Platforms[0]
	n.useContent(vanishing{n.services.content, p.Manifest.Digest, p.Layers[0].Digest, new(bool)})
	if loss := n.loss(t, owner); !strings.Contains(loss, "lacks") {
		t.Errorf("lost %q", loss)
	}
}
