package node

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"k8s.io/utils/ptr"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/internal/importer"
)

const lost = "docker.io/library/a:1 is not pinned"

var (
	lossy    = outcome{found: true, loss: lost, result: imported}
	repaired = outcome{found: true, repaired: 1, result: imported}
)

// newDone is a bench on which an archive was imported.
func newDone(t *testing.T, edit func(*v1alpha1.ImageArchive)) (*bench, *v1alpha1.ImageArchive) {
	t.Helper()
	a := newArchive("a", 0)
	if edit != nil {
		edit(a)
	}
	b := newBench(t, a)
	b.expect("check a")
	b.end(absent)
	b.expect("import a")
	b.end(good)
	b.wantState("a", "Ready=True/Imported")
	b.pass(time.Second)
	return b, a
}

// changed is that an image has changed now, by others.
func (b *bench) changed(name string) {
	b.disturb(disturbance{names: map[string]time.Time{name: b.now}}, b.now)
}

// ends is end, for outcomes that must be this news.
func (b *bench) ends(o outcome, want news) {
	b.t.Helper()
	b.end(o)
	if b.last != want {
		b.t.Errorf("news %d, want %d", b.last, want)
	}
}

func TestRepairNeedsNoImport(t *testing.T) {
	b, _ := newDone(t, nil)
	before := b.report("a")
	b.changed("docker.io/library/a:1")
	b.expect("check a")
	b.wantState("a", "Ready=True/Imported")
	b.ends(lossy, newlyLost)
	b.wantState("a", "Ready=False/Drifted Reconciling=True/Pending")
	if j := b.expect("check a"); !j.repair {
		t.Error("did not repair")
	}
	b.ends(repaired, newlyRepaired)
	b.expect("wait 0s")
	after := b.report("a")
	after.Conditions[0].LastTransitionTime = before.Conditions[0].LastTransitionTime
	if s, w := stateOf(&v1alpha1.NodeImageStateStatus{Archives: []v1alpha1.ArchiveState{before}}),
		stateOf(&v1alpha1.NodeImageStateStatus{Archives: []v1alpha1.ArchiveState{after}}); compare(s, w) != noChange {
		t.Errorf("before %+v, after %+v: a repair within a moment is worth no write", before, after)
	}
}

func TestLossIsImportedAgain(t *testing.T) {
	b, _ := newDone(t, nil)
	b.changed("docker.io/library/a:1")
	b.expect("check a")
	b.ends(absent, newlyLost)
	b.expect("check a")
	b.ends(absent, nothingNew) // known, and not repaired
	b.wantState("a", "Ready=False/Drifted Reconciling=True/Pending")
	j := b.expect("import a")
	b.wantState("a", "Ready=False/Drifted Reconciling=True/Importing")
	if len(j.names) != 2 {
		t.Errorf("names %q: those that are gone were this archive's", j.names)
	}
	if e := b.report("a"); e.Attempts != 1 || e.CompletionTime != nil {
		t.Errorf("entry %+v", e)
	}
	b.ends(good, newlyHealed)
	b.wantState("a", "Ready=True/Imported")
	b.expect("wait 0s")
}

// What is wrong stays visible while the source is away, and what a node can do without it is done all the same.
func TestLossWithoutSource(t *testing.T) {
	b, a := newDone(t, nil)
	b.changed("docker.io/library/a:1")
	b.expect("check a")
	b.end(lossy)
	b.expect("check a")
	b.end(lossy)
	for _, wait := range []time.Duration{2, 4, 8} {
		b.expect("import a")
		b.end(unreachable)
		b.wantState("a", "Ready=False/Drifted Reconciling=True/Pending")
		want := lost + lossDetail + "get: source unavailable"
		if e := b.report("a"); e.Conditions[0].Message != want || e.LastError == nil || e.LastError.Reason != "SourceUnavailable" {
			t.Errorf("entry %+v", e)
		}
		b.expect(fmt.Sprintf("wait %s", wait*time.Second))
		b.pass(wait * time.Second)
	}
	b.expect("import a")
	b.end(broken)
	b.wantState("a", "Ready=False/Drifted Stalled=True/ArchiveInvalid")
	b.expect("release a")
	b.end(absent)

	b, _ = b.restart(a)
	b.firstSweep()
	b.wantState("a", "Ready=False/Drifted Stalled=True/ArchiveInvalid")
	if r := b.records[a.UID]; r.loss != lost || !r.failure.terminal {
		t.Errorf("after a restart lost %q, failed %+v", r.loss, r.failure)
	}
	b.pass(time.Minute)
	b.expect("check a")
	b.ends(whole, nothingNew) // somebody has mended it
	b.wantState("a", "Ready=True/Imported")
}

