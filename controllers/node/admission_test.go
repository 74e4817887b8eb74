package node

import (
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
)

const waitsForRollout = "Ready=False/WaitingForRollout Reconciling=True/WaitingForRollout"

func withRollout(a *v1alpha1.ImageArchive) { a.Spec.Rollout = &v1alpha1.Rollout{} }

func admission(a *v1alpha1.ImageArchive) v1alpha1.Admission {
	return v1alpha1.Admission{Archive: a.Name, UID: a.UID, Generation: a.Generation}
}

func TestRolloutLetsNodesIn(t *testing.T) {
	a := newArchive("a", 0)
	withRollout(a)
	for _, test := range []struct {
		why  string
		edit func(*v1alpha1.Admission)
		want string
	}{
		{"this one", func(*v1alpha1.Admission) {}, "import a"},
		{"an earlier archive of the name", func(e *v1alpha1.Admission) { e.UID = "earlier" }, "wait 0s"},
		{"an earlier generation", func(e *v1alpha1.Admission) { e.Generation = 0 }, "wait 0s"},
		{"too long ago", func(e *v1alpha1.Admission) { e.Expired = true }, "wait 0s"},
	} {
		b := newBench(t, a)
		b.expect("check a")
		b.end(absent)
		b.wantState("a", waitsForRollout)
		b.expect("wait 0s")
		e := admission(a)
		test.edit(&e)
		b.admit([]v1alpha1.Admission{{Archive: "other", UID: types.UID("uid-other"), Generation: 1}, e})
		b.expect(test.want)
		if t.Failed() {
			t.Fatal(test.why)
		}
	}
	b := newBench(t, newArchive("free", 0))
	b.expect("check free")
	b.end(absent)
	b.expect("import free") // which has no rollout
}

func TestWithdrawalStopsTheImport(t *testing.T) {
	a := newArchive("a", 0)
	withRollout(a)
	b := newBench(t, a)
	b.admit([]v1alpha1.Admission{admission(a)})
	b.expect("check a")
	b.end(absent)
	b.expect("import a")
	b.admit([]v1alpha1.Admission{admission(a)})
	b.expect("wait 0s")

	// An edit that is no new import: the controller has not renewed the admission yet, but the place is held.
	a = edited(a, func(a *v1alpha1.ImageArchive) { a.Spec.NodeSelector = &metav1.LabelSelector{} })
	b.see(a)
	b.expect("wait 0s")

	expired := admission(a)
	expired.Expired = true
	b.admit([]v1alpha1.Admission{expired})
	b.expect("stop a")
	b.end(outcome{stopped: true})
	b.wantState("a", waitsForRollout)
	b.expect("wait 0s") // nothing is released: it may be let in again

	b.admit([]v1alpha1.Admission{admission(a)})
	b.expect("import a")
	b.end(good)
	b.admit(nil)
	b.wantState("a", "Ready=True/Imported")
	b.expect("wait 0s")
}

// What failed and is not let in says both, but a failure that somebody has to look at stays one.
func TestFailuresOfARollout(t *testing.T) {
	a := newArchive("a", 0)
	withRollout(a)
	b := newBench(t, a)
	b.admit([]v1alpha1.Admission{admission(a)})
	b.expect("check a")
	b.end(absent)
	b.expect("import a")
	b.end(unreachable)
	b.wantState("a", "Ready=False/SourceUnavailable Reconciling=True/Pending")
	b.admit(nil)
	b.wantState("a", waitsForRollout)
	if e := b.report("a"); e.LastError == nil || e.LastError.Reason != "SourceUnavailable" {
		t.Errorf("last error %+v", e.LastError)
	}
	b.pass(time.Minute)
	b.expect("wait 0s")
	b.admit([]v1alpha1.Admission{admission(a)})
	b.expect("import a")
	b.end(broken)
	b.admit(nil)
	b.wantState("a", "Ready=False/ArchiveInvalid Stalled=True/ArchiveInvalid")
	b.expect("release a")
	b.end(absent)
	b.expect("wait 0s")
	b.admit([]v1alpha1.Admission{admission(a)})
	b.expect("import a") // at once, since the place is not another's meanwhile
}

// A heal that needs the source waits as any import; one that needs none does not.
func TestHealsOfARollout(t *testing.T) {
	b, _ := newDone(t, nil)
	a := edited(b.archives[0], withRollout)
	b.see(a)
	b.wantState("a", "Ready=True/Imported")
	b.changed("docker.io/library/a:1")
	b.expect("check a")
	b.end(lossy)
	if j := b.expect("check a"); !j.repair {
		t.Error("did not repair")
	}
	b.end(lossy)
	b.expect("wait 0s")
	b.wantState("a", "Ready=False/Drifted Reconciling=True/WaitingForRollout")
	b.admit([]v1alpha1.Admission{admission(a)})
	b.expect("import a")
}

// The controller takes a stall for the end of the admitted attempt if it is a new one, so the agent makes it one.
func TestAgentShowsThatAnotherAttemptFailed(t *testing.T) {
	a := newArchive("a", 0)
	withRollout(a)
	b := newBench(t, a)
	var since []metav1.Time
	for range 2 {
		b.admit([]v1alpha1.Admission{admission(a)})
		if !b.records[a.UID].checked {
			b.expect("check a")
			b.end(absent)
		}
		b.expect("import a")
		if got := b.state("a"); strings.Contains(got, "Stalled") {
			t.Errorf("while it runs: %s", got)
		}
		b.pass(time.Second)
		b.end(broken)
		b.wantState("a", "Ready=False/ArchiveInvalid Stalled=True/ArchiveInvalid")
		since = append(since, condition.Find(b.report("a").Conditions, "Stalled").LastTransitionTime)
		b.expect("release a")
		b.end(outcome{})
		b.admit(nil)
		b.pass(time.Second)
	}
	if since[0].Equal(&since[1]) {
		t.Errorf("both times it has stalled since %s", since[0])
	}
}
