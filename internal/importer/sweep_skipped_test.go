package importer

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What an archive has brought stays while another of its name is still to import, and is that one's then.
func TestSweepSkipsByName(t *testing.T) {
	n, one := newNode(t, "linux/amd64"), version(t, "one")
	n.bring(t, one, under(named("a", "1"), DeletionDelete))
	before := n.state(t)
	again := named("a", "9")
	for range 2 {
		swept, err := n.Sweep(t.Context(), []Owner{again, {Name: "a"}, {Name: "b"}}, nil)
		if err != nil || len(swept) != 1 || swept[0].Owner.UID != "1" || len(swept[0].Skipped) != 2 || len(swept[0].Deleted) != 0 {
			t.Fatalf("swept %+v, %v", swept, err)
		}
	}
	if diff := cmp.Diff(before, n.state(t)); diff != "" {
		t.Errorf("changed (-before +after):\n%s", diff)
	}
	if r := n.bring(t, one, again); r.Bytes.Written != 0 {
		t.Errorf("wrote %d bytes that were there", r.Bytes.Written)
	}
	if got := n.sweep(t, again); len(got) != 0 || len(n.state(t).Images) != 3 {
		t.Errorf("swept %q, state %v", got, n.state(t))
	}
}

// What belongs to owners of whom nobody knows whether they are wanted stays as it is: what was published, and what is kept
// for the next attempt.
func TestSweepLeavesTheUnknown(t *testing.T) {
	a, b := named("a", "1"), named("b", "2")
	onlyA := func(uid string) bool { return uid == "1" }
	n := newNode(t, "linux/amd64")
	for _, o := range []Owner{a, b} {
		n.bring(t, version(t, "one"), under(o, DeletionDelete))
	}
	swept, err := n.Sweep(t.Context(), nil, onlyA)
	if err != nil || len(swept) != 1 || swept[0].Owner.UID != "1" || len(swept[0].Retained) != 2 {
		t.Errorf("swept %+v, %v", swept, err)
	}
	if loss := n.loss(t, b); loss != "" {
		t.Errorf("the other lost %q", loss)
	}

	n = newNode(t, "linux/amd64")
	src := blobOf(t, version(t, "one"), false)
	src.onBytes = func(int64) error {
		if src.opened.Load() > 0 { // the first layer
			return errInjected
		}
		return nil
	}
	req := wanted(b)
	req.Keep = true
	if _, err := n.Import(t.Context(), src, req); !errors.Is(err, errInjected) {
		t.Fatal(err)
	}
	before := n.state(t)
	if len(before.Leases) != 1 {
		t.Fatalf("nothing was kept: %v", before)
	}
	if _, err := n.Sweep(t.Context(), nil, onlyA); err != nil {
		t.Fatal(err)
	}
	unchanged(t, before, n.state(t))
	if _, err := n.Sweep(t.Context(), nil, func(uid string) bool { return uid == "2" }); err != nil {
		t.Fatal(err)
	}
	if s := n.state(t); len(s.Leases)+len(s.Ingests)+len(s.Content) != 0 {
		t.Errorf("left %v", s)
	}
}
