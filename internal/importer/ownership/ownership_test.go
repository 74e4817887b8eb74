package ownership

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/importer/check"
	"github.com/tarlift/tarlift/test/inprocess"
)

func TestMain(m *testing.M) {
	_ = log.SetLevel("error") // containerd's store warns of file systems without fs-verity
	m.Run()
}

const app = "registry.example/app:1"

// node is one containerd with an agent. Each process on it is another agent.
type node struct {
	*inprocess.Containerd
	*Ownership
	ctx context.Context
}

func newNode(t *testing.T, snapshotters ...map[string]snapshots.Snapshotter) *node {
	t.Helper()
	n := &node{Containerd: inprocess.NewWith(t, append(snapshotters, nil)[0]), ctx: namespaces.WithNamespace(t.Context(), "k8s.io")}
	n.Ownership = n.process(n.Images)
	return n
}

func (n *node) process(store images.Store) *Ownership {
	c := check.Checker{
		Content: n.Content, Containers: n.Containers, Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
		Snapshotter: n.DB.Snapshotter,
	}
	return New(store, c, func(ctx context.Context) error {
		_, err := n.DB.GarbageCollect(ctx)
		return err
	})
}

// image is one that is in the content store.
type image struct {
	target ocispec.Descriptor
	config digest.Digest
}

// setupLease holds images until they have names.
const setupLease = "setup"

// image stores an image. Those with the same config have the same id, and are told apart by their manifests.
func (n *node) image(t *testing.T, config, manifest string) image {
	t.Helper()
	if _, err := n.Leases.Create(n.ctx, leases.WithID(setupLease)); err != nil && !errdefs.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	ctx := leases.WithLease(n.ctx, setupLease)
	write := func(mediaType string, value any, labels map[string]string) ocispec.Descriptor {
		t.Helper()
		data, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
		err = content.WriteBlob(ctx, n.Content, d.Digest.String(), bytes.NewReader(data), d, content.WithLabels(labels))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	layer := write(ocispec.MediaTypeImageLayer, "layer of "+config, nil)
	c := write(ocispec.MediaTypeImageConfig, ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, Author: config,
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.Digest}},
	}, nil)
	target := write(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: c, Layers: []ocispec.Descriptor{layer},
		Annotations: map[string]string{"manifest": manifest},
	}, map[string]string{"containerd.io/gc.ref.content.config": c.Digest.String(), "containerd.io/gc.ref.content.l.0": layer.Digest.String()})
	return image{target, c.Digest}
}

// publishes is a claim on a tag, its digest reference, and the id of an image.
func publishes(o Owner, name string, img image) Claim {
	repository, _, _ := strings.Cut(name, ":")
	return Claim{Owner: o, Pin: true, Import: Import{Index: img.target.Digest, Size: -1}, Names: []Name{
		{Name: name, Target: img.target},
		{Name: repository + "@" + img.target.Digest.String(), Target: img.target},
		{Name: img.config.String(), Target: img.target},
	}}
}

func replacing(c Claim) Claim {
	c.Replace = true
	return c
}

func (n *node) claim(t *testing.T, c Claim) {
	t.Helper()
	if err := n.Claim(n.ctx, c); err != nil {
		t.Fatal(err)
	}
}

func (n *node) sweep(t *testing.T, wanted ...Owner) {
	t.Helper()
	if _, err := n.Sweep(n.ctx, wanted, nil); err != nil {
		t.Fatal(err)
	}
}

// name is nil where there is none.
func (n *node) name(t *testing.T, name string) *images.Image {
	t.Helper()
	img, err := n.Images.Get(n.ctx, name)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return &img
}

func (n *node) names(t *testing.T) map[string]string {
	t.Helper()
	list, err := n.Images.List(n.ctx)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, img := range list {
		all[img.Name] = fmt.Sprint(img.Target.Digest, img.Labels)
	}
	return all
}

// loss is what an owner's newest publishing has lost, which is there.
func (n *node) loss(t *testing.T, o Owner) string {
	t.Helper()
	p, err := n.Published(n.ctx, o)
	if err != nil || p == nil {
		t.Fatalf("published %v, %v", p, err)
	}
	return p.Lost
}

