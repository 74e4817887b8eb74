package node

import (
	"errors"
	"fmt"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/internal/source"
)

var epoch = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// noJitter waits as long as may be waited; stalled ones exactly stalledInterval*1.2.
func noJitter() float64 { return 1 }

// newArchive is an ImageArchive that is age old at the epoch.
func newArchive(name string, age time.Duration) *v1alpha1.ImageArchive {
	return &v1alpha1.ImageArchive{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, UID: types.UID("uid-" + name), Generation: 1, CreationTimestamp: metav1.NewTime(epoch.Add(-age)),
		},
		Spec: v1alpha1.ImageArchiveSpec{Source: v1alpha1.Source{File: &v1alpha1.FileSource{Path: name + ".tar"}}},
	}
}

// edited is a copy with another generation.
func edited(a *v1alpha1.ImageArchive, edit func(*v1alpha1.ImageArchive)) *v1alpha1.ImageArchive {
	a = a.DeepCopy()
	a.Generation++
	edit(a)
	return a
}

// bench drives an agenda as the reconciler does, with a clock of its own.
type bench struct {
	t *testing.T
	*agenda
	now      time.Time
	archives []*v1alpha1.ImageArchive
	running  []activity
	last     news
}

// newBench begins after the first sweep.
func newBench(t *testing.T, archives ...*v1alpha1.ImageArchive) *bench {
	t.Helper()
	b := &bench{t: t, agenda: newAgenda(noJitter), now: epoch}
	b.see(archives...)
	b.firstSweep()
	return b
}

// firstSweep is what comes first.
func (b *bench) firstSweep() {
	b.t.Helper()
	b.expect("sweep")
	b.end(absent)
}

// see replaces the archives that select the node.
func (b *bench) see(archives ...*v1alpha1.ImageArchive) {
	b.archives = archives
	b.follow(archives, b.now)
}

// expect takes the next step, which must be this one: "sweep", "check a", "import a", "release a", "stop a", or
// "wait 2s".
func (b *bench) expect(want string) *job {
	b.t.Helper()
	start, stop, wait := b.next(b.running, b.now)
	got := fmt.Sprintf("wait %s", wait)
	switch {
	case stop != nil:
		got = "stop " + stop.owner.Name
	case start != nil && start.uid != "":
		got = fmt.Sprintf("%s %s", start.kind, start.uid[len("uid-"):])
	case start != nil:
		got = start.kind.String()
	}
	if got != want {
		b.t.Fatalf("the next step is %q, want %q", got, want)
	}
	switch {
	case stop != nil:
		b.at(stop.owner.Name).stopping = true
	case start != nil:
		b.started(start, b.now)
		b.running = append(b.running, activity{
			job: start, progress: importer.Progress{Phase: importer.PhaseTransferring}, moved: b.now,
		})
	}
	return start
}

// at is what runs for an archive.
func (b *bench) at(name string) *activity {
	b.t.Helper()
	for i, r := range b.running {
		if r.uid == types.UID("uid-"+name) {
			return &b.running[i]
		}
	}
	b.t.Fatalf("nothing runs for %s", name)
	return nil
}

// end reports the outcome of the job that began last.
func (b *bench) end(o outcome) {
	b.t.Helper()
	if len(b.running) == 0 {
		b.t.Fatal("nothing runs")
	}
	last := len(b.running) - 1
	if o.job, o.at = b.running[last].job, b.now; o.job.kind == jobCheck {
		o.at = b.running[last].moved
	}
	b.running = b.running[:last]
	if o.runtime == nil && !errors.Is(o.err, importer.ErrRuntimeUnavailable) {
		o.runtime = &importer.Runtime{Version: "v2"}
	}
	b.last = b.learn(&o, b.now)
}

// endOf is end for the job of an archive.
func (b *bench) endOf(name string, o outcome) {
	b.t.Helper()
	last := &b.running[len(b.running)-1]
	*last, *b.at(name) = *b.at(name), *last
	b.end(o)
}

func (b *bench) pass(d time.Duration) { b.now = b.now.Add(d) }

var (
	absent      = outcome{}
	whole       = outcome{found: true, result: imported}
	good        = outcome{result: imported, opened: true, validator: "v1"}
	broken      = outcome{err: fmt.Errorf("member 3: %w", archive.ErrInvalid)}
	unreachable = outcome{err: fmt.Errorf("get: %w", source.ErrUnavailable)}
	down        = outcome{err: fmt.Errorf("dial: %w", importer.ErrRuntimeUnavailable)}
)

var imported = importer.Result{
	Images: make([]importer.Image, 2), Names: []string{"docker.io/library/a:1", "docker.io/library/b:1"},
	IndexDigest: "sha256:1", Size: 100, Validator: "v1", Bytes: importer.Bytes{Read: 70, Written: 60, Skipped: 40},
}

// report is an archive's entry as it would be written now.
func (b *bench) report(name string) v1alpha1.ArchiveState {
	b.t.Helper()
	for _, e := range b.status(b.running, b.now).Archives {
		if e.Name == name {
			return e
		}
	}
	b.t.Fatalf("no entry for %s", name)
	return v1alpha1.ArchiveState{}
}

// state is the conditions of an archive in short, such as "Ready=False/Importing Reconciling=True/Importing".
func (b *bench) state(name string) string {
	b.t.Helper()
	return short(b.report(name).Conditions)
}

func short(conditions []metav1.Condition) string {
	s := ""
	for i, c := range conditions {
		if i > 0 {
			s += " "
		}
		s += fmt.Sprintf("%s=%s/%s", c.Type, c.Status, c.Reason)
	}
	return s
}

func (b *bench) wantState(name, want string) {
	b.t.Helper()
	if got := b.state(name); got != want {
		b.t.Errorf("%s is %q, want %q", name, got, want)
	}
}
