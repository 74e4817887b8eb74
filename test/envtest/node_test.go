package envtest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/importer"
)

func TestNodeImports(t *testing.T) {
	n := newFakeNode(t, "imports")
	n.put(t, "a.tar")
	a := n.newArchive(t, "imports")
	other := typed[v1alpha1.ImageArchive](t, archiveWith(t, "imports-not", fileSource+"nodeSelector: {matchLabels: {node: none}}"))
	create(t, other)
	n.start(t)
	e := n.waitFor(t, "imports", ready)
	if e.UID != a.UID || e.ObservedGeneration != 1 || e.IndexDigest != testDigest || e.Size != 2<<20 || e.ImageCount != 2 ||
		e.CompletionTime == nil || e.LastError != nil || len(e.Conditions) > 0 || len(e.Images) != 2 {
		t.Errorf("entry %+v", e)
	}
	var state v1alpha1.NodeImageState
	if err := admin.Get(t.Context(), client.ObjectKey{Name: n.name}, &state); err != nil {
		t.Fatal(err)
	}
	if s := state.Status; s.Summary != "1/1" || len(s.Archives) != 1 || s.Containerd == nil || s.Containerd.Version != "v2.4.2" {
		t.Errorf("status %+v", s)
	}
	var node corev1.Node
	if err := admin.Get(t.Context(), client.ObjectKey{Name: n.name}, &node); err != nil {
		t.Fatal(err)
	}
	if o := state.OwnerReferences; len(o) != 1 || o[0].UID != node.UID || o[0].Kind != "Node" {
		t.Errorf("owners %+v", o)
	}
	waitForEvent(t, state.UID, "Imported", "imports: 2 images imported in")
}

// waitForEvent waits for an Event on an object.
func waitForEvent(t *testing.T, uid any, reason, note string) {
	t.Helper()
	waitForEvents(t, 1, uid, reason, note)
}

// waitForEvents waits for the nth of like Events.
func waitForEvents(t *testing.T, nth int, uid any, reason, note string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d Events %s", nth, reason), func() (bool, string) {
		var list eventsv1.EventList
		if err := admin.List(t.Context(), &list); err != nil {
			return false, err.Error()
		}
		found := 0
		for _, e := range list.Items {
			if any(e.Regarding.UID) == uid && e.Reason == reason && strings.Contains(e.Note, note) {
				found++
			}
		}
		return found >= nth, fmt.Sprintf("%d of %d Events", found, len(list.Items))
	})
}

// What is done needs no source: after a restart nothing is opened, imported or written.
func TestNodeRestartIsIdle(t *testing.T) {
	n := newFakeNode(t, "restart")
	n.put(t, "a.tar")
	a := n.newArchive(t, "restart")
	p := n.start(t)
	n.waitFor(t, "restart", ready)
	p.stop()
	if err := os.Remove(filepath.Join(n.dir, "a.tar")); err != nil {
		t.Fatal(err)
	}

	before := n.checkCount()
	p = n.start(t)
	eventually(t, "the new process to look", func() (bool, string) { return n.checkCount() > before, "" })
	// Requests to look again, one after the other, show that it has finished with the one before.
	for i := range 3 {
		before = n.checkCount()
		update(t, a, func() {
			a.Annotations = map[string]string{v1alpha1.AnnotationReconcileRequestedAt: fmt.Sprint(i)}
		})
		eventually(t, "it to look again", func() (bool, string) { return n.checkCount() > before, "" })
	}
	if n.importCount() != 1 {
		t.Errorf("%d imports, want 1", n.importCount())
	}
	if w := p.writes.Load(); w != 0 {
		t.Errorf("%d writes, want none", w)
	}
	n.waitFor(t, "restart", ready)
}

func TestNodeNewSpecStopsTheImport(t *testing.T) {
	n := newFakeNode(t, "newspec")
	n.hang = true
	n.put(t, "a.tar")
	n.put(t, "b.tar")
	a := n.newArchive(t, "newspec")
	n.start(t)
	e := n.waitFor(t, "newspec", importing)
	if e.Bytes == nil || e.Attempts != 1 {
		t.Errorf("entry %+v", e)
	}
	n.set(func() { n.hang = false })
	update(t, a, func() { a.Spec.Source.File.Path = "b.tar" })
	if e := n.waitFor(t, "newspec", ready); e.ObservedGeneration != 2 {
		t.Errorf("observes %d", e.ObservedGeneration)
	}
	if n.importCount() != 2 {
		t.Errorf("%d imports", n.importCount())
	}
}