// whole says that a name has the target, the pin and the record of one owner.
func (n *node) whole(t *testing.T, name string, o Owner, img image) {
	t.Helper()
	got := n.name(t, name)
	if got == nil || got.Target.Digest != img.target.Digest || got.Labels[labelPinned] != valuePinned || got.Labels[labelManaged] != valueManaged {
		t.Errorf("%s is %v", name, got)
		return
	}
	for _, c := range claims(*got) {
		if c.label == o.label() && c.record.Target == img.target.Digest {
			return
		}
	}
	t.Errorf("%s is not %s's: %v", name, o.Name, got.Labels)
}

func (n *node) create(t *testing.T, img images.Image) {
	t.Helper()
	if _, err := n.Images.Create(n.ctx, img); err != nil {
		t.Fatal(err)
	}
}

func archive(name string, d Deletion) Owner {
	return Owner{Name: name, UID: "uid-" + name, SpecHash: "s", Deletion: d}
}

// What somebody else has brought is given back as it was when the last claim on it ends, in whatever order, and never deleted.
func TestForeignImageIsGivenBack(t *testing.T) {
	for _, policy := range []Deletion{Unpin, Delete} {
		a, b := archive("a", policy), archive("b", policy)
		for ending, wanted := range map[string][][]Owner{ // by one sweep after the other
			"one archive":      {{}},
			"the first first":  {{b}, {}},
			"the second first": {{a}, {}},
			"both at once":     {{}},
		} {
			for _, pinned := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s, %s, pinned %v", policy, ending, pinned), func(t *testing.T) {
					n := newNode(t)
					one := n.image(t, "one", "")
					foreign := images.Image{Name: app, Target: one.target, Labels: map[string]string{"team": "blue"}}
					if pinned {
						foreign.Labels[labelPinned] = valuePinned
					}
					n.create(t, foreign)
					n.claim(t, publishes(a, app, one))
					if ending != "one archive" {
						n.claim(t, publishes(b, app, one))
					}
					n.claim(t, publishes(a, app, one)) // also a repetition does not take its own pin for a foreign one
					for _, w := range wanted {
						if n.name(t, app).Labels[labelPinned] != valuePinned {
							t.Error("not pinned while an archive wants that")
						}
						n.sweep(t, w...)
						if len(w) > 0 && n.loss(t, w[0]) != "" {
							t.Errorf("%s lost %q", w[0].Name, n.loss(t, w[0]))
						}
					}
					delete(foreign.Labels, labelManaged)
					got := n.name(t, app)
					if got == nil {
						t.Fatal("it was deleted")
					}
					delete(got.Labels, labelManaged) // the CRI sets it too
					if diff := cmp.Diff(foreign.Labels, got.Labels); diff != "" {
						t.Errorf("labels (-before +after):\n%s", diff)
					}
				})
			}
		}
	}
}

// A name that was there before is moved only where it may be replaced. Then it is ours like any other, and nothing of it is
// given back.
func TestForeignNameIsReplaced(t *testing.T) {
	n, a := newNode(t), archive("a", Delete)
	one, two := n.image(t, "one", ""), n.image(t, "two", "")
	n.create(t, images.Image{Name: app, Target: one.target, Labels: map[string]string{labelPinned: valuePinned}})
	n.claim(t, publishes(a, app, one))
	for _, owned := range [][]string{nil, {app}} { // the agent says what it has seen published
		next := publishes(a, app, two)
		next.Owned = owned
		if err := n.Claim(n.ctx, next); !errors.Is(err, ErrNameConflict) {
			t.Errorf("error %v", err)
		}
	}
	n.claim(t, replacing(publishes(a, app, two)))
	n.whole(t, app, a, two)
	n.sweep(t)
	if names := n.names(t); len(names) != 0 {
		t.Errorf("left %v", names)
	}
}

