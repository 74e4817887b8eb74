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
		swept, err := n.Sweep(t.Context(), []Owner{again, {Name: "a"}, {Name: "b"}})
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
