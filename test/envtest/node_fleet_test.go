package envtest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/internal/importer"
)

const (
	drifted         = "Ready=False/Drifted Stalled=True/Drifted"
	waitsForRollout = "Ready=False/WaitingForRollout Reconciling=True/WaitingForRollout"
	lossText        = "docker.io/library/a:1 is not pinned"
)

// uid is that of the node's NodeImageState.
func (f *fakeNode) uid(t *testing.T) types.UID {
	t.Helper()
	var state v1alpha1.NodeImageState
	if err := admin.Get(t.Context(), client.ObjectKey{Name: f.name}, &state); err != nil {
		t.Fatal(err)
	}
	return state.UID
}

func (f *fakeNode) waitForImports(t *testing.T, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d imports", n), func() (bool, string) { got := f.importCount(); return got == n, fmt.Sprint(got) })
}

// lose takes something from an archive's images, as others would.
func (f *fakeNode) lose(archive string) { f.set(func() { f.losses[archive] = lossText }) }

func TestNodeHeals(t *testing.T) {
	n := newFakeNode(t, "heals")
	n.put(t, "a.tar")
	a := n.newArchive(t, "heals")
	p := n.start(t)
	n.waitFor(t, a.Name, ready)
	uid := n.uid(t)

	n.set(func() { n.repairs = true })
	n.lose(a.Name)
	n.events <- "docker.io/library/a:1"
	waitForEvent(t, uid, "Drifted", "heals: "+lossText)
	waitForEvent(t, uid, "Healed", "1 name repaired, nothing read")
	n.waitFor(t, a.Name, ready)
	if n.importCount() != 1 {
		t.Errorf("%d imports: a pin needs no source", n.importCount())
	}

	n.set(func() { n.repairs = false })
	n.lose(a.Name)
	n.events <- "docker.io/library/other:1"
	n.events <- "" // a snapshot
	n.waitForImports(t, 2)
	waitForEvents(t, 2, uid, "Imported", "heals: ") // Ready may still be from before the loss
	n.waitFor(t, a.Name, ready)

	before := p.writes.Load()
	n.lose(a.Name)
	n.set(func() { n.hang = true })
	n.events <- "docker.io/library/b:1"
	n.waitFor(t, a.Name, "Ready=False/Drifted Reconciling=True/Importing")
	close(n.resume)
	e := n.waitFor(t, a.Name, "Ready=False/Drifted Reconciling=True/Pending")
	if m := e.Conditions[0].Message; !strings.HasPrefix(m, lossText) || !strings.Contains(m, "source unavailable") || e.LastError == nil {
		t.Errorf("message %q, last error %+v", m, e.LastError)
	}
	n.set(func() { n.hang = false })
	n.waitFor(t, a.Name, ready)
	if w := p.writes.Load() - before; w > 4 {
		t.Errorf("%d writes for a loss, an import that fails and one that goes well", w)
	}
}

func TestNodeReportsIgnoredDrift(t *testing.T) {
	n := newFakeNode(t, "ignores")
	n.checkInterval = 500 * time.Millisecond // a lost blob brings no event
	n.put(t, "a.tar")
	a := n.newArchive(t, "ignores")
	update(t, a, func() { a.Spec.DriftPolicy = v1alpha1.DriftIgnore })
	p := n.start(t)
	n.waitFor(t, a.Name, ready)
	before, checks := p.writes.Load(), n.checkCount()
	eventually(t, "some full checks", func() (bool, string) { return n.checkCount() > checks+4, "" })
	if w := p.writes.Load() - before; w != 0 {
		t.Errorf("%d writes of an idle agent", w)
	}
	n.lose(a.Name)
	if e := n.waitFor(t, a.Name, drifted); e.Conditions[0].Message != lossText {
		t.Errorf("message %q", e.Conditions[0].Message)
	}
	p.stop()
	n.start(t)
	checks = n.checkCount()
	eventually(t, "the new process to look", func() (bool, string) { return n.checkCount() > checks+2, "" })
	n.waitFor(t, a.Name, drifted)
	if n.importCount() != 1 {
		t.Errorf("%d imports", n.importCount())
	}
	update(t, a, func() { a.Spec.DriftPolicy = v1alpha1.DriftReimport })
	n.waitFor(t, a.Name, ready)
	n.waitForImports(t, 2)
}