// Of a name that somebody has given another target since we published it, the target is theirs, and the pin is ours.
func TestMovedNameHasOurPin(t *testing.T) {
	n, a, b := newNode(t), archive("a", Unpin), archive("b", Delete)
	one, two := n.image(t, "one", ""), n.image(t, "two", "")
	n.claim(t, publishes(a, app, one))
	if _, err := n.Images.Update(n.ctx, images.Image{Name: app, Target: two.target}, "target"); err != nil {
		t.Fatal(err)
	}
	n.claim(t, publishes(b, app, two))
	n.sweep(t, b)
	n.whole(t, app, b, two)
	n.sweep(t)
	if img := n.name(t, app); img == nil || img.Labels[labelPinned] != "" {
		t.Errorf("the name is %v", img)
	}
}

// A name that two archives share, and that somebody has given another target, is given back to both by either.
func TestSharedNameIsTakenBack(t *testing.T) {
	n, a, b := newNode(t), archive("a", Unpin), archive("b", Unpin)
	one, two := n.image(t, "one", ""), n.image(t, "two", "")
	for _, o := range []Owner{a, b} {
		n.claim(t, publishes(o, app, one))
	}
	for name, take := range map[string]func(){
		"by a repair": func() {
			if repaired, err := n.Repair(n.ctx, a); repaired != 1 || err != nil {
				t.Errorf("repaired %d, %v", repaired, err)
			}
		},
		"by an import": func() { n.claim(t, publishes(b, app, one)) },
	} {
		if _, err := n.Images.Update(n.ctx, images.Image{Name: app, Target: two.target}, "target"); err != nil {
			t.Fatal(err)
		}
		take()
		for _, o := range []Owner{a, b} {
			n.whole(t, app, o, one)
			if loss := n.loss(t, o); loss != "" {
				t.Errorf("%s: %s lost %q", name, o.Name, loss)
			}
		}
	}
	if repaired, err := n.Repair(n.ctx, a); repaired != 0 || err != nil {
		t.Errorf("repaired %d of nothing, %v", repaired, err)
	}
}

// k3s imports its own images again and again, and replaces all labels by its pin. What we publish after that is theirs too.
func TestPinOfAReimportSurvives(t *testing.T) {
	for _, policy := range []Deletion{Unpin, Delete} {
		for _, before := range []bool{true, false} { // it had imported the image before us
			n, a := newNode(t), archive("a", policy)
			one := n.image(t, "one", "")
			theirs := images.Image{Name: app, Target: one.target, Labels: map[string]string{labelPinned: valuePinned}}
			if before {
				n.create(t, theirs)
			}
			n.claim(t, publishes(a, app, one))
			if _, err := n.Images.Update(n.ctx, theirs, "labels"); err != nil {
				t.Fatal(err)
			}
			if n.loss(t, a) == "" {
				t.Error("the loss of a label is not told")
			}
			n.claim(t, publishes(a, app, one))
			n.whole(t, app, a, one)
			n.sweep(t)
			if img := n.name(t, app); img == nil || img.Labels[labelPinned] != valuePinned || len(claims(*img)) != 0 {
				t.Errorf("%s, before %v: %v", policy, before, img)
			}
		}
	}
}

// Of two archives that want a name for different images at the same time one gets it, and it has all of that one.
func TestTwoArchivesRaceForAName(t *testing.T) {
	for name, processes := range map[string]int{"one agent": 1, "two agents": 2} {
		t.Run(name, func(t *testing.T) {
			for round := range 40 {
				n := newNode(t)
				owners := []Owner{archive("a", Unpin), archive("b", Unpin)}
				imgs := []image{n.image(t, "one", ""), n.image(t, "two", "")}
				agents := []*Ownership{n.Ownership, n.Ownership}
				if processes == 2 {
					agents[1] = n.process(n.Images)
				}
				errs := make([]error, 2)
				var group sync.WaitGroup
				for k := range owners {
					group.Go(func() { errs[k] = agents[k].Claim(n.ctx, publishes(owners[k], app, imgs[k])) })
				}
				group.Wait()
				winner := slices.Index(errs, nil)
				if winner < 0 || !errors.Is(errs[1-winner], ErrNameConflict) {
					t.Fatalf("round %d: errors %v", round, errs)
				}
				n.whole(t, app, owners[winner], imgs[winner])
				if c := claims(*n.name(t, app)); len(c) != 1 {
					t.Errorf("round %d: %d claims", round, len(c))
				}
				if loss := n.loss(t, owners[winner]); loss != "" {
					t.Errorf("round %d: lost %q", round, loss)
				}
			}
		})
	}
}

