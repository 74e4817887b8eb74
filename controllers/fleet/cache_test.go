package fleet

import (
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
)

// What the cache leaves out changes nothing that is counted or decided.
func TestThinStatesAreCountedAlike(t *testing.T) {
	sayings := []saying{saysReady, saysImporting, saysPending, saysRetrying, saysStalled, saysSuspended, saysWaiting, saysLost}
	nodes, full := cluster(sayings...)
	_, thin := cluster(sayings...)
	k := &texts{known: map[string]string{}}
	written := metav1.NewTime(epoch.Add(-time.Minute))
	for name, state := range thin {
		for _, s := range []*v1alpha1.NodeImageState{state, full[name]} {
			s.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: name, UID: "u"}}
			s.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "tarlift-rollout", Time: condition.Timestamp(epoch)}, {Manager: "tarlift-node", Subresource: "status", Time: &written}}
			s.Spec.Admitted = []v1alpha1.Admission{{Archive: "a", UID: "uid-a", Generation: 1, Time: *condition.Timestamp(epoch)}}
		}
		for range 2 { // a transformation may see its own result
			k.thinState(state)
		}
	}
	for i := range nodes {
		nodes[i].UID = "u"
	}
	a := newArchive("a", 0)
	if diff := cmp.Diff(rollUp(a, nodes, full, standing{}, epoch), rollUp(a, nodes, thin, standing{}, epoch)); diff != "" {
		t.Errorf("thin states are counted otherwise (-full +thin):\n%s", diff)
	}
	for name := range full {
		f := &member{name: name, state: full[name], entry: entryFor(a, full[name]), admission: admissionFor("a", full[name])}
		m := &member{name: name, state: thin[name], entry: entryFor(a, thin[name]), admission: admissionFor("a", thin[name])}
		if f.flaw(1) != m.flaw(1) || f.waits() != m.waits() || signOf(f.entry).reason != signOf(m.entry).reason ||
			!reportTime(f.state).Equal(reportTime(m.state)) || !reportTime(m.state).Equal(written.Time) || len(m.state.ManagedFields) != 1 {
			t.Errorf("%s is another: %+v, %+v", name, f.entry, m.entry)
		}
	}
	x, y := &thin["n1"].Status.Archives[1].Name, &thin["n2"].Status.Archives[1].Name
	if unsafe.StringData(*x) != unsafe.StringData(*y) {
		t.Error("an archive's name is there twice")
	}
}
