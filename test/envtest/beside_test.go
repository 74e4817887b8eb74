package envtest

import (
	"fmt"
	"slices"
	"testing"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/internal/importer"
)

// Servers that give nothing hold up no other import, and each running one shows its progress.
func TestNodeImportsBesideStalledOnes(t *testing.T) {
	n := newFakeNode(t, "beside")
	n.hangs = []string{"beside-stalled-1", "beside-stalled-2"}
	n.put(t, "a.tar")
	n.start(t)
	first := n.newArchive(t, "beside-stalled-1")
	n.waitFor(t, first.Name, importing)
	n.newArchive(t, "beside-quick-1")
	n.waitFor(t, "beside-quick-1", ready)

	second := n.newArchive(t, "beside-stalled-2")
	n.newArchive(t, "beside-quick-2")
	n.waitFor(t, "beside-quick-2", ready)
	for _, name := range n.hangs {
		e := n.waitFor(t, name, importing)
		if e.Attempts != 1 || e.Bytes == nil || *e.Bytes != (v1alpha1.ArchiveBytes{Total: 100, Done: 30, Skipped: 10}) {
			t.Errorf("%s: entry %+v, bytes %+v", name, e, e.Bytes)
		}
	}

	if err := admin.Delete(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	n.waitFor(t, first.Name, "")
	eventually(t, "leftovers to go", func() (bool, string) { return n.hasReleased(string(first.UID)), "" })
	n.newArchive(t, "beside-quick-3")
	n.waitFor(t, "beside-quick-3", ready)
	if e := n.waitFor(t, second.Name, importing); e.Attempts != 1 || n.hasReleased(string(second.UID)) {
		t.Errorf("the other one was stopped: %+v", e)
	}
	if n.importCount() != 5 {
		t.Errorf("%d imports", n.importCount())
	}
}

// What a killed process has left is dealt with before anything else is done, for the archives that there are then.
func TestNodeRecovers(t *testing.T) {
	n := newFakeNode(t, "recovers")
	n.put(t, "a.tar")
	n.newArchive(t, "recovers")
	gone := n.newArchive(t, "recovers-gone")
	p := n.start(t)
	n.waitFor(t, "recovers", ready)
	n.waitFor(t, "recovers-gone", ready)
	var r []recovery
	n.set(func() { r = n.recoveries })
	if len(r) != 1 || len(r[0].wanted) != 2 || r[0].checks+r[0].imports > 0 {
		t.Fatalf("recoveries %+v", r)
	}
	p.stop()
	if err := admin.Delete(t.Context(), gone); err != nil {
		t.Fatal(err)
	}

	n.recover = fmt.Errorf("dial: %w", importer.ErrRuntimeUnavailable)
	n.newArchive(t, "recovers-new")
	before := n.checkCount()
	n.start(t)
	n.waitFor(t, "recovers-new", "Ready=False/RuntimeUnavailable Reconciling=True/Pending")
	n.set(func() { n.recover = nil })
	n.waitFor(t, "recovers-new", ready)
	n.mu.Lock()
	defer n.mu.Unlock()
	last := n.recoveries[len(n.recoveries)-1]
	var names []string
	for _, o := range last.wanted {
		if _, imported := n.imported[publishedBy(o)]; !imported {
			t.Errorf("wanted %+v, which is no owner of an import", o)
		}
		names = append(names, o.Name)
	}
	if slices.Sort(names); !slices.Equal(names, []string{"recovers", "recovers-new"}) || last.checks != before {
		t.Errorf("wanted %q after %d checks, %d before the start", names, last.checks, before)
	}
	if len(n.released) > 0 {
		t.Errorf("released %q besides", n.released)
	}
}