// between calls do before each look at app's name: a claim looks before it writes, and reads back.
type between struct {
	images.Store
	do func(look int)
	n  *int
}

func (b between) Get(ctx context.Context, name string) (images.Image, error) {
	if name == app {
		*b.n++
		b.do(*b.n)
	}
	return b.Store.Get(ctx, name)
}

// What another process writes between our write and its being read back is seen: all is published again, or the name is that
// other's, and never a mixture.
func TestNameIsWrittenByAnother(t *testing.T) {
	a, b := archive("a", Unpin), archive("b", Unpin)
	for name, tc := range map[string]struct {
		write    func(n *node, one, two image) error
		conflict bool
	}{
		"pulled with another digest": {write: func(n *node, _, two image) error {
			_, err := n.Images.Update(n.ctx, images.Image{Name: app, Target: two.target}) // all of it
			return err
		}}, // our other names tell that it was ours
		"moved, with our labels": {write: func(n *node, _, two image) error {
			_, err := n.Images.Update(n.ctx, images.Image{Name: app, Target: two.target}, "target")
			return err
		}},
		"another archive's": {write: func(n *node, _, two image) error {
			return n.process(n.Images).Claim(n.ctx, replacing(publishes(b, app, two)))
		}, conflict: true},
		"imported anew": {write: func(n *node, one, _ image) error {
			_, err := n.Images.Update(n.ctx, images.Image{Name: app, Target: one.target, Labels: map[string]string{labelPinned: valuePinned}})
			return err
		}},
		"deleted": {write: func(n *node, _, _ image) error { return n.Images.Delete(n.ctx, app) }},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			one, two := n.image(t, "one", ""), n.image(t, "two", "")
			agent := n.process(between{n.Images, func(look int) {
				if look == 2 {
					if err := tc.write(n, one, two); err != nil {
						t.Error(err)
					}
				}
			}, new(int)})
			c := publishes(a, app, one)
			err := agent.Claim(n.ctx, c)
			if errors.Is(err, ErrNameConflict) != tc.conflict || (err != nil) != tc.conflict {
				t.Fatalf("error %v", err)
			}
			if !tc.conflict {
				for _, name := range c.Names {
					n.whole(t, name.Name, a, one)
				}
				return
			}
			if img := n.name(t, app); img.Target.Digest != two.target.Digest || img.Labels[a.label()] != "" {
				t.Errorf("the other's name is %v", img)
			}
		})
	}
}

// Somebody who writes a name all the time does not keep a claim for ever.
func TestEndlessRaceEnds(t *testing.T) {
	n, a := newNode(t), archive("a", Unpin)
	one := n.image(t, "one", "")
	looks := 0
	agent := n.process(between{n.Images, func(look int) {
		if look%2 == 0 {
			_ = n.Images.Delete(n.ctx, app)
		}
	}, &looks})
	if err := agent.Claim(n.ctx, publishes(a, app, one)); !errors.Is(err, errRaced) || looks != 2*maxRaces {
		t.Errorf("after %d looks: %v", looks, err)
	}
}

// looked calls do once, after the first look at a name.
type looked struct {
	images.Store
	do func()
}

func (l *looked) Get(ctx context.Context, name string) (images.Image, error) {
	img, err := l.Store.Get(ctx, name)
	if do := l.do; do != nil {
		l.do = nil
		do()
	}
	return img, err
}

// Two agents of one archive, of an older spec and a newer, publish at the same time, and one is killed before it has read back
// what it wrote: nothing of theirs is taken for somebody else's later.
func TestTwoSpecsRaceForAName(t *testing.T) {
	n, older, newer := newNode(t), archive("a", Delete), archive("a", Delete)
	newer.SpecHash = "newer"
	one, two := n.image(t, "one", ""), n.image(t, "two", "")
	n.claim(t, publishes(newer, app, two))
	killed := n.process(&looked{n.Images, func() { n.claim(t, publishes(older, app, one)) }})
	_ = killed.claimOnce(n.ctx, publishes(newer, app, two)) // whatever it says, nobody hears it
	n.claim(t, publishes(older, app, one))
	n.whole(t, app, older, one)
	n.claim(t, publishes(newer, app, two))
	n.whole(t, app, newer, two)
	n.sweep(t)
	if names := n.names(t); len(names) != 0 {
		t.Errorf("left behind %v", names)
	}
}

