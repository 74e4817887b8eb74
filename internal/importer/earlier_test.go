package importer

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/google/go-cmp/cmp"

	"github.com/tarlift/tarlift/internal/archive/builder"
)

// asEarlier makes records what versions wrote that did not count publishings, and recorded no name and no policy.
func asEarlier(t *testing.T, n *node) {
	t.Helper()
	ctx := n.in(t.Context())
	list, err := n.services.images.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range list {
		for label, value := range img.Labels {
			if !isOwnerLabel(label) {
				continue
			}
			var members map[string]any
			if err := json.Unmarshal([]byte(value), &members); err != nil {
				t.Fatal(err)
			}
			for _, later := range []string{"name", "serial", "deletion", "validator"} {
				delete(members, later)
			}
			data, err := json.Marshal(members)
			if err != nil {
				t.Fatal(err)
			}
			set(t, n, images.Image{Name: img.Name, Labels: map[string]string{label: string(data)}}, "labels."+label)
		}
	}
}

// What an earlier version imported is whole, and stays as it is.
func TestEarlierRecords(t *testing.T) {
	n, a := newNode(t, "linux/amd64"), named("a", "1")
	n.bring(t, build(t, twoImages()), a)
	asEarlier(t, n)
	before := n.state(t)
	got, loss, found, err := n.Imported(t.Context(), a)
	if len(got.Names) != 4 || loss != "" || !found || err != nil {
		t.Errorf("names %v, loss %q, found %v, error %v", got.Names, loss, found, err)
	}
	if swept := n.sweep(t, a); len(swept) != 0 {
		t.Errorf("swept %v", swept)
	}
	unchanged(t, before, n.state(t))
	if swept := n.sweep(t); !slices.Equal(swept, []string{"1 retained 0 unpinned 4 deleted 0 in use 0"}) {
		t.Errorf("swept %v", swept)
	}
}

// An earlier version left the names that a changed archive listed no more: they are no part of what was published last.
func TestEarlierRecordsOfAChangedArchive(t *testing.T) {
	n, a := newNode(t, "linux/amd64"), named("a", "1")
	changed := a
	changed.SpecHash = "changed"
	n.bring(t, build(t, twoImages()), a)
	list := n.services.images
	n.services.images = unlisted{list}
	n.bring(t, build(t, builder.Archive{Images: twoImages().Images[1:]}), changed)
	n.services.images = list
	asEarlier(t, n)
	for _, swept := range [][]string{{"1 retained 0 unpinned 2 deleted 0 in use 0"}, {}} {
		got, loss, found, err := n.Imported(t.Context(), changed)
		if len(got.Names) != 2 || loss != "" || !found || err != nil {
			t.Errorf("names %v, loss %q, found %v, error %v", got.Names, loss, found, err)
		}
		if diff := cmp.Diff(swept, n.sweep(t, changed)); diff != "" {
			t.Errorf("swept (-want +got):\n%s", diff)
		}
	}
	if n.image(t, appName).Labels[labelPinned] != "" || n.image(t, toolName).Labels[labelPinned] == "" {
		t.Errorf("state %v", n.state(t))
	}
	if err := n.services.images.Delete(n.in(t.Context()), toolName); err != nil {
		t.Fatal(err)
	}
	if loss := n.loss(t, changed); loss != "1 of 2 names missing" {
		t.Errorf("lost %q", loss)
	}
}

// A record without a name may be a copy, on a name that somebody else made of ours.
func TestEarlierRecordsDeleteNothing(t *testing.T) {
	n, a := newNode(t, "linux/amd64"), under(named("a", "1"), DeletionDelete)
	one := version(t, "one")
	n.bring(t, one, a)
	asEarlier(t, n)
	ours := n.image(t, appName)
	theirs := images.Image{Name: "foreign.example/copy:1", Target: ours.Target, Labels: ours.Labels}
	if _, err := n.services.images.Create(n.in(t.Context()), theirs); err != nil {
		t.Fatal(err)
	}
	n.sweep(t, a)
	n.sweep(t)
	if n.image(t, theirs.Name) == nil {
		t.Error("the copy is gone")
	}
	n.bring(t, one, a) // by this version
	if got := n.sweep(t); !slices.Equal(got, []string{"1 retained 0 unpinned 0 deleted 2 in use 0"}) || n.image(t, theirs.Name) == nil {
		t.Errorf("swept %v, state %v", got, n.state(t))
	}
}
