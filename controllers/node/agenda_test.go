package node

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/internal/importer"
)

func TestOldestFirst(t *testing.T) {
	b := newBench(t, newArchive("young", time.Minute), newArchive("old", time.Hour), newArchive("also-old", time.Hour))
	for _, name := range []string{"also-old", "old", "young"} {
		b.expect("check " + name)
		b.end(absent)
	}
	for _, name := range []string{"also-old", "old"} {
		b.expect("import " + name)
		b.wantState(name, "Ready=False/Importing Reconciling=True/Importing")
	}
	b.expect("wait 5s")
	b.endOf("old", good)
	b.wantState("old", "Ready=True/Imported")
	b.wantState("also-old", "Ready=False/Importing Reconciling=True/Importing")
	b.expect("import young")
	b.expect("wait 0s")
}

func TestWholeIsNotImported(t *testing.T) {
	b := newBench(t, newArchive("a", 0))
	b.expect("check a")
	b.end(whole)
	b.wantState("a", "Ready=True/Imported")
	b.expect("wait 0s")
	if e := b.report("a"); e.Attempts != 0 || e.ImageCount != 2 || e.IndexDigest != "sha256:1" || e.CompletionTime == nil {
		t.Errorf("entry %+v", e)
	}
}

func TestNewSpecStopsAndStartsAgain(t *testing.T) {
	a := newArchive("a", 0)
	b := newBench(t, a)
	b.expect("check a")
	b.end(absent)
	b.expect("import a")
	b.see(edited(a, func(a *v1alpha1.ImageArchive) { a.Spec.Source.File.Path = "new.tar" }))
	b.expect("stop a")
	b.end(outcome{err: errors.New("context canceled"), stopped: true})
	b.expect("release a")
	b.end(absent)
	b.expect("check a")
	b.end(absent)
	if got := b.expect("import a"); got.archive.Spec.Source.File.Path != "new.tar" || got.archive.Generation != 2 {
		t.Errorf("imports %+v", got.archive)
	}
	if e := b.report("a"); e.Attempts != 1 || e.ObservedGeneration != 2 || e.LastError != nil {
		t.Errorf("entry %+v", e)
	}
}

// The outcome of an import that ended before it could be stopped is that of another spec.
func TestOutcomeOfAnotherSpecIsIgnored(t *testing.T) {
	a := newArchive("a", 0)
	b := newBench(t, a)
	b.expect("check a")
	b.end(absent)
	b.expect("import a")
	b.see(edited(a, func(a *v1alpha1.ImageArchive) { a.Spec.IndexDigest = "sha256:2" }))
	b.end(good)
	b.wantState("a", "Ready=False/Pending Reconciling=True/Pending")
	b.expect("release a")
}

func TestSelectorChangeDisturbsNothing(t *testing.T) {
	a := newArchive("a", 0)
	b := newBench(t, a)
	b.expect("check a")
	b.end(absent)
	b.expect("import a")
	b.see(edited(a, func(a *v1alpha1.ImageArchive) { a.Spec.NodeSelector = &metav1.LabelSelector{} }))
	b.expect("wait 0s")
	b.end(good)
	if e := b.report("a"); short(e.Conditions) != "Ready=True/Imported" || e.ObservedGeneration != 2 || e.Conditions[0].ObservedGeneration != 2 {
		t.Errorf("entry %+v", e)
	}
	b.expect("wait 0s")
}

func TestDeletedIsStoppedAndSwept(t *testing.T) {
	b := newBench(t, newArchive("a", 0))
	b.expect("check a")
	b.end(absent)
	b.expect("import a")
	b.see()
	b.expect("stop a")
	b.end(outcome{stopped: true})
	b.expect("sweep")
	b.end(outcome{err: errors.New("no")})
	b.expect("wait 2s")
	b.pass(2 * time.Second)
	b.expect("sweep")
	b.end(absent)
	b.expect("wait 0s")
}

func TestSuspend(t *testing.T) {
	suspend := func(a *v1alpha1.ImageArchive) { a.Spec.Suspend = true }
	a, done := newArchive("a", time.Hour), newArchive("done", 0)
	b := newBench(t, a, done)
	b.expect("check a")
	b.end(absent)
	b.expect("check done")
	b.end(whole)
	b.expect("import a")
	b.see(edited(a, suspend), edited(done, suspend))
	b.expect("stop a")
	b.end(outcome{stopped: true})
	b.expect("wait 0s")
	b.wantState("a", "Ready=False/Suspended")
	b.wantState("done", "Ready=True/Imported")

	b.see(a, done)
	b.expect("import a") // continues: nothing was released
	if e := b.report("a"); e.Attempts != 2 {
		t.Errorf("attempts %d, want 2", e.Attempts)
	}
}