// Of two archives that both replace the other's name the older one has it in the end, also one that comes later to a node.
func TestReplacingArchivesEnd(t *testing.T) {
	at := func(name string, created int64) Owner {
		o := archive(name, Unpin)
		o.Created = time.Unix(created, 0)
		return o
	}
	for name, tc := range map[string]struct{ keeps, yields Owner }{
		"by age":  {at("z", 1000), at("a", 2000)},
		"by name": {at("a", 1000), at("z", 1000)},
	} {
		for _, first := range []int{0, 1} {
			n := newNode(t)
			owners, imgs := []Owner{tc.keeps, tc.yields}, []image{n.image(t, "one", ""), n.image(t, "two", "")}
			var refused error
			taken := 0
			for turn := first; refused == nil && taken < 20; turn++ {
				k := turn % 2
				if _, refused = n.Changes(n.ctx, replacing(publishes(owners[k], app, imgs[k]))); refused == nil {
					n.claim(t, replacing(publishes(owners[k], app, imgs[k])))
					taken++
				} else if k != 1 {
					t.Errorf("%s: the one that keeps the name is refused: %v", name, refused)
				}
			}
			if !errors.Is(refused, ErrNameConflict) || !strings.Contains(refused.Error(), fmt.Sprintf("ImageArchive %q", tc.keeps.Name)) {
				t.Errorf("%s: error %v", name, refused)
			}
			if taken > 2 {
				t.Errorf("%s: taken %d times", name, taken)
			}
			n.whole(t, app, tc.keeps, imgs[0])
			if err := n.Claim(n.ctx, replacing(publishes(owners[1], app, imgs[1]))); !errors.Is(err, ErrNameConflict) {
				t.Errorf("%s: again: %v", name, err)
			}
			n.whole(t, app, tc.keeps, imgs[0])
		}
	}
}

// An id means a config, which manifests may share: it stays with one of them, and goes with the last.
func TestImagesOfOneConfig(t *testing.T) {
	const second = "registry.example/second:1"
	for _, first := range []int{0, 1} {
		n := newNode(t)
		a, b := archive("a", Delete), archive("b", Delete)
		one, other, third := n.image(t, "shared", "1"), n.image(t, "shared", "2"), n.image(t, "third", "")
		id := one.config.String()
		n.claim(t, publishes(a, app, one))
		n.claim(t, publishes(b, second, other))
		n.claim(t, publishes(a, app, one))
		for _, o := range []Owner{a, b} {
			if loss := n.loss(t, o); loss != "" {
				t.Errorf("%s lost %q", o.Name, loss)
			}
		}
		if got := n.name(t, id); got.Target.Digest != one.target.Digest || len(claims(*got)) != 2 {
			t.Errorf("the id is %v", got)
		}
		for _, img := range []image{other, third, one} { // CRI's pull moves it
			if _, err := n.Images.Update(n.ctx, images.Image{Name: id, Target: img.target}, "target"); err != nil {
				t.Fatal(err)
			}
			if loss := n.loss(t, a); (loss != "") != (img.config != one.config) {
				t.Errorf("with %s lost %q", img.target.Digest, loss)
			}
			held, _, err := n.Held(n.ctx)
			if err != nil {
				t.Fatal(err)
			}
			for _, h := range held {
				if (h.Lost != "") != (img.config != one.config && h.Name == id) {
					t.Errorf("with %s %s is said to have lost %q", img.target.Digest, h.Name, h.Lost)
				}
			}
		}
		remains := []Owner{a, b}[first]
		n.sweep(t, remains)
		if loss := n.loss(t, remains); loss != "" || n.name(t, id) == nil {
			t.Errorf("%s alone lost %q", remains.Name, loss)
		}
		n.sweep(t)
		if names := n.names(t); len(names) != 0 {
			t.Errorf("left %v", names)
		}
	}
}

