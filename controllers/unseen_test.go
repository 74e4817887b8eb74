package controllers

import (
	"strings"
	"testing"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/tarlift/tarlift/internal/importer"
)

// An import whose images the kubelet would not find is a success, with a warning beside it.
func TestUnseenIsAnnounced(t *testing.T) {
	for name, test := range map[string]struct {
		r    importer.Result
		want string // in the warning
	}{
		"all are seen": {importer.Result{}, ""},
		"one is not":   {importer.Result{Unseen: []string{"a.example/a:1"}}, "NotVisible a: the kubelet does not find 1 name: a.example/a:1"},
		"many are not": {importer.Result{Unseen: []string{"a", "b", "c", "d"}}, "does not find 4 names: a, b, c and others"},
		"no CRI":       {importer.Result{CRI: "containerd does not serve CRI"}, "not known: containerd does not serve CRI"},
	} {
		t.Run(name, func(t *testing.T) {
			recorder := events.NewFakeRecorder(10)
			b, a := newDone(t, nil)
			r := &NodeReconciler{Recorder: recorder, agenda: b.agenda, worker: &worker{metrics: newMetrics(prometheus.NewRegistry())}}
			r.announce(ctrl.LoggerInto(t.Context(), logr.Discard()), &outcome{job: b.records[a.UID].job(jobImport), result: test.r}, newlyImported)
			r.sendNotes("uid")
			if first := <-recorder.Events; !strings.HasPrefix(first, "Normal Imported a: ") {
				t.Errorf("first %q", first)
			}
			if test.want == "" {
				if len(recorder.Events) > 0 {
					t.Errorf("and %q", <-recorder.Events)
				}
				return
			}
			if len(recorder.Events) != 1 {
				t.Fatalf("%d more Events", len(recorder.Events))
			}
			if got := <-recorder.Events; !strings.HasPrefix(got, "Warning ") || !strings.Contains(got, test.want) {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}