// A restarted agent looks whether a suspended archive is there, and opens no source for it.
func TestSuspendedIsChecked(t *testing.T) {
	b := newBench(t, edited(newArchive("a", 0), func(a *v1alpha1.ImageArchive) { a.Spec.Suspend = true }))
	b.expect("check a")
	b.end(whole)
	b.wantState("a", "Ready=True/Imported")
}

func TestRetry(t *testing.T) {
	b := newBench(t, newArchive("a", time.Hour), newArchive("other", 0))
	b.expect("check a")
	b.end(absent)
	b.expect("check other")
	b.end(whole)
	for i, wait := range []time.Duration{2, 4, 8, 16, 32, 64, 128, 256, 300, 300} {
		b.expect("import a")
		b.end(unreachable)
		b.wantState("a", "Ready=False/SourceUnavailable Reconciling=True/Pending")
		b.expect(fmt.Sprintf("wait %s", wait*time.Second))
		if e := b.report("a"); e.Attempts != int32(i+1) || e.LastError == nil || e.LastError.Reason != "SourceUnavailable" {
			t.Fatalf("entry %+v", e)
		}
		b.pass(wait * time.Second)
	}
	b.expect("import a")
	b.wantState("a", "Ready=False/SourceUnavailable Reconciling=True/Importing")
	b.end(good)
	if e := b.report("a"); short(e.Conditions) != "Ready=True/Imported" || e.LastError != nil || e.Attempts != 11 ||
		*e.Bytes != (v1alpha1.ArchiveBytes{Total: 100, Done: 60, Skipped: 40}) || !e.StartTime.Time.Equal(epoch) {
		t.Errorf("entry %+v", e)
	}
}

func TestFailingArchiveLetsOthersPass(t *testing.T) {
	b := newBench(t, newArchive("bad", time.Hour), newArchive("good", 0))
	b.expect("check bad")
	b.end(absent)
	b.expect("check good")
	b.end(absent)
	b.limits.all = 1
	b.expect("import bad")
	b.end(unreachable)
	b.expect("import good")
	b.end(good)
	b.expect("wait 2s")
}

func TestStalled(t *testing.T) {
	a := newArchive("a", 0)
	b := newBench(t, a)
	b.expect("check a")
	b.end(absent)
	b.expect("import a")
	b.end(broken)
	b.wantState("a", "Ready=False/ArchiveInvalid Stalled=True/ArchiveInvalid")
	b.expect("release a")
	b.end(absent)
	b.expect("wait 12m0s")
	b.pass(12 * time.Minute)
	b.expect("import a")
	b.wantState("a", "Ready=False/ArchiveInvalid Stalled=True/ArchiveInvalid")
	b.end(broken)
	b.expect("release a")
	b.end(absent)

	asked := a.DeepCopy()
	asked.Annotations = map[string]string{v1alpha1.AnnotationReconcileRequestedAt: "now"}
	b.see(asked)
	b.expect("check a")
	b.end(absent)
	b.expect("import a")
	b.end(broken)
	b.expect("release a")
	b.end(absent)
	b.see(asked)
	b.expect("wait 12m0s")

	b.see(edited(asked, func(a *v1alpha1.ImageArchive) { a.Spec.NodeSelector = &metav1.LabelSelector{} }))
	b.expect("import a")
	b.end(good)
	b.wantState("a", "Ready=True/Imported")
}

// What failed transiently before does not make a stalled archive look as if it were tried all the time.
func TestTransientBecomesTerminal(t *testing.T) {
	b := newBench(t, newArchive("a", 0))
	b.expect("check a")
	b.end(absent)
	b.expect("import a")
	b.end(unreachable)
	b.pass(2 * time.Second)
	b.expect("import a")
	b.end(broken)
	b.wantState("a", "Ready=False/ArchiveInvalid Stalled=True/ArchiveInvalid")
	b.expect("release a")
	b.end(absent)
	b.pass(12 * time.Minute)
	b.expect("import a")
	b.end(unreachable)
	b.wantState("a", "Ready=False/SourceUnavailable Reconciling=True/Pending")
}

