package fleet

import (
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
)

// What the cache leaves out changes nothing that is counted or decided.
func TestTrimmedStatesAreCountedAlike(t *testing.T) {
	sayings := []saying{saysReady, saysImporting, saysPending, saysRetrying, saysStalled, saysSuspended, saysWaiting, saysLost}
	nodes, full := cluster(sayings...)
	_, thin := cluster(sayings...)
	k := newInterner()
	for name, state := range thin {
		for _, s := range []*v1alpha1.NodeImageState{state, full[name]} {
			s.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: name, UID: "u"}}
			s.Spec.Admitted = []v1alpha1.Admission{{Archive: "a", UID: "uid-a", Generation: 1, Time: *condition.Timestamp(epoch)}}
		}
		for range 2 { // a transformation may see its own result
			k.trimState(state)
		}
	}
	for i := range nodes {
		nodes[i].UID = "u"
	}
	a := newArchive("a")
	if diff := cmp.Diff(aggregated(a, nodes, full, 0), aggregated(a, nodes, thin, 0)); diff != "" {
		t.Errorf("thin states are counted otherwise (-full +thin):\n%s", diff)
	}
	for name := range full {
		f := &selectedNode{name: name, state: full[name], entry: entryFor(a, full[name])}
		m := &selectedNode{name: name, state: thin[name], entry: entryFor(a, thin[name])}
		if f.ready() != m.ready() || f.waits() != m.waits() || f.stopped() != m.stopped() || f.admittedTime() != m.admittedTime() {
			t.Errorf("%s is another: %+v, %+v", name, f.entry, m.entry)
		}
	}
	x, y := &thin["n1"].Status.Archives[1].Name, &thin["n2"].Status.Archives[1].Name
	if unsafe.StringData(*x) != unsafe.StringData(*y) {
		t.Error("an archive's name is there twice")
	}
}
