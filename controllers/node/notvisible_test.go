package node

import (
	"strings"
	"testing"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/tarlift/tarlift/internal/importer"
)

// An import whose images the kubelet would not find is a success, with a warning beside it.
func TestNotVisibleIsAnnounced(t *testing.T) {
	for name, test := range map[string]struct {
		r    importer.Result
		want string // in the warning
	}{
		"all are visible": {importer.Result{}, ""},
		"one is not":      {importer.Result{NotVisible: []string{"a.example/a:1"}}, "NotVisible a: the kubelet does not find 1 name: a.example/a:1"},
		"many are not":    {importer.Result{NotVisible: []string{"a", "b", "c", "d"}}, "does not find 4 names: a, b, c and others"},
		"no CRI":          {importer.Result{CRI: "containerd does not serve CRI"}, "not known: containerd does not serve CRI"},
	} {
		t.Run(name, func(t *testing.T) {
			server := &eventLog{}
			b, a := newDone(t, nil)
			r := &Reconciler{Client: server, agenda: b.agenda, worker: &worker{metrics: newMetrics(prometheus.NewRegistry())}}
			r.announce(ctrl.LoggerInto(t.Context(), logr.Discard()), &outcome{job: b.records[a.UID].job(jobImport), result: test.r}, newlyImported)
			if err := r.sendNotes(t.Context(), "uid"); err != nil {
				t.Fatal(err)
			}
			want := 1
			if test.want != "" {
				want = 2
			}
			got := server.texts()
			if len(got) != want || !strings.HasPrefix(got[0], "Normal Imported a: ") {
				t.Fatalf("%q", got)
			}
			if last := got[want-1]; want > 1 && (!strings.HasPrefix(last, "Warning ") || !strings.Contains(last, test.want)) {
				t.Errorf("%q, want %q", last, test.want)
			}
		})
	}
}
