package controllers

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/tarlift/tarlift/internal/importer"
)

func TestRecoveryComesFirst(t *testing.T) {
	a, old, gone := newArchive("a", time.Hour), newArchive("old", 2*time.Hour), newArchive("gone", 0)
	b := newBench(t, a, gone)
	b, _ = b.restart(old, a)
	j := b.expect("recover")
	want := []importer.Owner{b.records[old.UID].owner, b.records[a.UID].owner}
	if !slices.Equal(j.wanted, want) {
		t.Errorf("wanted %+v, want %+v", j.wanted, want)
	}
	b.expect("wait 0s")
	b.end(absent)
	want = append(want, importer.Owner{Name: "old"}, importer.Owner{Name: "a"})
	if j := b.expect("sweep"); !slices.Equal(j.wanted, want) {
		t.Errorf("sweeps all but %+v, want %+v", j.wanted, want)
	}
	b.end(absent)
	for _, name := range []string{"old", "a"} { // nothing is released: the recovery has cleared what was left for gone
		b.expect("check " + name)
		b.end(whole)
	}
	b.expect("wait 0s")
	b.see(old)
	b.expect("release a")
}

func TestRecoveryWithoutArchives(t *testing.T) {
	b := newBench(t)
	if s := b.status(nil, b.now); s.Containerd.Version != "v2" || s.Summary != "0/0" {
		t.Errorf("status %+v", s)
	}
	b.expect("wait 0s")
}

// Without containerd nothing could be done instead, and all archives say why they wait.
func TestRecoveryWaitsForContainerd(t *testing.T) {
	a := newArchive("a", 0)
	b, _ := newBench(t).restart(a)
	for _, wait := range []time.Duration{2, 4, 8, 15, 15} {
		b.expect("recover")
		b.end(down)
		b.wantState("a", "Ready=False/RuntimeUnavailable Reconciling=True/Pending")
		b.expect("wait " + (wait * time.Second).String())
		b.pass(wait * time.Second)
	}
	b.see(a, newArchive("new", 0))
	if j := b.expect("recover"); len(j.wanted) != 2 {
		t.Errorf("wanted %+v", j.wanted)
	}
	b.end(absent)
	b.expect("sweep")
	b.end(absent)
	b.expect("check a")
	b.end(absent)
	b.wantState("a", "Ready=False/Pending Reconciling=True/Pending")
}

// What cannot be recovered from holds up nothing else.
func TestRecoveryThatFails(t *testing.T) {
	odd := outcome{err: errors.New("lease: not a lease")}
	b, _ := newBench(t).restart(newArchive("a", 0))
	b.expect("recover")
	b.end(odd)
	b.expect("sweep")
	b.end(absent)
	b.expect("check a")
	b.end(absent)
	b.wantState("a", "Ready=False/Pending Reconciling=True/Pending")
	b.expect("import a")
	b.expect("wait 2s")
	b.pass(2 * time.Second)
	b.expect("recover")
	b.end(odd)
	b.expect("wait 4s")
	b.pass(4 * time.Second)
	b.expect("recover")
	b.end(absent)
	b.expect("wait 0s")
	b.end(good)
	b.wantState("a", "Ready=True/Imported")
	b.expect("wait 0s")
}