// An id that stands for an image of the same config which has lost content is moved to the one that is whole: else that would
// never count as whole, however often it is imported.
func TestIDOfABrokenImage(t *testing.T) {
	n, a := newNode(t), archive("a", Delete)
	whole := n.image(t, "shared", "1")
	data, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: whole.config, Size: 1},
		Layers: []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromString("gone"), Size: 4}},
	})
	if err != nil {
		t.Fatal(err)
	}
	broken := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(data), Size: int64(len(data))}
	ctx := leases.WithLease(n.ctx, setupLease)
	if err := content.WriteBlob(ctx, n.Content, "broken", bytes.NewReader(data), broken); err != nil {
		t.Fatal(err)
	}
	n.create(t, images.Image{Name: whole.config.String(), Target: broken})
	n.claim(t, publishes(a, app, whole))
	if loss := n.loss(t, a); loss != "" {
		t.Errorf("lost %q", loss)
	}
	n.sweep(t)
	if names := n.names(t); len(names) != 0 {
		t.Errorf("left %v", names)
	}
}

// A new version of an archive may have the same image with other manifests: nothing keeps the former one.
func TestIDFollowsItsImage(t *testing.T) {
	n, a := newNode(t), archive("a", Delete)
	one, other := n.image(t, "shared", "1"), n.image(t, "shared", "2")
	n.claim(t, publishes(a, app, one))
	n.claim(t, publishes(a, app, other))
	if _, err := n.ReleaseFormer(n.ctx, a); err != nil {
		t.Fatal(err)
	}
	for name, target := range n.names(t) {
		if !strings.HasPrefix(target, other.target.Digest.String()) {
			t.Errorf("%s stands for %s", name, target)
		}
	}
	if loss := n.loss(t, a); loss != "" {
		t.Errorf("lost %q", loss)
	}
}

// Two tags of one archive may share a config, too.
func TestTagsOfOneConfig(t *testing.T) {
	n, a := newNode(t), archive("a", Delete)
	one, other := n.image(t, "shared", "1"), n.image(t, "shared", "2")
	c := publishes(a, app, one)
	c.Names = append(c.Names, Name{Name: "registry.example/app:2", Target: other.target})
	for range 2 {
		n.claim(t, c)
		if loss := n.loss(t, a); loss != "" {
			t.Errorf("lost %q", loss)
		}
	}
	n.sweep(t)
	if names := n.names(t); len(names) != 0 {
		t.Errorf("left %v", names)
	}
}