func TestNodeSuspend(t *testing.T) {
	n := newFakeNode(t, "suspend")
	n.hang = true
	n.put(t, "a.tar")
	a := n.newArchive(t, "suspend")
	n.start(t)
	n.waitFor(t, "suspend", importing)
	update(t, a, func() { a.Spec.Suspend = true })
	n.waitFor(t, "suspend", "Ready=False/Suspended")
	n.set(func() { n.hang = false })
	update(t, a, func() { a.Spec.Suspend = false })
	n.waitFor(t, "suspend", ready)
}

func TestNodeStalls(t *testing.T) {
	n := newFakeNode(t, "stalls")
	n.fail = fmt.Errorf("member %q: %w", "x\n", archive.ErrInvalid)
	n.put(t, "a.tar")
	a := n.newArchive(t, "stalls")
	n.start(t)
	e := n.waitFor(t, "stalls", "Ready=False/ArchiveInvalid Stalled=True/ArchiveInvalid")
	if e.LastError == nil || e.LastError.Message != `member "x\n": invalid archive` || e.Attempts != 1 {
		t.Errorf("entry %+v", e)
	}
	eventually(t, "leftovers to go", func() (bool, string) { return n.hasReleased(string(a.UID)), "" })
	n.set(func() { n.fail = nil })
	update(t, a, func() { a.Annotations = map[string]string{v1alpha1.AnnotationReconcileRequestedAt: "now"} })
	if e := n.waitFor(t, "stalls", ready); e.LastError != nil {
		t.Errorf("entry %+v", e)
	}
}

func TestNodeRetries(t *testing.T) {
	n := newFakeNode(t, "retries")
	n.newArchive(t, "retries")
	n.start(t)
	e := n.waitFor(t, "retries", "Ready=False/SourceNotFound Reconciling=True/Pending")
	if e.LastError == nil || strings.Contains(e.LastError.Message, n.dir) {
		t.Errorf("the node's directory shows: %+v", e.LastError)
	}
	n.put(t, "a.tar")
	n.waitFor(t, "retries", ready)
}

func TestNodeRuntimeComesBack(t *testing.T) {
	n := newFakeNode(t, "runtime")
	n.runtime = fmt.Errorf("dial: %w: %w", importer.ErrRuntimeUnavailable, errors.New("connection refused"))
	n.put(t, "a.tar")
	n.newArchive(t, "runtime")
	n.start(t)
	n.waitFor(t, "runtime", "Ready=False/RuntimeUnavailable Reconciling=True/Pending")
	n.set(func() { n.runtime = nil })
	n.waitFor(t, "runtime", ready)
}

func TestNodeForgetsWhatIsGone(t *testing.T) {
	n := newFakeNode(t, "gone")
	n.hang = true
	n.put(t, "a.tar")
	a := n.newArchive(t, "gone")
	n.start(t)
	n.waitFor(t, "gone", importing)
	n.deleteAndSweep(t, a)
}

func TestNodeFollowsItsLabels(t *testing.T) {
	n := newFakeNode(t, "labels")
	n.put(t, "a.tar")
	createCounted(t, typed[v1alpha1.ImageArchive](t, archiveWith(t, "labels", fileSource+"nodeSelector: {matchLabels: {site: ship}}")))
	n.start(t)
	n.waitFor(t, "labels", "")
	relabel := func(value string) {
		patch := fmt.Sprintf(`{"metadata":{"labels":{"site":%q}}}`, value)
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.name}}
		if err := admin.Patch(t.Context(), node, client.RawPatch("application/merge-patch+json", []byte(patch))); err != nil {
			t.Fatal(err)
		}
	}
	relabel("ship")
	n.waitFor(t, "labels", ready)
	// A Node that is deleted and registers again lacks its labels for some seconds.
	relabel("shore")
	n.waitFor(t, "labels", "")
	relabel("ship")
	n.waitFor(t, "labels", ready)
	if n.importCount() != 1 {
		t.Errorf("%d imports: it let go of the images at once", n.importCount())
	}
	relabel("shore")
	eventually(t, "the images to go", func() (bool, string) { return n.publishedCount() == 0, "" })
	relabel("ship")
	n.waitFor(t, "labels", ready)
	if n.importCount() != 2 {
		t.Errorf("%d imports: it had let go of the images", n.importCount())
	}
}

