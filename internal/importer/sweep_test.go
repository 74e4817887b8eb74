package importer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/typeurl/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive/builder"
)

// under is an owner with a policy.
func under(o Owner, d Deletion) Owner {
	o.Deletion = d
	return o
}

func (n *node) bring(t *testing.T, b *builder.Built, o Owner) Result {
	t.Helper()
	r, err := n.Import(t.Context(), blobOf(t, b, false), wanted(o))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// sweep returns what became of names, as lines.
func (n *node) sweep(t *testing.T, wanted ...Owner) []string {
	t.Helper()
	swept, err := n.Sweep(t.Context(), wanted, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.db.GarbageCollect(t.Context()); err != nil {
		t.Fatal(err)
	}
	return lines(swept)
}

func lines(swept []Released) []string {
	all := []string{}
	for _, s := range swept {
		all = append(all, fmt.Sprintf("%s retained %d unpinned %d deleted %d in use %d",
			s.Owner.UID, len(s.Retained), len(s.Unpinned), len(s.Deleted), len(s.InUse)))
	}
	return all
}

func TestSweepActsForTheLastOwner(t *testing.T) {
	a, b := named("a", "1"), named("b", "2")
	for _, tc := range []struct {
		name   string
		owners []Owner // import the same archive of one image, which has two names
		wanted []Owner
		swept  []string
		stays  bool
		pinned bool
	}{
		{"nobody goes", []Owner{under(a, DeletionDelete)}, []Owner{under(a, DeletionDelete)}, []string{}, true, true},
		{"the default", []Owner{a}, nil, []string{"1 retained 0 unpinned 2 deleted 0 in use 0"}, true, false},
		{"Retain", []Owner{under(a, DeletionRetain)}, nil, []string{"1 retained 2 unpinned 0 deleted 0 in use 0"}, true, true},
		{"Delete", []Owner{under(a, DeletionDelete)}, nil, []string{"1 retained 0 unpinned 0 deleted 2 in use 0"}, false, false},
		{"a policy of the future", []Owner{under(a, "Bury")}, nil, []string{"1 retained 2 unpinned 0 deleted 0 in use 0"}, true, true},
		{"another owner remains", []Owner{under(a, DeletionDelete), b}, []Owner{b}, []string{"1 retained 2 unpinned 0 deleted 0 in use 0"}, true, true},
		{"both go, the mildest decides", []Owner{under(a, DeletionDelete), b}, nil,
			[]string{"1 retained 0 unpinned 2 deleted 0 in use 0", "2 retained 0 unpinned 2 deleted 0 in use 0"}, true, false},
		{"both go by Delete", []Owner{under(a, DeletionDelete), under(b, DeletionDelete)}, nil,
			[]string{"1 retained 0 unpinned 0 deleted 2 in use 0", "2 retained 0 unpinned 0 deleted 2 in use 0"}, false, false},
		{"recreated under its name", []Owner{under(a, DeletionDelete)}, []Owner{named("a", "9")},
			[]string{"1 retained 0 unpinned 0 deleted 2 in use 0"}, false, false},
		{"agent import stays an owner", []Owner{{}}, nil, []string{}, true, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, one := newNode(t, "linux/amd64"), version(t, "one")
			for _, o := range tc.owners {
				n.bring(t, one, o)
			}
			if diff := cmp.Diff(tc.swept, n.sweep(t, tc.wanted...)); diff != "" {
				t.Errorf("swept (-want +got):\n%s", diff)
			}
			s := n.state(t)
			if (len(s.Images) == 3) != tc.stays || (len(s.Content) > 0) != tc.stays || len(s.Leases)+len(s.Ingests) != 0 {
				t.Errorf("state %v", s)
			}
			if !tc.stays {
				return
			}
			img := n.image(t, appName)
			if (img.Labels[labelPinned] != "") != tc.pinned || img.Labels[labelManaged] != valueManaged {
				t.Errorf("labels %v", img.Labels)
			}
			for k := range img.Labels {
				if isOwnerLabel(k) && k != importLabel && !slices.ContainsFunc(tc.wanted, func(o Owner) bool { return ownerLabel(o) == k }) {
					t.Errorf("still has %s", k)
				}
			}
			if again := n.sweep(t, tc.wanted...); len(again) != 0 {
				t.Errorf("swept again: %v", again)
			}
		})
	}
}

// What one owner wants pinned stays so, and no longer.
func TestSweepLeavesOthersPin(t *testing.T) {
	for _, pin := range []bool{true, false} {
		n, one := newNode(t, "linux/amd64"), version(t, "one")
		n.bring(t, one, named("a", "1"))
		req := wanted(named("b", "2"))
		req.Pin = pin
		if _, err := n.Import(t.Context(), blobOf(t, one, false), req); err != nil {
			t.Fatal(err)
		}
		n.sweep(t, named("b", "2"))
		if got := n.image(t, appName).Labels[labelPinned] != ""; got != pin {
			t.Errorf("pinned %v, the remaining owner wants %v", got, pin)
		}
	}
}

// Names that are not ours are never touched: neither others' of the same image, nor copies with our labels, nor ours that
// somebody has given another meaning.
func TestSweepLeavesForeignNames(t *testing.T) {
	n, one, two := newNode(t, "linux/amd64"), version(t, "one"), version(t, "two")
	n.bring(t, one, under(named("a", "1"), DeletionDelete))
	ctx := n.in(t.Context())
	ours := *n.image(t, appName)
	for _, img := range []images.Image{
		{Name: "foreign.example/x:1", Target: ours.Target, Labels: map[string]string{labelPinned: valuePinned}},
		{Name: "foreign.example/copy:1", Target: ours.Target, Labels: ours.Labels}, // ctr images tag
	} {
		if _, err := n.services.images.Create(ctx, img); err != nil {
			t.Fatal(err)
		}
	}
	other := named("other", "2")
	req := wanted(other)
	req.Replace = true
	if _, err := n.Import(t.Context(), blobOf(t, two, false), req); err != nil {
		t.Fatal(err)
	}
	set(t, n, images.Image{Name: appName, Labels: map[string]string{ownerLabel(named("a", "1")): ours.Labels[ownerLabel(named("a", "1"))]}},
		"labels."+ownerLabel(named("a", "1")))
	before := []*images.Image{n.image(t, "foreign.example/x:1"), n.image(t, "foreign.example/copy:1")}
	want := []string{"1 retained 1 unpinned 0 deleted 1 in use 0"}
	if diff := cmp.Diff(want, n.sweep(t, other)); diff != "" {
		t.Errorf("swept (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(before, []*images.Image{n.image(t, "foreign.example/x:1"), n.image(t, "foreign.example/copy:1")}); diff != "" {
		t.Errorf("foreign names (-before +after):\n%s", diff)
	}
	if img := n.image(t, appName); img == nil || img.Target.Digest != two.Images[0].Target.Digest || img.Labels[labelPinned] == "" {
		t.Errorf("the other's name is %v", img)
	}
}

// An image that a container uses, by whatever name, is unpinned only. Its id goes with the last of its names.
func TestSweepLeavesImagesInUse(t *testing.T) {
	spec, err := typeurl.MarshalAny(&events.ImageDelete{}) // it must have some
	if err != nil {
		t.Fatal(err)
	}
	one := version(t, "one")
	target, config := one.Images[0].Target, one.Images[0].Platforms[0].Config.Digest.String()
	for _, tc := range []struct {
		image string // of a container
		inUse bool
	}{
		{appName, true},
		{"registry.example/team/app@" + target.Digest.String(), true},
		{"elsewhere.example/app@" + target.Digest.String(), true},
		{"foreign.example/x:1", true},
		{config, true},
		{toolName, false},
		{"", false},
	} {
		n := newNode(t, "linux/amd64")
		n.bring(t, one, under(named("a", "1"), DeletionDelete))
		ctx := n.in(t.Context())
		if tc.image == "foreign.example/x:1" {
			if _, err := n.services.images.Create(ctx, images.Image{Name: tc.image, Target: target}); err != nil {
				t.Fatal(err)
			}
		}
		c := containers.Container{ID: "c", Image: tc.image, Runtime: containers.RuntimeInfo{Name: "r"}, Spec: spec}
		if _, err := n.services.containers.Create(ctx, c); err != nil {
			t.Fatal(err)
		}
		want := []string{"1 retained 0 unpinned 0 deleted 2 in use 0"}
		if tc.inUse {
			want = []string{"1 retained 0 unpinned 0 deleted 0 in use 2"}
		}
		if diff := cmp.Diff(want, n.sweep(t)); diff != "" {
			t.Errorf("container of %q (-want +got):\n%s", tc.image, diff)
		}
		s := n.state(t)
		if (len(s.Content) > 0) != tc.inUse || (n.image(t, config) != nil) != tc.inUse {
			t.Errorf("container of %q: state %v", tc.image, s)
		}
		if !tc.inUse {
			continue
		}
		if n.image(t, appName).Labels[labelPinned] != "" {
			t.Errorf("container of %q: still pinned", tc.image)
		}
		// Later calls say nothing of it, until the container is gone.
		if again := n.sweep(t); len(again) > 0 {
			t.Errorf("container of %q: again %q", tc.image, again)
		}
		if err := n.services.containers.Delete(ctx, c.ID); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"1 retained 0 unpinned 0 deleted 2 in use 0"}, n.sweep(t)); diff != "" {
			t.Errorf("container of %q is gone (-want +got):\n%s", tc.image, diff)
		}
		foreign := tc.image == "foreign.example/x:1" // whose id it is, too
		if n.image(t, appName) != nil || n.image(t, config) != nil != foreign {
			t.Errorf("container of %q is gone: state %v", tc.image, n.state(t))
		}
	}
}