func TestIgnoredLossIsOnlyReported(t *testing.T) {
	b, a := newDone(t, func(a *v1alpha1.ImageArchive) { a.Spec.DriftPolicy = v1alpha1.DriftIgnore })
	b.changed("docker.io/library/a:1")
	b.expect("check a")
	b.ends(absent, newlyLost)
	b.wantState("a", "Ready=False/Drifted Stalled=True/Drifted")
	b.expect("wait 0s")

	b, _ = b.restart(a)
	b.firstSweep()
	b.pass(time.Minute)
	b.expect("check a")
	b.ends(absent, nothingNew)
	b.wantState("a", "Ready=False/Drifted Stalled=True/Drifted")
	b.expect("wait 0s")

	b.see(edited(a, func(a *v1alpha1.ImageArchive) { a.Spec.DriftPolicy = v1alpha1.DriftReimport }))
	if j := b.expect("check a"); !j.repair {
		t.Error("did not repair")
	}
	b.end(absent)
	b.expect("import a")
}

func TestSuspendedLossIsOnlyReported(t *testing.T) {
	b, a := newDone(t, nil)
	b.see(edited(a, func(a *v1alpha1.ImageArchive) { a.Spec.Suspend = true }))
	b.changed("docker.io/library/a:1")
	b.expect("check a")
	b.end(lossy)
	b.wantState("a", "Ready=False/Suspended")
	b.expect("wait 0s")
	b.see(a)
	b.expect("check a")
}

// An agent that was down while images were lost takes it for no first import, even if its report is gone.
func TestLossWhileTheAgentWasDown(t *testing.T) {
	b := newBench(t, newArchive("a", 0))
	b.expect("check a")
	b.ends(lossy, newlyLost)
	b.wantState("a", "Ready=False/Drifted Reconciling=True/Pending")
}

func TestDisturbances(t *testing.T) {
	b, other := newDone(t, func(a *v1alpha1.ImageArchive) { a.Spec.Unpack = ptr.To(false) })
	for _, test := range []struct {
		why   string
		d     disturbance
		check bool
	}{
		{"an image of others", disturbance{names: map[string]time.Time{"docker.io/library/c:1": b.now}}, false},
		{"one of its own", disturbance{names: map[string]time.Time{"docker.io/library/b:1": b.now}}, true},
		{"one of its own, before the import had ended: its own doing", disturbance{names: map[string]time.Time{"docker.io/library/b:1": b.now.Add(-time.Second)}}, false},
		{"a snapshot: it has none", disturbance{names: map[string]time.Time{"": b.now}}, false},
		{"what was not seen", disturbance{all: b.now}, true},
	} {
		b.records[other.UID].checked, b.records[other.UID].disturbed = true, time.Time{}
		b.disturb(test.d, b.now)
		if got := !b.records[other.UID].checked; got != test.check {
			t.Errorf("%s: check %v, want %v", test.why, got, test.check)
		}
	}
	b, _ = newDone(t, nil)
	b.changed("")
	b.expect("check a") // a snapshot
	b.pass(time.Second)
	b.changed("docker.io/library/a:1") // which this check may not have seen
	b.end(whole)
	b.expect("check a")
	b.end(whole)
	b.expect("wait 0s")
}

// A loss that happens while a source is asked does not wait for its answer.
func TestLossEndsAProbe(t *testing.T) {
	b, _ := newDone(t, withInterval(time.Minute))
	b.pass(2 * time.Minute)
	b.expect("probe a")
	b.changed("docker.io/library/a:1")
	b.expect("stop a")
	b.end(outcome{stopped: true})
	b.expect("check a")
}

// Somebody who removes what is mended again and again is answered more slowly, but within a minute.
func TestRelapses(t *testing.T) {
	b, _ := newDone(t, nil)
	for i, wait := range []time.Duration{0, 2, 4, 8, 16, 30, 30} {
		b.changed("docker.io/library/a:1")
		b.expect("check a")
		b.ends(lossy, newlyLost)
		if wait > 0 {
			b.expect(fmt.Sprintf("wait %s", wait*time.Second))
		}
		b.pass(wait * time.Second)
		if j := b.expect("check a"); !j.repair {
			t.Fatalf("loss %d was not repaired", i)
		}
		b.ends(repaired, newlyRepaired)
		b.pass(time.Second)
	}
	b.pass(2 * relapseTime)
	b.changed("docker.io/library/a:1")
	b.expect("check a")
	b.end(lossy)
	b.expect("check a")
}

// A lost blob brings no event.
func TestFullCheck(t *testing.T) {
	b := newBench(t, newArchive("a", time.Hour), newArchive("failing", 0))
	b.checkInterval = 10 * time.Minute
	b.expect("check a")
	b.end(whole)
	b.expect("check failing")
	b.end(absent)
	b.expect("import failing")
	b.end(broken)
	b.expect("release failing")
	b.end(absent)
	b.expect("wait 11m0s") // the interval and a tenth: noJitter waits longest
	b.pass(11 * time.Minute)
	b.expect("check a")
	b.ends(outcome{found: true, loss: "docker.io/library/a:1 lacks sha256:1", result: imported}, newlyLost)
	b.expect("check a")
}

