package node

import (
	"strings"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/event"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
)

func TestArchiveChanged(t *testing.T) {
	for _, test := range []struct {
		why  string
		edit func(*v1alpha1.ImageArchive)
		want bool
	}{
		{"the roll-up writes", func(a *v1alpha1.ImageArchive) { a.Status.ImageCount++ }, false},
		{"another spec", func(a *v1alpha1.ImageArchive) { a.Generation++ }, true},
		{"a request", func(a *v1alpha1.ImageArchive) {
			a.Annotations = map[string]string{v1alpha1.AnnotationReconcileRequestedAt: "now"}
		}, true},
		{"another annotation", func(a *v1alpha1.ImageArchive) { a.Annotations = map[string]string{"x": "y"} }, false},
		{"deleted and created while the watch was down", func(a *v1alpha1.ImageArchive) { a.UID = "other" }, true},
	} {
		before, after := newArchive("a", 0), newArchive("a", 0)
		test.edit(after)
		if got := archiveChanged.Update(event.UpdateEvent{ObjectOld: before, ObjectNew: after}); got != test.want {
			t.Errorf("%s: %v", test.why, got)
		}
	}
}

// The API server refuses an Event whose note is longer than 1 KiB, or whose reportingInstance is longer than 128 bytes.
func TestNotesFit(t *testing.T) {
	server := &eventLog{}
	a := newArchive(strings.Repeat("n", 253), 0)
	r := &Reconciler{Client: server, NodeName: a.Name, notes: []note{{name: a.Name, archive: a, typ: "Warning", reason: "Truncated", text: strings.Repeat("x", condition.MaxText)}}}
	if err := r.sendNotes(t.Context(), "uid"); err != nil {
		t.Fatal(err)
	}
	e := server.events[0]
	if len(e.Note) > 1024 || !strings.HasPrefix(e.Note, a.Name+": xxx") || len(e.ReportingInstance) != 128 {
		t.Errorf("%d bytes: %s; by %s", len(e.Note), e.Note, e.ReportingInstance)
	}
}

// Until the roll-up has counted an archive's nodes, it may be thousands that have the same to tell.
func TestUncountedArchivesSpreadWrites(t *testing.T) {
	counted, fresh := newArchive("counted", 0), newArchive("fresh", 0)
	counted.Status.Nodes = &v1alpha1.NodeCounts{Desired: 3}
	for _, test := range []struct {
		why      string
		archives []*v1alpha1.ImageArchive
		want     int32
	}{
		{"none", nil, uncounted},
		{"a counted one", []*v1alpha1.ImageArchive{counted}, 3},
		{"one not counted yet", []*v1alpha1.ImageArchive{counted, fresh}, uncounted},
	} {
		if got := (&Reconciler{}).fleet(test.archives); got != test.want {
			t.Errorf("%s: %d, want %d", test.why, got, test.want)
		}
	}
	r := &Reconciler{}
	r.fleet([]*v1alpha1.ImageArchive{counted})
	if got := r.fleet(nil); got != 3 {
		t.Errorf("the last archive has gone: %d, want 3", got)
	}
}