// An image's id stays while somebody has a use for it.
func TestSweepLeavesIDs(t *testing.T) {
	one := version(t, "one")
	config := one.Images[0].Platforms[0].Config.Digest.String()
	for name, tc := range map[string]struct {
		policy Deletion
		extra  *images.Image // beside what the archive has published
		stays  bool
	}{
		"nobody has":                  {DeletionDelete, nil, false},
		"the names stay":              {DeletionUnpin, nil, true},
		"somebody has another name":   {DeletionDelete, &images.Image{Name: "foreign.example/x:1", Target: one.Images[0].Target}, true},
		"another archive's name does": {DeletionDelete, &images.Image{Name: "foreign.example/x:1", Target: version(t, "two").Images[0].Target}, false},
	} {
		n := newNode(t, "linux/amd64")
		n.bring(t, one, under(named("a", "1"), tc.policy))
		if tc.extra != nil {
			if _, err := n.services.images.Create(n.in(t.Context()), *tc.extra); err != nil {
				t.Fatal(err)
			}
		}
		n.sweep(t)
		img := n.image(t, config)
		if (img != nil) != tc.stays || n.has(t, one.Images[0].Platforms[0].Layers[0].Digest) != tc.stays {
			t.Errorf("%s: %v", name, n.state(t))
		}
		if img != nil && (img.Labels[labelPinned] != "" || img.Labels[ownerLabel(named("a", "1"))] != "") {
			t.Errorf("%s: labels %v", name, img.Labels)
		}
	}
}

