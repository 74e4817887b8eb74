package envtest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/internal/importer"
)

// A drop-in is imported while the API server is away, which harms nobody of whom only it could tell; then it is reported
// beside the ImageArchives. After a restart nothing is imported or written.
func TestDropInIsReported(t *testing.T) {
	n := newFakeNode(t, "dropin")
	n.dropIns = true
	if err := os.Mkdir(filepath.Join(n.dir, "drop-in"), 0o700); err != nil {
		t.Fatal(err)
	}
	n.put(t, "a.tar")
	n.put(t, "drop-in/a.tar")
	other := publishedBy(importer.Owner{Name: "dropin-other", UID: "other"})
	n.imported[other] = importer.Result{}
	claimed := func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		_, ok := n.imported[other]
		return ok
	}
	a := n.newArchive(t, "dropin")
	way := newWay(t, strings.Trim(strings.TrimPrefix(adminConfig.Host, "https:"), "/"))
	way.cut()
	p := n.startOver(t, "https://"+way.address)
	eventually(t, "the import", func() (bool, string) { return n.importCount() > 0, "" })
	if !slices.Equal(n.imports, []string{"drop-in/a.tar"}) || !claimed() {
		t.Errorf("imported %q, the other's claim is there: %v", n.imports, claimed())
	}

	way.open(t)
	n.waitFor(t, "dropin", ready)
	e := n.waitFor(t, "drop-in/a.tar", ready)
	info, err := os.Stat(filepath.Join(n.dir, "drop-in", "a.tar"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(e.UID), "drop-in-") || e.ObservedGeneration != info.ModTime().UnixMilli() || e.Attempts != 1 || e.Size != 2<<20 {
		t.Errorf("entry %+v", e)
	}
	var state v1alpha1.NodeImageState
	if err := admin.Get(t.Context(), client.ObjectKey{Name: n.name}, &state); err != nil {
		t.Fatal(err)
	}
	if state.Status.Summary != "2/2" {
		t.Errorf("summary %s", state.Status.Summary)
	}
	waitForEvent(t, state.UID, "Imported", "drop-in/a.tar: 2 images imported in")
	eventually(t, "the claim of nobody to end", func() (bool, string) { return !claimed(), "" })
	p.stop()

	before := n.checkCount()
	p = n.start(t)
	eventually(t, "the new process to look", func() (bool, string) { return n.checkCount() >= before+2, "" })
	for i := range 3 { // shows that it has finished with the request before
		before = n.checkCount()
		update(t, a, func() {
			a.Annotations = map[string]string{v1alpha1.AnnotationReconcileRequestedAt: fmt.Sprint(i)}
		})
		eventually(t, "it to look again", func() (bool, string) { return n.checkCount() > before, "" })
	}
	if n.importCount() != 2 || p.writes.Load() != 0 {
		t.Errorf("%d imports, %d writes by the new process", n.importCount(), p.writes.Load())
	}

	if err := os.Remove(filepath.Join(n.dir, "drop-in", "a.tar")); err != nil {
		t.Fatal(err)
	}
	n.waitFor(t, "drop-in/a.tar", "")
	n.waitFor(t, "dropin", ready)
}