// What an image has lost depends on where it was unpacked: it is said of each snapshotter, and once.
func TestContentIsLostBySnapshotter(t *testing.T) {
	layers, err := native.NewSnapshotter(filepath.Join(t.TempDir(), "native"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { layers.Close() })
	n := newNode(t, map[string]snapshots.Snapshotter{"native": layers})
	one := n.image(t, "one", "")
	for name, snapshotter := range map[string]string{"a": "", "b": "native"} {
		c := publishes(archive(name, Unpin), "registry.example/"+name+":1", one)
		c.Import.Snapshotter = snapshotter
		n.claim(t, c)
	}
	held, _, err := n.Held(n.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if losses, err := n.ContentLost(n.ctx, held); err != nil || len(losses) != 1 || !strings.HasSuffix(losses[0], " is not unpacked") {
		t.Errorf("lost %q, %v", losses, err)
	}
}

// failing fails each write but the first few.
type failing struct {
	images.Store
	left *int
}

var errInjected = errors.New("injected")

func (f failing) Create(ctx context.Context, i images.Image) (images.Image, error) {
	if *f.left--; *f.left < 0 {
		return i, errInjected
	}
	return f.Store.Create(ctx, i)
}

func (f failing) Update(ctx context.Context, i images.Image, paths ...string) (images.Image, error) {
	if *f.left--; *f.left < 0 {
		return i, errInjected
	}
	return f.Store.Update(ctx, i, paths...)
}

// As long as a new version is published by half, nothing of the former one goes: it is not known yet what is still wanted.
func TestHalfPublishedVersionReleasesNothing(t *testing.T) {
	const kept, gone = "registry.example/kept:1", "registry.example/gone:1"
	a := archive("a", Delete)
	newer := a
	newer.SpecHash = "t"
	version := func(o Owner, img image, names ...string) Claim {
		c := publishes(o, app, img)
		for _, name := range names {
			c.Names = append(c.Names, Name{Name: name, Target: img.target})
		}
		return c
	}
	for k := range 4 {
		n := newNode(t)
		one, two := n.image(t, "one", ""), n.image(t, "two", "")
		n.claim(t, version(a, one, kept, gone))
		former, next := n.names(t), version(newer, two, kept)
		left := k
		if err := n.process(failing{n.Images, &left}).Claim(n.ctx, next); !errors.Is(err, errInjected) {
			t.Fatalf("after %d writes: %v", k, err)
		}
		n.sweep(t, newer)
		if _, err := n.ReleaseFormer(n.ctx, newer); err != nil {
			t.Fatal(err)
		}
		for name := range former {
			if n.name(t, name) == nil {
				t.Errorf("after %d writes %s is gone", k, name)
			}
		}
		n.claim(t, next)
		if r, err := n.ReleaseFormer(n.ctx, newer); err != nil || len(r.Deleted) != 2 || !slices.Contains(r.Deleted, gone) {
			t.Errorf("released %+v, %v", r, err) // and the digest reference of the former image
		}
		want := []string{}
		for _, name := range next.Names {
			want = append(want, name.Name)
		}
		slices.Sort(want)
		if diff := cmp.Diff(want, slices.Sorted(maps.Keys(n.names(t)))); diff != "" {
			t.Errorf("names (-want +got):\n%s", diff)
		}
		if loss := n.loss(t, newer); loss != "" {
			t.Errorf("lost %q", loss)
		}
	}
}

// A conflict is found before the first write, wherever in the list it is.
func TestConflictChangesNothing(t *testing.T) {
	n, a, b := newNode(t), archive("a", Unpin), archive("b", Unpin)
	one, two := n.image(t, "one", ""), n.image(t, "two", "")
	n.claim(t, publishes(a, app, one))
	before := n.names(t)
	c := publishes(b, "registry.example/free:1", two)
	c.Names = append(c.Names, Name{Name: app, Target: two.target})
	look := func(ctx context.Context, c Claim) error {
		_, err := n.Changes(ctx, c)
		return err
	}
	for _, do := range []func(context.Context, Claim) error{n.Claim, look} {
		if err := do(n.ctx, c); !errors.Is(err, ErrNameConflict) || !strings.Contains(err.Error(), `ImageArchive "a"`) {
			t.Errorf("error %v", err)
		}
	}
	if diff := cmp.Diff(before, n.names(t)); diff != "" {
		t.Errorf("changed (-before +after):\n%s", diff)
	}
}

// containerd bounds a label to 4096 bytes, key and value together.
func TestRecordsFit(t *testing.T) {
	long := digest.Digest("sha512:" + strings.Repeat("f", 128))
	o := Owner{Name: strings.Repeat("n", 253), UID: strings.Repeat("u", 36), SpecHash: strings.Repeat("5", 64), Deletion: Retain, Created: time.Unix(1<<40, 0)}
	n := newNode(t)
	p, _, err := n.prepare(n.ctx, Claim{Owner: o, Pin: true, Replace: true, Import: Import{
		Source: strings.Repeat("\x01", 1000), Validator: strings.Repeat("\x01", 64), Digest: long, Index: long, Size: 1 << 60,
		Snapshotter: strings.Repeat("s", 76),
	}})
	if err != nil {
		t.Fatal(err)
	}
	r := p.record
	r.Name, r.Target, r.Serial, r.Names, r.Found = nameKey(app), long, 1<<60, 4096*3, &found{Pinned: true}
	if text := r.encode(); len(o.label())+len(text) > 4096 {
		t.Errorf("%d bytes", len(o.label())+len(text))
	}
}