// admit writes what the controller would.
func (f *fakeNode) admit(t *testing.T, admitted ...v1alpha1.Admission) {
	t.Helper()
	state := &v1alpha1.NodeImageState{}
	if err := admin.Get(t.Context(), client.ObjectKey{Name: f.name}, state); err != nil {
		t.Fatal(err)
	}
	before := state.DeepCopy()
	for i := range admitted {
		admitted[i].Time = metav1.Now()
	}
	state.Spec.Admitted = admitted
	if err := admin.Patch(t.Context(), state, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
}

func TestNodeWaitsForItsRollout(t *testing.T) {
	n := newFakeNode(t, "waits")
	n.hang = true
	n.put(t, "a.tar")
	a := typed[v1alpha1.ImageArchive](t, archiveWith(t, "waits", fileSource+"nodeSelector: {matchLabels: {node: waits}}\nrollout: {maxConcurrent: 1}"))
	createCounted(t, a)
	p := n.start(t)
	n.waitFor(t, a.Name, waitsForRollout)
	place := v1alpha1.Admission{Archive: a.Name, UID: a.UID, Generation: a.Generation}
	earlier := place
	earlier.UID = "earlier"
	n.admit(t, earlier)
	time.Sleep(time.Second)
	if n.importCount() != 0 {
		t.Fatal("imported on the admission of an earlier archive")
	}
	n.admit(t, place)
	n.waitFor(t, a.Name, importing)
	n.admit(t)
	n.waitFor(t, a.Name, waitsForRollout) // which it says only when the import has ended
	n.set(func() { n.hang = false })
	n.admit(t, place)
	n.waitFor(t, a.Name, ready)
	if n.importCount() != 2 || n.hasReleased(string(a.UID)) {
		t.Errorf("%d imports; released %v", n.importCount(), n.released)
	}
	n.admit(t)
	n.waitFor(t, a.Name, ready)

	// The whole of an admission, from then on: waiting, and done. Importing is too short to be told.
	b := typed[v1alpha1.ImageArchive](t, archiveWith(t, "waits-2", fileSource+"nodeSelector: {matchLabels: {node: waits}}\nrollout: {maxConcurrent: 1}"))
	before := p.writes.Load()
	createCounted(t, b)
	n.waitFor(t, b.Name, waitsForRollout)
	n.admit(t, v1alpha1.Admission{Archive: b.Name, UID: b.UID, Generation: b.Generation})
	n.waitFor(t, b.Name, ready)
	if w := p.writes.Load() - before; w > 3 {
		t.Errorf("%d writes", w)
	}
}

// wantedBy is whose images the last sweep kept.
func (f *fakeNode) wantedBy() (sweeps int, names []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.sweeps) == 0 {
		return 0, nil
	}
	for _, o := range f.sweeps[len(f.sweeps)-1] {
		if o.UID == "" {
			continue // whose earlier namesakes are skipped
		}
		names = append(names, o.Name+" "+string(o.Deletion))
	}
	slices.Sort(names)
	return len(f.sweeps), names
}

func (f *fakeNode) waitForSweep(t *testing.T, want ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("a sweep that keeps %q", want), func() (bool, string) {
		sweeps, got := f.wantedBy()
		return sweeps > 0 && slices.Equal(got, want), fmt.Sprintf("%q, the last of %d", got, sweeps)
	})
}

func TestNodeSweeps(t *testing.T) {
	n := newFakeNode(t, "sweeps")
	n.put(t, "a.tar")
	a, gone := n.newArchive(t, "sweeps"), n.newArchive(t, "sweeps-gone")
	p := n.start(t)
	n.waitFor(t, a.Name, ready)
	n.waitFor(t, gone.Name, ready)
	n.waitForSweep(t, "sweeps Unpin", "sweeps-gone Unpin")

	update(t, a, func() { a.Spec.DeletionPolicy = v1alpha1.DeletionDelete })
	n.waitForSweep(t, "sweeps Delete", "sweeps-gone Unpin")
	n.set(func() { n.sweep = errors.New("no") })
	if err := admin.Delete(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	n.waitForSweep(t, "sweeps Delete")
	n.set(func() { n.sweep = nil })
	waitForEvent(t, n.uid(t), "Released", "sweeps-gone: 2 names deleted")

	// What goes while the agent is down is swept when it is back.
	p.stop()
	if err := admin.Delete(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	n.start(t)
	n.waitForSweep(t)
	waitForEvent(t, n.uid(t), "Released", "sweeps: 2 names deleted")
}

func TestNodeSweepsWhenDeselected(t *testing.T) {
	n := newFakeNode(t, "deselected")
	n.put(t, "a.tar")
	a := n.newArchive(t, "deselected")
	n.start(t)
	n.waitFor(t, a.Name, ready)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.name}}
	if err := admin.Patch(t.Context(), node, client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"labels":{"node":"other"}}}`))); err != nil {
		t.Fatal(err)
	}
	n.waitFor(t, a.Name, "")
	n.waitForSweep(t)
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.imported) > 0 {
		t.Errorf("still there: %v", n.imported)
	}
	for i, wanted := range n.sweeps[:len(n.sweeps)-1] {
		if !slices.ContainsFunc(wanted, func(o importer.Owner) bool { return o.UID == string(a.UID) }) {
			t.Errorf("sweep %d did not spare the archive while it selected the node", i)
		}
	}
}

// An archive that is exchanged under its path is another one as soon as it is looked for.
func TestNodeFollowsItsSource(t *testing.T) {
	n := newFakeNode(t, "follows")
	n.put(t, "a.tar")
	a := typed[v1alpha1.ImageArchive](t, archiveWith(t, "follows", fileSource+"nodeSelector: {matchLabels: {node: follows}}\ninterval: 10s"))
	createCounted(t, a)
	p := n.start(t)
	n.waitFor(t, a.Name, ready)
	time.Sleep(12 * time.Second)
	if n.importCount() != 1 {
		t.Fatalf("%d imports of what has not changed", n.importCount())
	}
	p.stop() // what was imported is known from containerd then
	n.start(t)
	file := filepath.Join(n.dir, "a.tar")
	if err := os.Rename(file, file+".old"); err != nil {
		t.Fatal(err)
	}
	n.put(t, "a.tar")
	n.waitForImports(t, 2)
	n.waitFor(t, a.Name, ready)
	waitForEvent(t, n.uid(t), "SourceChanged", "follows: ")
}