// A changed selector acts at once.
func TestNodeFollowsTheSelector(t *testing.T) {
	n := newFakeNode(t, "selector")
	n.releaseDelay = time.Hour
	n.put(t, "a.tar")
	a := n.newArchive(t, "selector")
	n.start(t)
	n.waitFor(t, "selector", ready)
	update(t, a, func() { a.Spec.NodeSelector.MatchLabels["node"] = "other" })
	eventually(t, "the images to go", func() (bool, string) { return n.publishedCount() == 0, "" })
	n.waitFor(t, "selector", "")
}

func TestNodeRestoresItsReport(t *testing.T) {
	n := newFakeNode(t, "restores")
	n.put(t, "a.tar")
	n.newArchive(t, "restores")
	n.start(t)
	e := n.waitFor(t, "restores", ready)
	if err := admin.Delete(t.Context(), &v1alpha1.NodeImageState{ObjectMeta: metav1.ObjectMeta{Name: n.name}}); err != nil {
		t.Fatal(err)
	}
	again := n.waitFor(t, "restores", ready)
	if again.IndexDigest != e.IndexDigest || n.importCount() != 1 {
		t.Errorf("entry %+v, %d imports", again, n.importCount())
	}
}

// What an earlier Node of the name reported is neither taken over nor written: it goes, and then this one reports.
func TestNodeOfAnEarlierName(t *testing.T) {
	n := newFakeNode(t, "earlier")
	n.put(t, "a.tar")
	a := n.newArchive(t, "earlier")
	leftover := &v1alpha1.NodeImageState{ObjectMeta: metav1.ObjectMeta{
		Name: n.name, OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: n.name, UID: "gone"}},
	}}
	create(t, leftover)
	leftover.Status.Archives = []v1alpha1.ArchiveState{{Name: a.Name, UID: a.UID, ObservedGeneration: 1, Attempts: 7}}
	if err := admin.Status().Update(t.Context(), leftover); err != nil {
		t.Fatal(err)
	}
	p := n.start(t)
	eventually(t, "the import", func() (bool, string) { return n.importCount() > 0, "" })
	if w := p.writes.Load(); w != 0 {
		t.Errorf("%d writes to another Node's object", w)
	}
	if err := admin.Delete(t.Context(), leftover); err != nil {
		t.Fatal(err)
	}
	n.waitFor(t, "earlier", ready)
}

// The API server cannot be reached during an import: the import goes on, even to its next attempt, and is reported
// when the API server is back.
func TestNodeOutlivesTheAPIServer(t *testing.T) {
	n := newFakeNode(t, "outlives")
	n.hang = true
	n.put(t, "a.tar")
	n.newArchive(t, "outlives")
	way := newWay(t, strings.Trim(strings.TrimPrefix(adminConfig.Host, "https:"), "/"))
	n.startOver(t, "https://"+way.address)
	n.waitFor(t, "outlives", importing)

	way.cut()
	n.set(func() { n.hang = false })
	close(n.resume) // the running attempt fails, and the next succeeds
	eventually(t, "the second attempt", func() (bool, string) { return n.importCount() > 1, "" })
	if got := entryText(n.waitFor(t, "outlives", importing)); got != importing {
		t.Errorf("the report is %s: the way was not cut", got)
	}
	time.Sleep(10 * time.Second) // the waits between attempts to write have become as long as they get
	way.open(t)
	back := time.Now()
	n.waitFor(t, "outlives", ready)
	if took := time.Since(back); took > 15*time.Second {
		t.Errorf("reported %s after the API server's return", took)
	}
}