func TestRuntimeDown(t *testing.T) {
	b := newBench(t, newArchive("a", 0))
	b.expect("check a")
	b.end(down)
	b.wantState("a", "Ready=False/RuntimeUnavailable Reconciling=True/Pending")
	for _, wait := range []time.Duration{2, 4, 8, 15, 15, 15} {
		b.expect(fmt.Sprintf("wait %s", wait*time.Second))
		b.pass(wait * time.Second)
		b.expect("check a")
		b.end(down)
	}
	b.pass(time.Minute)
	b.expect("check a")
	b.end(absent)
	b.wantState("a", "Ready=False/Pending Reconciling=True/Pending")
	b.expect("import a")
	if e := b.report("a"); e.Attempts != 1 {
		t.Errorf("attempts %d: asking is none", e.Attempts)
	}
	b.end(down) // containerd went away in the middle
	b.pass(time.Minute)
	b.expect("check a") // it may have been done after all
	b.end(whole)
	b.wantState("a", "Ready=True/Imported")
}

// How long containerd was away does not put off what then fails for another reason. That it goes away with each
// import does.
func TestOutageEnds(t *testing.T) {
	b := newBench(t, newArchive("a", 0))
	for range 10 {
		b.expect("check a")
		b.end(down)
		b.pass(time.Minute)
	}
	b.expect("check a")
	b.end(absent)
	b.expect("import a")
	b.end(unreachable)
	b.expect("wait 2s")
	for _, wait := range []time.Duration{4, 8, 15} {
		b.pass(time.Minute)
		b.expect("import a")
		b.end(down)
		b.expect(fmt.Sprintf("wait %s", wait*time.Second))
		b.pass(time.Minute)
		b.expect("check a")
		b.end(absent)
	}
}

func withRequest(a *v1alpha1.ImageArchive, value string) *v1alpha1.ImageArchive {
	a = a.DeepCopy()
	a.Annotations = map[string]string{v1alpha1.AnnotationReconcileRequestedAt: value}
	return a
}

// Asked for while a job runs, a look comes after that job, however it ends.
func TestRequestOutlivesTheRunningJob(t *testing.T) {
	a := newArchive("a", 0)
	b := newBench(t, a)
	b.expect("check a")
	b.end(absent)
	for i, o := range []outcome{broken, unreachable, good} {
		b.expect("import a")
		b.see(withRequest(a, fmt.Sprint(i)))
		b.expect("wait 0s") // goes on
		b.end(o)
		if errors.Is(o.err, broken.err) {
			b.expect("release a")
			b.end(absent)
		}
		b.expect("check a")
		b.end(absent)
	}
	b.see(withRequest(a, "before a check"))
	b.expect("check a")
	b.see(withRequest(a, "during a check"))
	b.end(whole)
	b.expect("check a")
	b.end(whole)
	b.expect("wait 0s")
}

// Attempts that transfer all that fits, again and again, would wear the disk and the network.
func TestFullDiskIsNotTriedAllTheTime(t *testing.T) {
	b := newBench(t, newArchive("a", 0))
	b.expect("check a")
	b.end(absent)
	b.expect("import a")
	b.end(outcome{err: fmt.Errorf("write: %w", importer.ErrInsufficientDisk)})
	b.wantState("a", "Ready=False/InsufficientDisk Reconciling=True/Pending")
	b.expect("wait 12m0s")
}

// restart is a new process that finds what the old one has reported.
func (b *bench) restart(archives ...*v1alpha1.ImageArchive) (*bench, *v1alpha1.NodeImageStateStatus) {
	written := b.status(b.running, b.now)
	n := &bench{t: b.t, agenda: newAgenda(noJitter), now: b.now.Add(time.Hour)}
	n.restore(written)
	n.see(archives...)
	return n, written
}

func TestRestartWithEverythingDone(t *testing.T) {
	a := newArchive("a", 0)
	b := newBench(t, a)
	b.expect("check a")
	b.end(absent)
	b.expect("import a")
	b.end(good)

	b, written := b.restart(a)
	for _, step := range []struct {
		job string
		o   outcome
	}{{"sweep", down}, {"sweep", absent}, {"check a", down}, {"check a", whole}} { // containerd may come up later than the agent
		b.expect(step.job)
		if c := compare(written, b.status(b.running, b.now)); c != noChange {
			t.Errorf("would write %v before containerd has answered", c)
		}
		b.end(step.o)
		b.pass(time.Minute)
	}
	if c := compare(written, b.status(nil, b.now)); c != noChange {
		t.Errorf("would write %v though nothing has changed", c)
	}
	b.expect("wait 0s")
}

