package importer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"

	"github.com/tarlift/tarlift/internal/archive/builder"
)

// version is an archive of the app image with the given content below the same name.
func version(t *testing.T, content string) *builder.Built {
	t.Helper()
	return build(t, builder.Archive{Images: []builder.Image{{Names: []string{appName}, Platforms: []builder.PlatformImage{
		platformImage("linux/amd64", layer(content, 3000))}}}})
}

func named(name, uid string) Owner { return Owner{Name: name, UID: uid, SpecHash: "s"} }

func TestWhoMayRetargetAName(t *testing.T) {
	for _, tc := range []struct {
		name     string
		first    []Owner // who import version one, in this order
		then     Owner   // who imports version two
		replace  bool
		conflict bool
		owners   []Owner // whose labels are on the name at the end
	}{
		{"its owner", []Owner{named("a", "1")}, named("a", "1"), false, false, []Owner{named("a", "1")}},
		{"another archive", []Owner{named("a", "1")}, named("b", "2"), false, true, []Owner{named("a", "1")}},
		{"another archive that replaces", []Owner{named("a", "1")}, named("b", "2"), true, false, []Owner{named("b", "2")}},
		{"one of two owners", []Owner{named("a", "1"), named("b", "2")}, named("b", "2"), false, true, []Owner{named("a", "1"), named("b", "2")}},
		{"a recreated archive", []Owner{named("a", "1")}, named("a", "9"), false, false, []Owner{named("a", "9")}},
		{"an archive after agent import", []Owner{{}}, named("a", "1"), false, false, []Owner{named("a", "1")}},
		{"agent import again", []Owner{{}}, Owner{}, false, false, []Owner{{}}},
		{"agent import over an archive's", []Owner{named("a", "1")}, Owner{}, false, true, []Owner{named("a", "1")}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t, "linux/amd64")
			one, two := version(t, "one"), version(t, "two")
			for _, o := range tc.first {
				if _, err := n.Import(t.Context(), blobOf(t, one, false), wanted(o)); err != nil {
					t.Fatal(err)
				}
			}
			before := n.state(t)
			req := wanted(tc.then)
			req.Replace = tc.replace
			_, err := n.Import(t.Context(), blobOf(t, two, false), req)
			target := two.Images[0].Target.Digest
			if tc.conflict {
				target = one.Images[0].Target.Digest
				if !errors.Is(err, ErrNameConflict) {
					t.Fatalf("error %v", err)
				}
				unchanged(t, before, n.state(t))
			} else if err != nil {
				t.Fatal(err)
			}
			img := n.image(t, appName)
			if img.Target.Digest != target {
				t.Errorf("target %s, want %s", img.Target.Digest, target)
			}
			owners := 0
			for k := range img.Labels {
				if k != labelPinned && k != labelManaged {
					owners++
				}
			}
			if owners != len(tc.owners) {
				t.Errorf("labels %v", img.Labels)
			}
			for _, o := range tc.owners {
				if img.Labels[ownerLabel(o)] == "" {
					t.Errorf("lacks the label of %v: %v", o, img.Labels)
				}
			}
		})
	}
}

