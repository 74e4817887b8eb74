package envtest

import (
	"testing"

	"github.com/tarlift/tarlift/api/v1alpha1"
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

	n.deleteAndSweep(t, first)
	n.newArchive(t, "beside-quick-3")
	n.waitFor(t, "beside-quick-3", ready)
	if e := n.waitFor(t, second.Name, importing); e.Attempts != 1 || n.hasReleased(string(second.UID)) {
		t.Errorf("the other one was stopped: %+v", e)
	}
	if n.importCount() != 5 {
		t.Errorf("%d imports", n.importCount())
	}
}