// anyWrite fails the k-th change of a name, whatever it is.
type anyWrite struct {
	failingImages
}

func (a anyWrite) Update(ctx context.Context, i images.Image, paths ...string) (images.Image, error) {
	if err := a.fail(); err != nil {
		return i, err
	}
	return a.Store.Update(ctx, i, paths...)
}

func (a anyWrite) Delete(ctx context.Context, name string, opts ...images.DeleteOpt) error {
	if err := a.fail(); err != nil {
		return err
	}
	return a.Store.Delete(ctx, name, opts...)
}

// Whatever a Sweep was ended by, the next one goes on, to the same end.
func TestSweepGoesOn(t *testing.T) {
	b := build(t, twoImages())
	for k := range 7 { // two images have three names each
		n := newNode(t, "linux/amd64")
		n.bring(t, b, under(named("a", "1"), DeletionDelete))
		left := k
		back := n.useImages(anyWrite{failingImages{n.services.images, &left}})
		if _, err := n.Sweep(t.Context(), nil, nil); (err != nil) != (k < 6) {
			t.Fatalf("with %d writes: %v", k, err)
		}
		back()
		n.sweep(t)
		if s := n.state(t); len(s.Images)+len(s.Content) != 0 {
			t.Errorf("after %d writes: %v", k, s)
		}
	}
}

