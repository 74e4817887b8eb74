package importer

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What an archive has brought stays while another of its name is still to import, and is that one's then.
func TestSweepSparesByName(t *testing.T) {
	n, one := newNode(t, "linux/amd64"), version(t, "one")
	n.bring(t, one, under(named("a", "1"), DeletionDelete))
	before := n.state(t)
	again := named("a", "9")
	for range 2 {
		swept, err := n.Sweep(t.Context(), []Owner{again, {Name: "a"}, {Name: "b"}}, nil)
		if err != nil || len(swept) != 1 || swept[0].Owner.UID != "1" || len(swept[0].Spared) != 2 || len(swept[0].Deleted) != 0 {
			t.Fatalf("swept %+v, %v", swept, err)
		}
	}
	if diff := cmp.Diff(before, n.state(t)); diff != "" {
		t.Errorf("changed (-before +after):\n%s", diff)
	}
	if r := n.bring(t, one, again); r.Bytes.Written != 0 {
		t.Errorf("wrote %d bytes that were there", r.Bytes.Written)
	}
	if got := n.sweep(t, again); len(got) != 0 || len(n.state(t).Images) != 2 {
		t.Errorf("swept %q, state %v", got, n.state(t))
	}
}

// What belongs to owners of whom nobody knows whether they are wanted stays as it is: published, half published, and kept
// for the next attempt.
func TestAmongOthers(t *testing.T) {
	a, b := named("a", "1"), named("b", "2")
	notB := func(uid string) bool { return uid == "1" }
	n := newNode(t, "linux/amd64")
	for _, o := range []Owner{a, b} {
		n.bring(t, version(t, "one"), under(o, DeletionDelete))
	}
	swept, err := n.Sweep(t.Context(), nil, notB)
	if err != nil || len(swept) != 1 || swept[0].Owner.UID != "1" || len(swept[0].Retained) != 2 {
		t.Errorf("swept %+v, %v", swept, err)
	}
	if _, loss, found, err := n.Imported(t.Context(), b); !found || loss != "" || err != nil {
		t.Errorf("of the other: found %v, loss %q, %v", found, loss, err)
	}

	n = newNode(t, "linux/amd64")
	killed(t, n, blobOf(t, version(t, "one"), false), wanted(b), 1)
	before := n.state(t)
	if err := n.Recover(t.Context(), nil, notB); err != nil {
		t.Fatal(err)
	}
	unchanged(t, before, n.state(t))
	if err := n.Recover(t.Context(), nil, func(uid string) bool { return uid == "2" }); err != nil {
		t.Fatal(err)
	}
	if s := n.state(t); len(s.Leases)+len(s.Images) != 0 {
		t.Errorf("left %v", s)
	}
}