// A check that is due by the clock, and fails, is repeated after a wait and not at once.
func TestFullCheckThatFails(t *testing.T) {
	for why, o := range map[string]outcome{"containerd is away": down, "something is odd": {err: errors.New("not a manifest")}} {
		b := newBench(t, newArchive("a", 0))
		b.checkInterval = 10 * time.Minute
		b.expect("check a")
		b.end(whole)
		b.pass(11 * time.Minute)
		for _, wait := range []string{"wait 2s", "wait 4s"} {
			b.expect("check a")
			b.ends(o, nothingNew)
			b.wantState("a", "Ready=True/Imported")
			b.expect(wait)
			b.pass(4 * time.Second)
		}
		b.expect("check a")
		b.end(whole)
		b.expect("wait 11m0s")
		if t.Failed() {
			t.Fatal(why)
		}
	}
}

func TestRepairThatFails(t *testing.T) {
	b, _ := newDone(t, nil)
	b.changed("docker.io/library/a:1")
	b.expect("check a")
	b.end(lossy)
	b.expect("check a")
	b.end(down) // says nothing of whether it would have helped
	b.wantState("a", "Ready=False/Drifted Reconciling=True/Pending")
	b.pass(2 * time.Second)
	b.expect("check a")
	b.end(lossy)
	if j := b.expect("check a"); !j.repair {
		t.Error("gave up the repair")
	}
	b.end(outcome{err: errors.New("update")})
	b.wantState("a", "Ready=False/Drifted Reconciling=True/Pending")
	b.pass(4 * time.Second)
	b.expect("import a")
}

// What stalls because a name is in its way is tried as soon as that name changes.
func TestConflictEnds(t *testing.T) {
	a := newArchive("a", 0)
	b := newBench(t, a)
	b.expect("check a")
	b.end(absent)
	b.expect("import a")
	b.end(outcome{err: fmt.Errorf("name %q stands for something else: %w", "docker.io/library/x:1", importer.ErrNameConflict)})
	b.expect("release a")
	b.end(absent)
	b, _ = b.restart(a) // that name is known from the report then
	b.firstSweep()
	b.pass(time.Minute)
	b.expect("check a")
	b.end(absent)
	b.records[a.UID].stalled(b.now, noJitter)
	b.changed("docker.io/library/other:1")
	b.changed("docker.io/library/x:11")
	b.expect("wait 12m0s")
	b.changed("docker.io/library/x:1")
	b.expect("import a")
}

// Two archives that may replace a name take it from each other until the importer refuses it to the younger one. That one
// stalls, says why, and is tried no more often than anything that stalls.
func TestContestEnds(t *testing.T) {
	const name = "docker.io/library/a:1"
	taken := outcome{found: true, loss: name + " stands for another digest", result: imported}
	replace := func(a *v1alpha1.ImageArchive) { a.Spec.ConflictPolicy = v1alpha1.ConflictReplace }
	b := newBench(t, edited(newArchive("old", time.Hour), replace), edited(newArchive("young", 0), replace))
	for _, archive := range []string{"old", "young"} {
		b.expect("check " + archive)
		b.end(absent)
	}
	b.expect("import old")
	b.end(good)
	b.expect("import young")
	b.pass(time.Second)
	b.end(good)
	takeBack := func(archive string) {
		t.Helper()
		b.changed(name) // by the import that has ended now
		b.pass(time.Second)
		b.expect("check " + archive)
		b.ends(taken, newlyLost)
		b.pass(relapseLimit)
		if j := b.expect("check " + archive); !j.repair {
			t.Error("did not try without the source")
		}
		b.end(taken)
		b.expect("import " + archive)
	}
	for range 2 {
		for _, archive := range []string{"old", "young"} {
			takeBack(archive)
			b.ends(good, newlyHealed)
		}
	}
	takeBack("old")
	b.ends(good, newlyHealed)
	takeBack("young")
	conflict := outcome{opened: true, validator: "v1", err: fmt.Errorf("name %q: this archive and ImageArchive %q, which is older: %w", name, "old", importer.ErrNameConflict)}
	b.ends(conflict, newlyFailed)
	b.expect("release young")
	b.end(absent)
	b.wantState("old", "Ready=True/Imported")
	b.wantState("young", "Ready=False/Drifted Stalled=True/NameConflict")
	if e := b.report("young").LastError; e == nil || !strings.Contains(e.Message, `ImageArchive "old"`) {
		t.Errorf("last error %+v", e)
	}
	b.expect("wait 12m0s")
	b.pass(12 * time.Minute)
	b.expect("import young")
	b.ends(conflict, nothingNew)
	b.expect("release young")
	b.end(absent)
	b.expect("wait 12m0s")
}
