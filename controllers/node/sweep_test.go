package node

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/internal/importer"
)

func (b *bench) expectSweep(want ...string) {
	b.t.Helper()
	var names []string
	for _, o := range b.expect("sweep").wanted {
		if o.UID == "" {
			o.Deletion = "skipped"
		}
		names = append(names, o.Name+" "+string(o.Deletion))
	}
	if !slices.Equal(names, want) {
		b.t.Errorf("wanted %q, want %q", names, want)
	}
}

// What went while no agent ran is swept first, with what was left for it.
func TestSweepAfterTheStart(t *testing.T) {
	a, old, gone := newArchive("a", time.Hour), newArchive("old", 2*time.Hour), newArchive("gone", 0)
	b := newBench(t, a, gone)
	b, _ = b.restart(old, a)
	b.expectSweep("old ", "a ", "old skipped", "a skipped")
	b.expect("wait 0s")
	b.end(absent)
	for _, name := range []string{"old", "a"} {
		b.expect("check " + name)
		b.end(whole)
	}
	b.expect("wait 0s")
}

// A node without archives reports which containerd it has.
func TestSweepWithoutArchives(t *testing.T) {
	b := newBench(t)
	if s := b.status(nil, b.now); s.Containerd.Version != "v2" || s.Summary != "0/0" {
		t.Errorf("status %+v", s)
	}
	b.expect("wait 0s")
}

// Without containerd all archives say why they wait; once it answers, the sweep is not far behind.
func TestStartWithoutContainerd(t *testing.T) {
	a := newArchive("a", 0)
	b, _ := newBench(t).restart(a)
	for _, wait := range []time.Duration{2, 4, 8, 15, 15} {
		for _, job := range []string{"sweep", "check a"} {
			b.expect(job)
			b.end(down)
		}
		b.wantState("a", "Ready=False/RuntimeUnavailable Reconciling=True/Pending")
		b.expect("wait " + (wait * time.Second).String())
		b.pass(wait * time.Second)
	}
	b.see(a, newArchive("new", 0))
	b.expectSweep("a ", "new ", "a skipped", "new skipped")
	b.end(absent)
	b.expect("check a")
	b.end(absent)
	b.wantState("a", "Ready=False/Pending Reconciling=True/Pending")
}

// A sweep that fails holds up nothing else.
func TestSweepThatFails(t *testing.T) {
	b, _ := newBench(t).restart(newArchive("a", 0))
	b.expect("sweep")
	b.end(outcome{err: errors.New("lease: not a lease")})
	b.expect("check a")
	b.end(absent)
	b.wantState("a", "Ready=False/Pending Reconciling=True/Pending")
	b.expect("import a")
	b.end(good)
	b.wantState("a", "Ready=True/Imported")
	b.expect("wait 2s")
	b.pass(2 * time.Second)
	b.expect("sweep")
	b.end(absent)
	b.expect("wait 0s")
}

func TestSweepWhenAnArchiveGoes(t *testing.T) {
	a, gone := newArchive("a", time.Hour), newArchive("gone", 0)
	a.Spec.DeletionPolicy = v1alpha1.DeletionRetain
	b := newBench(t, a, gone)
	for _, name := range []string{"a", "gone"} {
		b.expect("check " + name)
		b.end(whole)
	}
	b.see(a)
	for _, wait := range []string{"wait 2s", "wait 4s"} {
		b.expectSweep("a Retain")
		b.end(outcome{err: errors.New("no")})
		b.expect(wait)
		b.pass(4 * time.Second)
	}
	b.expectSweep("a Retain")
	b.end(absent)
	b.expect("wait 0s")
}

// An import that may be publishing has ended before its names are swept.
func TestSweepWaitsForTheGone(t *testing.T) {
	a, gone := newArchive("a", time.Hour), newArchive("gone", 0)
	b := newBench(t, a, gone)
	for _, name := range []string{"a", "gone"} {
		b.expect("check " + name)
		b.end(absent)
	}
	b.expect("import a")
	b.expect("import gone")
	b.see(a)
	b.expect("stop gone")
	b.expect("wait 0s")
	b.endOf("gone", outcome{stopped: true})
	b.expectSweep("a ", "a skipped") // beside the import of what is wanted
	b.end(absent)
	b.expect("wait 0s")
}

