package controllers

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
		names = append(names, o.Name+" "+string(o.Deletion))
	}
	if !slices.Equal(names, want) {
		b.t.Errorf("wanted %q, want %q", names, want)
	}
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
	b.expect("release gone")
	b.end(absent)
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
	b.expect("release gone")
	b.end(absent)
	b.expectSweep("a ") // beside the import of what is wanted
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
	b.expectSweep("a Delete") // and the import goes on
	a = edited(a, withPolicy(v1alpha1.DeletionRetain))
	b.see(a)
	b.end(absent)
	b.expectSweep("a Retain")
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
	b.recover()
	b.expect("wait 11m0s")
	b.pass(11 * time.Minute)
	b.expect("sweep")
	b.end(absent)
	b.expect("wait 11m0s")
}

// Of an archive whose selector cannot be read nobody knows whether it wants this node.
func TestSweepSparesTheUnclear(t *testing.T) {
	b := newBench(t)
	b.unclear = []importer.Owner{{Name: "unclear", UID: "u", Deletion: "Delete"}}
	b.see(newArchive("a", 0))
	b.expect("check a")
	b.end(whole)
	b.see()
	b.expect("release a")
	b.end(absent)
	b.expectSweep("unclear Delete")
	b.end(absent)
	b.expect("wait 0s")
}

func TestSweptText(t *testing.T) {
	for want, s := range map[string]importer.Swept{
		"no images of it are left":                                   {},
		"2 names deleted, 1 name unpinned":                           {Deleted: []string{"a", "b"}, Unpinned: []string{"c"}},
		"1 name left as they are":                                    {Retained: []string{"a"}},
		"1 name unpinned and not deleted, since containers use them": {InUse: []string{"a"}},
	} {
		if got := sweptText(s); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