func TestRestartContinues(t *testing.T) {
	a, poison := newArchive("a", 0), newArchive("poison", time.Hour)
	b := newBench(t, poison)
	b.expect("check poison")
	b.end(absent)
	b.expect("import poison") // and the process dies

	b, _ = b.restart(a, poison)
	b.firstSweep()
	b.expect("check a")
	b.end(absent)
	b.expect("import a")
	b.end(good)
	b.expect("wait 2s")
	b.pass(2 * time.Second)
	b.expect("check poison")
	b.end(absent)
	b.expect("import poison")
	if e := b.report("poison"); e.Attempts != 2 || !e.StartTime.Time.Equal(epoch) {
		t.Errorf("entry %+v", e)
	}
}

func TestRestartRemembersFailures(t *testing.T) {
	a := newArchive("a", 0)
	b := newBench(t, a)
	b.expect("check a")
	b.end(absent)
	b.expect("import a")
	b.end(broken)
	b.expect("release a")
	b.end(absent)

	b, written := b.restart(a)
	if c := compare(written, b.status(nil, b.now)); c != noChange {
		t.Errorf("would write %v", c)
	}
	b.wantState("a", "Ready=False/ArchiveInvalid Stalled=True/ArchiveInvalid")
}

func TestRestartAfterChanges(t *testing.T) {
	a := newArchive("a", 0)
	b := newBench(t, a, newArchive("gone", 0))
	for range 2 {
		b.expect([]string{"check a", "check gone"}[b.checkedCount()])
		b.end(whole)
	}
	b, _ = b.restart(edited(a, func(a *v1alpha1.ImageArchive) { a.Spec.Pin = new(bool) }))
	owner := b.records["uid-a"].owner
	if got := b.expect("sweep").wanted; !slices.Equal(got, []importer.Owner{owner, {Name: "a"}}) {
		t.Errorf("wanted %+v", got)
	}
	b.end(absent)
	b.expect("check a")
	b.end(absent)
	b.wantState("a", "Ready=False/Pending Reconciling=True/Pending")
}

func (b *bench) checkedCount() int {
	n := 0
	for _, rec := range b.records {
		if rec.checked {
			n++
		}
	}
	return n
}

func TestRecreatedIsAnotherArchive(t *testing.T) {
	a := newArchive("a", 0)
	b := newBench(t, a)
	b.expect("check a")
	b.end(whole)
	again := newArchive("a", 0)
	again.UID = "uid-b"
	b.see(again)
	b.expect("sweep")
	b.end(absent)
	b.expect("check b")
	if e := b.report("a"); e.UID != "uid-b" || short(e.Conditions) != "Ready=False/Pending Reconciling=True/Pending" {
		t.Errorf("entry %+v", e)
	}
}

func TestNewsOnlyOnce(t *testing.T) {
	b := newBench(t, newArchive("a", 0))
	b.expect("check a")
	b.end(absent)
	var got []news
	for _, o := range []outcome{unreachable, unreachable, broken, broken, unreachable} {
		o.job = b.records["uid-a"].job(jobImport)
		got = append(got, b.learn(&o, b.now))
	}
	if want := []news{newlyFailed, nothingNew, newlyFailed, nothingNew, newlyFailed}; !slices.Equal(got, want) {
		t.Errorf("news %v, want %v", got, want)
	}
}

func TestJitterIsFull(t *testing.T) {
	var a attempt
	a.failed(epoch, retryLimit, func() float64 { return 0 })
	if a.notBefore != epoch {
		t.Errorf("waits %s, want none", a.notBefore.Sub(epoch))
	}
	a.failed(epoch, retryLimit, func() float64 { return 0.5 })
	if a.notBefore != epoch.Add(2*time.Second) {
		t.Errorf("waits %s, want half of 4s", a.notBefore.Sub(epoch))
	}
	a.stalled(epoch, func() float64 { return 0 })
	if a.notBefore != epoch.Add(8*time.Minute) {
		t.Errorf("waits %s, want 8m", a.notBefore.Sub(epoch))
	}
	if got := backoffBound(1000, retryLimit); got != retryLimit {
		t.Errorf("after 1000 tries %s", got)
	}
}