func TestSweepRecordsAChangedPolicy(t *testing.T) {
	n, one := newNode(t, "linux/amd64"), version(t, "one")
	a := named("a", "1")
	n.bring(t, one, a)
	if got := n.sweep(t, under(a, DeletionDelete)); len(got) != 0 {
		t.Errorf("swept %v", got)
	}
	if _, loss, found, err := n.Imported(t.Context(), a); !found || loss != "" || err != nil {
		t.Errorf("found %v, loss %q, error %v", found, loss, err)
	}
	before := n.state(t)
	n.sweep(t, under(a, DeletionDelete))
	unchanged(t, before, n.state(t))
	if diff := cmp.Diff([]string{"1 retained 0 unpinned 0 deleted 2 in use 0"}, n.sweep(t)); diff != "" {
		t.Errorf("swept (-want +got):\n%s", diff)
	}
}

// unreadable fails to read a blob.
type unreadable struct {
	content.Store
	blob digest.Digest
}

func (u unreadable) ReaderAt(ctx context.Context, d ocispec.Descriptor) (content.ReaderAt, error) {
	if d.Digest == u.blob {
		return nil, errInjected
	}
	return u.Store.ReaderAt(ctx, d)
}

// What cannot be swept keeps nothing else from it, and goes with the next call.
func TestSweepPassesOverFailures(t *testing.T) {
	b := build(t, twoImages())
	third := build(t, builder.Archive{Images: []builder.Image{{Names: []string{"registry.example/team/third:1"}, Platforms: []builder.PlatformImage{
		platformImage("linux/amd64", layer("third", 3000))}}}})
	n := newNode(t, "linux/amd64")
	n.bring(t, b, under(named("a", "1"), DeletionDelete))
	n.bring(t, third, named("z", "2"))
	back := n.useContent(unreadable{n.services.content, b.Images[0].Target.Digest})
	swept, err := n.Sweep(t.Context(), nil, nil)
	want := []string{"1 retained 0 unpinned 0 deleted 2 in use 0", "2 retained 0 unpinned 2 deleted 0 in use 0"}
	if diff := cmp.Diff(want, lines(swept)); diff != "" || !errors.Is(err, errInjected) {
		t.Errorf("error %v, swept (-want +got):\n%s", err, diff)
	}
	back()
	n.sweep(t)
	if s := n.state(t); len(s.Images) != 3 || n.has(t, b.Images[0].Target.Digest) || len(s.Leases)+len(s.Ingests) != 0 {
		t.Errorf("state %v", s)
	}
}

// However many archives went, one call deals with all.
func TestSweepOfManyOwners(t *testing.T) {
	const owners = 300
	n, one := newNode(t, "linux/amd64"), version(t, "one")
	n.bring(t, one, named("a", "1"))
	value := n.image(t, appName).Labels[ownerLabelPrefix+"1"]
	more := images.Image{Name: appName, Labels: map[string]string{}}
	var paths []string
	for k := range owners {
		label := fmt.Sprintf("%smore-%d", ownerLabelPrefix, k)
		more.Labels[label] = value
		paths = append(paths, "labels."+label)
	}
	if _, err := n.services.images.Update(n.in(t.Context()), more, paths...); err != nil {
		t.Fatal(err)
	}
	if swept := n.sweep(t); len(swept) != owners+1 {
		t.Errorf("swept %d owners", len(swept))
	}
	if img := n.image(t, appName); img.Labels[labelPinned] != "" || len(img.Labels) != 1 {
		t.Errorf("labels %v", img.Labels)
	}
}