func TestSweepRecordsPolicies(t *testing.T) {
	withPolicy := func(p v1alpha1.DeletionPolicy) func(*v1alpha1.ImageArchive) {
		return func(a *v1alpha1.ImageArchive) { a.Spec.DeletionPolicy = p }
	}
	a := newArchive("a", 0)
	b := newBench(t, a)
	b.expect("check a")
	b.end(absent)
	b.expect("import a")
	a = edited(a, withPolicy(v1alpha1.DeletionDelete))
	b.see(a)
	b.expectSweep("a Delete", "a skipped") // and the import goes on
	a = edited(a, withPolicy(v1alpha1.DeletionRetain))
	b.see(a)
	b.end(absent)
	b.expectSweep("a Retain", "a skipped")
	b.end(absent)
	b.expect("wait 0s")
	b.end(good) // under the policy with which it began
	b.expectSweep("a Retain")
	b.end(absent)
	b.expect("wait 0s")
}

func TestSweepNowAndThen(t *testing.T) {
	b := &bench{t: t, agenda: newAgenda(noJitter), now: epoch}
	b.checkInterval = 10 * time.Minute
	b.see()
	b.firstSweep()
	b.expect("wait 11m0s")
	b.pass(11 * time.Minute)
	b.expect("sweep")
	b.end(absent)
	b.expect("wait 11m0s")
}

// Of an archive whose selector cannot be read nobody knows whether it wants this node.
func TestSweepSkipsTheUnclear(t *testing.T) {
	b := newBench(t)
	b.unclear = []importer.Owner{{Name: "unclear", UID: "u", Deletion: "Delete"}}
	b.see(newArchive("a", 0))
	b.expect("check a")
	b.end(whole)
	b.see()
	b.expectSweep("unclear Delete", "unclear skipped")
	b.end(absent)
	b.expect("wait 0s")
}

// A recreated archive wants what the earlier one has brought: that stays until the new one has it, or fails for good.
func TestSweepSkipsWhatARecreatedArchiveMayWant(t *testing.T) {
	skipped := outcome{released: []importer.Released{{Owner: importer.Owner{Name: "a"}, Skipped: []string{"docker.io/library/a:1"}}}}
	for _, test := range []struct {
		why   string
		first outcome // of the import
		ends  bool    // the skipping
	}{
		{"imported", good, true},
		{"broken", broken, true},
		{"the disk is full, perhaps of these", outcome{err: importer.ErrInsufficientDisk}, true},
		{"the source is away", unreachable, false},
	} {
		b, old := newDone(t, func(a *v1alpha1.ImageArchive) { a.Spec.DeletionPolicy = v1alpha1.DeletionDelete })
		again := old.DeepCopy()
		again.UID = "uid-b"
		b.see(again)
		b.expectSweep("a Delete", "a skipped")
		b.end(skipped)
		b.expect("check b")
		b.end(absent)
		b.expect("import b")
		b.end(test.first)
		if test.first.err != nil && test.ends && len(b.releases) > 0 {
			b.expect("release b")
			b.end(absent)
		}
		if test.ends {
			b.expectSweep("a Delete")
			b.end(absent)
			b.expectNoSweep()
		} else {
			b.expect("wait 2s")
		}
		if t.Failed() {
			t.Fatal(test.why)
		}
	}
}

func (b *bench) expectNoSweep() {
	b.t.Helper()
	if start, _, _ := b.next(b.running, b.now); start != nil {
		b.t.Errorf("begins another %s", start.kind)
	}
}

// What is suspended, or waits for a place, has not been imported yet.
func TestSweepSkipsForThoseThatWait(t *testing.T) {
	suspended, waits, unclear := newArchive("suspended", 2*time.Hour), newArchive("waits", time.Hour), importer.Owner{Name: "unclear", UID: "u"}
	suspended.Spec.Suspend = true
	withRollout(waits)
	b := newBench(t, suspended, waits)
	b.unclear = []importer.Owner{unclear}
	for _, name := range []string{"suspended", "waits"} {
		b.expect("check " + name)
		b.end(absent)
	}
	b.sweep.need()
	b.expectSweep("unclear ", "suspended ", "waits ", "unclear skipped", "suspended skipped", "waits skipped")
	b.end(outcome{released: []importer.Released{{Owner: unclear, Skipped: []string{"x"}}}})
	b.expectNoSweep()
	b.unclear = nil
	b.expectSweep("suspended ", "waits ", "suspended skipped", "waits skipped")
	b.end(absent)
	b.expectNoSweep()
}

func TestReleasedText(t *testing.T) {
	for want, s := range map[string]importer.Released{
		"no images of it are left":                                   {},
		"2 names deleted, 1 name unpinned":                           {Deleted: []string{"a", "b"}, Unpinned: []string{"c"}},
		"1 name left as they are":                                    {Retained: []string{"a"}},
		"1 name unpinned and not deleted, since containers use them": {InUse: []string{"a"}},
	} {
		if got := releasedText(s); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