func TestForeignNamesAndLabelsStay(t *testing.T) {
	n := newNode(t, "linux/amd64")
	one, two := version(t, "one"), version(t, "two")
	data, err := one.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	ctx := n.in(t.Context())
	if _, err := n.client.Import(ctx, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	labelled := images.Image{Name: appName, Labels: map[string]string{"team": "blue"}}
	if _, err := n.services.images.Update(ctx, labelled, "labels.team"); err != nil {
		t.Fatal(err)
	}
	before := n.state(t)
	if _, err := n.Import(t.Context(), blobOf(t, two, false), wanted(owner)); !errors.Is(err, ErrNameConflict) {
		t.Fatalf("retargeted a name that is not ours: %v", err)
	}
	unchanged(t, before, n.state(t))
	if _, err := n.Import(t.Context(), blobOf(t, one, false), wanted(owner)); err != nil {
		t.Fatalf("the same digest is no conflict: %v", err)
	}
	if img := n.image(t, appName); img.Labels["team"] != "blue" || img.Labels[labelPinned] != valuePinned {
		t.Errorf("labels %v", img.Labels)
	}
}

// failingImages fails the k-th write of names.
type failingImages struct {
	images.Store
	left *int
}

func (f failingImages) fail() error {
	if *f.left--; *f.left < 0 {
		return errInjected
	}
	return nil
}

func (f failingImages) Create(ctx context.Context, i images.Image) (images.Image, error) {
	if err := f.fail(); err != nil {
		return i, err
	}
	return f.Store.Create(ctx, i)
}

func (f failingImages) Update(ctx context.Context, i images.Image, paths ...string) (images.Image, error) {
	if i.Labels[ownerLabel(owner)] != "" {
		if err := f.fail(); err != nil {
			return i, err
		}
	}
	return f.Store.Update(ctx, i, paths...)
}

// deafImages makes writes of which the k-th answer gets lost, and those of all that follow.
type deafImages struct {
	images.Store
	left *int
}

func (d deafImages) lose(err error) error {
	if *d.left--; err == nil && *d.left < 0 {
		return errInjected
	}
	return err
}

func (d deafImages) Create(ctx context.Context, i images.Image) (images.Image, error) {
	i, err := d.Store.Create(ctx, i)
	return i, d.lose(err)
}

func (d deafImages) Update(ctx context.Context, i images.Image, paths ...string) (images.Image, error) {
	own := i.Labels[ownerLabel(owner)]+i.Labels[importLabel] != ""
	i, err := d.Store.Update(ctx, i, paths...)
	if own {
		err = d.lose(err)
	}
	return i, err
}

// Whichever write fails, each name is complete or as it was before, nothing is left behind but names, and the next import
// publishes the rest.
func TestFailedPublishLeavesWholeNames(t *testing.T) {
	b, old := build(t, twoImages()), version(t, "old")
	const names = 6 // of two images, a tag, a digest reference and an id each
	for name, wrap := range map[string]func(images.Store, *int) images.Store{
		"a write fails":  func(s images.Store, k *int) images.Store { return failingImages{s, k} },
		"an answer lost": func(s images.Store, k *int) images.Store { return deafImages{s, k} },
	} {
		for k := range names {
			t.Run(fmt.Sprint(name, " after ", k), func(t *testing.T) {
				n := newNode(t, "linux/amd64")
				n.bring(t, old, named("old", "7")) // it has one of the names, to be replaced
				before := n.state(t)
				left := k
				n.useImages(wrap(n.services.images, &left))
				req := wanted(owner)
				req.Replace, req.Keep = true, k%2 == 0
				if _, err := n.Import(t.Context(), blobOf(t, b, false), req); !errors.Is(err, errInjected) {
					t.Fatalf("error %v", err)
				}
				left = names // the next attempt is this process' own
				if _, err := n.db.GarbageCollect(t.Context()); err != nil {
					t.Fatal(err)
				}
				n.wholeOrAsBefore(t, before, owner)
				if s := n.state(t); !req.Keep && len(s.Leases)+len(s.Ingests) != 0 {
					t.Errorf("left behind %v, %v", s.Leases, s.Ingests)
				}
				got, err := n.Import(t.Context(), blobOf(t, b, false), req)
				if err != nil || len(got.Names) != names || req.Keep && got.Bytes.Written != 0 {
					t.Fatalf("the next import published %q, moved %+v: %v", got.Names, got.Bytes, err)
				}
				if loss := n.loss(t, owner); loss != "" {
					t.Errorf("lost %q", loss)
				}
				if s := n.state(t); len(s.Leases)+len(s.Ingests) != 0 {
					t.Errorf("left behind %v, %v", s.Leases, s.Ingests)
				}
			})
		}
	}
}

// wholeOrAsBefore checks each name: it is as it was in before, or has a whole target, its pin, and its owner.
func (n *node) wholeOrAsBefore(t *testing.T, before state, o Owner) {
	t.Helper()
	after := n.state(t)
	for _, line := range before.Images {
		if n.image(t, strings.Fields(line)[0]) == nil {
			t.Errorf("gone: %s", line)
		}
	}
	for _, line := range after.Images {
		if slices.Contains(before.Images, line) {
			continue
		}
		img := n.image(t, strings.Fields(line)[0])
		missing, err := n.check.Missing(n.in(t.Context()), img.Target)
		if err != nil || len(missing) > 0 {
			t.Errorf("%s lacks %v, %v", img.Name, missing, err)
		}
		if img.Labels[labelPinned] != valuePinned || img.Labels[labelManaged] != valueManaged || img.Labels[ownerLabel(o)] == "" {
			t.Errorf("%s has labels %v", img.Name, img.Labels)
		}
	}
}

// What another process publishes of the same archive, for the same owner or another one, while an import publishes that then
// fails, is that other's all the same.
func TestFailedPublishLeavesTheOthers(t *testing.T) {
	b := build(t, twoImages())
	for name, tc := range map[string]struct{ failing, other Owner }{
		"two runs of agent import": {Owner{}, Owner{}},
		"two archives":             {owner, named("other", "9")},
		"two agents":               {owner, owner},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, "linux/amd64")
			other, left := n.other("linux/amd64"), 1
			back := n.useImages(sharing{deafImages{n.services.images, &left}, func() { other.bring(t, b, tc.other) }})
			if _, err := n.Import(t.Context(), blobOf(t, b, false), wanted(tc.failing)); !errors.Is(err, errInjected) {
				t.Fatalf("error %v", err)
			}
			back()
			if loss := n.loss(t, tc.other); loss != "" {
				t.Errorf("lost %q", loss)
			}
			n.sweep(t, tc.other)
			if loss := n.loss(t, tc.other); loss != "" {
				t.Errorf("after a sweep lost %q", loss)
			}
		})
	}
}

