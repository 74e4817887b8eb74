package node

import (
	"fmt"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/internal/source"
)

func withInterval(d time.Duration) func(*v1alpha1.ImageArchive) {
	return func(a *v1alpha1.ImageArchive) { a.Spec.Interval = &metav1.Duration{Duration: d} }
}

var (
	same    = outcome{}
	differs = outcome{changed: true}
)

func TestSourceChanges(t *testing.T) {
	b, _ := newDone(t, withInterval(10*time.Minute))
	b.expect("wait 10m59s") // an interval and a tenth after the import
	b.pass(659 * time.Second)
	for range 3 {
		if j := b.expect("probe a"); j.validator != "v1" {
			t.Errorf("asks for %q", j.validator)
		}
		b.ends(same, nothingNew)
		b.expect("wait 11m0s")
		b.pass(11 * time.Minute)
	}
	b.expect("probe a")
	b.wantState("a", "Ready=True/Imported")
	b.ends(differs, newlyStale)
	b.wantState("a", "Ready=False/Pending Reconciling=True/Pending")
	b.changed("docker.io/library/a:1")
	b.expect("check a")
	b.ends(whole, nothingNew) // the old ones are, until the new ones appear
	b.expect("import a")
	b.wantState("a", "Ready=False/Importing Reconciling=True/Importing")
	second := good
	second.result.Validator, second.result.IndexDigest = "v2", "sha256:2"
	b.ends(second, newlyImported)
	if e := b.report("a"); short(e.Conditions) != "Ready=True/Imported" || e.IndexDigest != "sha256:2" || e.Attempts != 1 {
		t.Errorf("entry %+v", e)
	}
	b.pass(11 * time.Minute)
	if j := b.expect("probe a"); j.validator != "v2" {
		t.Errorf("asks for %q", j.validator)
	}
}

// That a source cannot be asked says nothing against images that are there.
func TestProbeThatFails(t *testing.T) {
	b, _ := newDone(t, withInterval(10*time.Second))
	b.pass(time.Minute)
	for _, wait := range []time.Duration{2, 4, 8, 10, 10} {
		b.expect("probe a")
		b.ends(outcome{err: fmt.Errorf("get: %w", source.ErrNotFound)}, nothingNew)
		b.wantState("a", "Ready=True/Imported")
		b.expect(fmt.Sprintf("wait %s", wait*time.Second))
		b.pass(wait * time.Second)
	}
}

func TestWhatIsNotProbed(t *testing.T) {
	for why, edit := range map[string]func(*v1alpha1.ImageArchive){
		"no interval":                       func(*v1alpha1.ImageArchive) {},
		"an interval of 0":                  withInterval(0),
		"a digest says what it must be":     func(a *v1alpha1.ImageArchive) { withInterval(time.Minute)(a); a.Spec.Digest = "sha256:1" },
		"so does the digest of its index":   func(a *v1alpha1.ImageArchive) { withInterval(time.Minute)(a); a.Spec.IndexDigest = "sha256:1" },
		"nothing is to be imported for now": func(a *v1alpha1.ImageArchive) { withInterval(time.Minute)(a); a.Spec.Suspend = true },
	} {
		a := newArchive("a", 0)
		edit(a)
		b := newBench(t, a)
		b.expect("check a")
		b.end(whole)
		b.expect("wait 0s")
		if t.Failed() {
			t.Fatal(why)
		}
	}
}

// After a restart the record in containerd tells what was imported. Agents that start together do not ask together.
func TestProbeAfterRestart(t *testing.T) {
	b, a := newDone(t, withInterval(10*time.Minute))
	b, _ = b.restart(a)
	b.jitter = func() float64 { return 0.25 }
	b.firstSweep()
	b.expect("check a")
	b.end(whole)
	b.expect("wait 2m30s")
	b.pass(150 * time.Second)
	if j := b.expect("probe a"); j.validator != "v1" {
		t.Errorf("asks for %q", j.validator)
	}
	b.end(same)
	b.expect("wait 9m30s")
	b.see(edited(a, withInterval(time.Minute)))
	b.expect("wait 57s")
}

// What stalls is tried again as soon as its source has something else, even if a digest says what it has to be.
func TestStalledIsProbed(t *testing.T) {
	a := newArchive("a", 0)
	withInterval(time.Minute)(a)
	a.Spec.IndexDigest = "sha256:1"
	b := newBench(t, a)
	b.expect("check a")
	b.end(absent)
	b.expect("import a")
	failed := broken
	failed.opened, failed.validator = true, "bad"
	b.end(failed)
	b.expect("release a")
	b.end(absent)
	b.expect("wait 1m6s")
	b.pass(66 * time.Second)
	if j := b.expect("probe a"); j.validator != "bad" {
		t.Errorf("asks for %q", j.validator)
	}
	b.end(same)
	b.expect("wait 1m6s")
	b.pass(66 * time.Second)
	b.expect("probe a")
	b.end(differs)
	b.wantState("a", "Ready=False/ArchiveInvalid Stalled=True/ArchiveInvalid")
	b.expect("import a")
}

// Servers that do not answer hold up no import, and few other questions.
func TestProbesBesideImports(t *testing.T) {
	b := newBench(t, newArchive("import", 0))
	for i := range 6 {
		a := newArchive(fmt.Sprintf("p%d", i), time.Duration(9-i)*time.Hour)
		withInterval(time.Minute)(a)
		b.archives = append(b.archives, a)
	}
	b.see(b.archives...)
	for i := range 6 {
		b.expect(fmt.Sprintf("check p%d", i))
		b.end(whole)
	}
	b.expect("check import")
	b.end(absent)
	b.pass(2 * time.Minute)
	b.expect("import import")
	for i := range defaultLimits.probes {
		b.expect(fmt.Sprintf("probe p%d", i))
	}
	b.expect("wait 0s")
	b.end(same)
	b.expect("probe p4")
	b.see(b.archives[1:]...)
	b.expect("stop import")
}