// A changed archive drops what it no longer lists, also when a kill kept its import from it.
func TestChangedArchiveDropsNames(t *testing.T) {
	both, tool := build(t, twoImages()), build(t, builder.Archive{Images: twoImages().Images[1:]})
	for _, tc := range []struct {
		policy     Deletion
		shared     bool
		want       string
		stays, pin bool
	}{
		{DeletionRetain, false, "1 retained 2 unpinned 0 deleted 0 in use 0", true, true},
		{DeletionUnpin, false, "1 retained 0 unpinned 2 deleted 0 in use 0", true, false},
		{DeletionDelete, false, "1 retained 0 unpinned 0 deleted 2 in use 0", false, false},
		{DeletionDelete, true, "1 retained 2 unpinned 0 deleted 0 in use 0", true, true},
	} {
		for _, killed := range []bool{false, true} {
			n, a, other := newNode(t, "linux/amd64"), named("a", "1"), named("b", "2")
			n.bring(t, both, a)
			if tc.shared {
				n.bring(t, both, other)
			}
			a.Deletion = tc.policy
			var got []string
			if killed {
				back := n.useImages(publishingOnly{n.services.images})
				n.bring(t, tool, a)
				back()
				if img := n.image(t, appName); img == nil || img.Labels[ownerLabel(a)] == "" {
					t.Fatalf("the name went without a write: %v", img)
				}
				got = n.sweep(t, a, other)
			} else {
				got = lines([]Released{n.bring(t, tool, a).Former})
			}
			if diff := cmp.Diff([]string{tc.want}, got); diff != "" {
				t.Errorf("%v, killed %v (-want +got):\n%s", tc, killed, diff)
			}
			img := n.image(t, appName)
			if (img != nil) != tc.stays || (img != nil && ((img.Labels[labelPinned] != "") != tc.pin || img.Labels[ownerLabel(a)] != "")) {
				t.Errorf("%v, killed %v: %v", tc, killed, img)
			}
			layer := both.Images[0].Platforms[0].Layers[1].Digest
			if n.has(t, layer) != tc.stays {
				t.Errorf("%v, killed %v: the layer is there: %v", tc, killed, !tc.stays)
			}
			if got, loss, found, err := n.Imported(t.Context(), a); !found || loss != "" || len(got.Names) != 3 || err != nil {
				t.Errorf("%v: %v, found %v, loss %q, error %v", tc, got.Names, found, loss, err)
			}
			if again := n.sweep(t, a, other); len(again) != 0 {
				t.Errorf("swept again %v", again)
			}
		}
	}
}

// publishingOnly fails what is written of names after a publishing.
type publishingOnly struct{ images.Store }

func (p publishingOnly) Update(ctx context.Context, i images.Image, paths ...string) (images.Image, error) {
	for k, v := range i.Labels {
		if isOwnerLabel(k) && v != "" {
			return p.Store.Update(ctx, i, paths...)
		}
	}
	return i, errInjected
}

func (publishingOnly) Delete(context.Context, string, ...images.DeleteOpt) error { return errInjected }

// What an archive has published goes when the archive moves on, the id with the last other name, and frees its bytes.
func TestReplacedImageGoes(t *testing.T) {
	spec, err := typeurl.MarshalAny(&events.ImageDelete{}) // it must have some
	if err != nil {
		t.Fatal(err)
	}
	one, two := version(t, "one"), version(t, "two")
	config := one.Images[0].Platforms[0].Config.Digest.String()
	for name, tc := range map[string]struct {
		policy     Deletion
		references bool
		foreign    bool // somebody else has brought it
		inUse      bool
		stays      bool
	}{
		"Delete":                  {policy: DeletionDelete, references: true},
		"Unpin, nothing names it": {policy: DeletionUnpin},
		"Unpin, a reference does": {policy: DeletionUnpin, references: true, stays: true},
		"Retain":                  {policy: DeletionRetain, references: true, stays: true},
		"in use":                  {policy: DeletionUnpin, inUse: true, stays: true},
		"in use, Delete":          {policy: DeletionDelete, references: true, inUse: true, stays: true},
		"somebody else's":         {policy: DeletionDelete, references: true, foreign: true, stays: true},
	} {
		t.Run(name, func(t *testing.T) {
			n, ctx := newNode(t, "linux/amd64"), t.Context()
			req := wanted(under(named("a", "1"), tc.policy))
			req.Selection.DigestReferences = tc.references
			if tc.foreign {
				n.foreign(t, appName, one)
				if _, err := n.services.images.Create(n.in(ctx), images.Image{Name: config, Target: one.Images[0].Target}); err != nil {
					t.Fatal(err)
				}
				req.Replace = true
			} else if _, err := n.Import(ctx, blobOf(t, one, false), req); err != nil {
				t.Fatal(err)
			}
			if tc.inUse {
				c := containers.Container{ID: "c", Image: config, Runtime: containers.RuntimeInfo{Name: "r"}, Spec: spec}
				if _, err := n.services.containers.Create(n.in(ctx), c); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := n.Import(ctx, blobOf(t, two, false), req); err != nil {
				t.Fatal(err)
			}
			if got := n.image(t, appName).Target.Digest; got != two.Images[0].Target.Digest {
				t.Errorf("the name stands for %s", got)
			}
			if stays := n.image(t, config) != nil; stays != tc.stays {
				t.Errorf("the id is there: %v", stays)
			}
			if stays := n.has(t, one.Images[0].Platforms[0].Layers[0].Digest); stays != tc.stays {
				t.Errorf("the layer is there: %v", stays)
			}
		})
	}
}