// sharing calls between after each name that is created.
type sharing struct {
	images.Store
	between func()
}

func (s sharing) Create(ctx context.Context, i images.Image) (images.Image, error) {
	img, err := s.Store.Create(ctx, i)
	if err == nil {
		s.between()
	}
	return img, err
}

func TestImported(t *testing.T) {
	b := build(t, twoImages())
	for _, tc := range []struct {
		name string
		harm func(t *testing.T, n *node)
		ask  Owner
		want bool   // found
		loss string // a part of it
	}{
		{"untouched", nil, owner, true, ""},
		{"another spec", nil, Owner{Name: "apps", UID: owner.UID, SpecHash: "def"}, false, ""},
		{"another archive", nil, Owner{Name: "apps", UID: "else", SpecHash: "abc"}, false, ""},
		{"a name deleted", func(t *testing.T, n *node) {
			if err := n.services.images.Delete(n.in(t.Context()), toolName); err != nil {
				t.Fatal(err)
			}
		}, owner, true, "1 of 6 names missing"},
		{"a pin lost", func(t *testing.T, n *node) {
			set(t, n, images.Image{Name: appName, Labels: map[string]string{labelPinned: ""}}, "labels."+labelPinned)
		}, owner, true, "app:1 is not pinned"},
		{"a name retargeted", func(t *testing.T, n *node) {
			set(t, n, images.Image{Name: appName, Target: b.Images[1].Target}, "target")
		}, owner, true, "app:1 stands for "},
		{"a layer lost", func(t *testing.T, n *node) {
			lose(t, n, b.Images[0].Platforms[0].Layers[0].Digest)
		}, owner, true, "lacks " + b.Images[0].Platforms[0].Layers[0].Digest.String()},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t, "linux/amd64")
			imported, err := n.Import(t.Context(), blobOf(t, b, false), wanted(owner))
			if err != nil {
				t.Fatal(err)
			}
			if tc.harm != nil {
				tc.harm(t, n)
			}
			got, loss, ok, err := n.Imported(t.Context(), tc.ask)
			if err != nil || ok != tc.want || (loss == "") != (tc.loss == "") || !strings.Contains(loss, tc.loss) {
				t.Fatalf("imported %v, loss %q, error %v", ok, loss, err)
			}
			if ok && loss == "" && (len(got.Images) != 2 || got.IndexDigest != imported.IndexDigest || !slices.Equal(got.Names, imported.Names) || got.Size != imported.Size) {
				t.Errorf("result %+v, was %+v", got, imported)
			}
		})
	}
}

func set(t *testing.T, n *node, img images.Image, path string) {
	t.Helper()
	if _, err := n.services.images.Update(n.in(t.Context()), img, path); err != nil {
		t.Fatal(err)
	}
}

func lose(t *testing.T, n *node, d digest.Digest) {
	t.Helper()
	if err := n.services.content.Delete(n.in(t.Context()), d); err != nil {
		t.Fatal(err)
	}
}
