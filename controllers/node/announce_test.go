package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/controllers/condition"
	"github.com/tarlift/tarlift/internal/importer"
)

// eventLog is an API server that takes Events, or fails.
type eventLog struct {
	client.Client
	events []*eventsv1.Event
	fails  error
	late   bool // its answers do not arrive
}

func (l *eventLog) Create(_ context.Context, o client.Object, _ ...client.CreateOption) error {
	if l.fails != nil {
		return l.fails
	}
	e := o.(*eventsv1.Event)
	if slices.ContainsFunc(l.events, func(x *eventsv1.Event) bool { return x.Name == e.Name }) {
		return apierrors.NewAlreadyExists(schema.GroupResource{Resource: "events"}, e.Name)
	}
	l.events = append(l.events, e.DeepCopy())
	if l.late {
		return context.DeadlineExceeded
	}
	return nil
}

func (l *eventLog) texts() (out []string) {
	for _, e := range l.events {
		out = append(out, e.Type+" "+e.Reason+" "+e.Note)
	}
	return out
}

// Which Events an outcome is worth, and what is counted.
func TestAnnounce(t *testing.T) {
	again := good
	again.duration = 1234 * time.Millisecond
	for _, test := range []struct {
		why    string
		job    jobKind
		o      outcome
		n      news
		want   []string
		metric string // of tarlift_heals_total
	}{
		{"an import", jobImport, again, newlyImported, []string{"Normal Imported a: 2 images imported in 1.2s: 70B read, 60B written, 40B skipped"}, ""},
		{"one after a loss", jobImport, again, newlyHealed, []string{"Normal Imported a: 2 images imported in 1.2s: 70B read, 60B written, 40B skipped"}, "import"},
		{"a loss", jobCheck, lossy, newlyLost, []string{"Warning Drifted a: " + lost}, ""},
		{"the same", jobCheck, lossy, nothingNew, nil, ""},
		{"a repair", jobCheck, repaired, newlyRepaired, []string{"Normal Healed a: 1 name repaired, nothing read"}, "repair"},
		{"a failure", jobImport, unreachable, newlyFailed, []string{"Warning SourceUnavailable a: get: source unavailable"}, ""},
		{"a known one", jobImport, unreachable, nothingNew, nil, ""},
		{"a stop", jobImport, outcome{err: errors.New("stopped"), stopped: true}, nothingNew, nil, ""},
		{"a source that cannot be asked", jobProbe, unreachable, nothingNew, nil, ""},
		{"one that has changed", jobProbe, differs, newlyStale, []string{"Normal SourceChanged a: the source holds another archive than before"}, ""},
		{"a sweep", jobSweep, outcome{released: []importer.Released{
			{Owner: importer.Owner{Name: "gone"}, Deleted: []string{"x", "y"}, InUse: []string{"z"}}, {Owner: importer.Owner{Name: "old"}, Unpinned: []string{"v"}},
		}}, nothingNew, []string{
			"Normal Released 2 messages: gone: 2 names deleted, 1 name unpinned and not deleted, since containers use them; old: 1 name unpinned",
		}, ""},
	} {
		server := &eventLog{}
		b, a := newDone(t, nil)
		b.records[a.UID].loss = lost
		r := &Reconciler{Client: server, agenda: b.agenda, worker: &worker{metrics: newMetrics(prometheus.NewRegistry())}}
		o := test.o
		o.job = b.records[a.UID].job(test.job)
		if test.job == jobSweep {
			o.job = &job{kind: jobSweep}
		}
		r.announce(ctrl.LoggerInto(t.Context(), logr.Discard()), &o, test.n)
		if len(server.events) > 0 {
			t.Errorf("%s: an Event before the status", test.why)
		}
		if err := r.sendNotes(t.Context(), "uid"); err != nil {
			t.Error(err)
		}
		if got := server.texts(); !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, want %q", test.why, got, test.want)
		}
		for _, kind := range []string{healedByRepair, healedByImport} {
			if n := testutil.ToFloat64(r.worker.metrics.heals.WithLabelValues(kind)); n > 0 != (kind == test.metric) {
				t.Errorf("%s: counted %v of %s", test.why, n, kind)
			}
		}
	}
}

// An API server that is away for days does not fill the agent's memory.
func TestNotesThatWaitAreBounded(t *testing.T) {
	b, a := newDone(t, nil)
	b.records[a.UID].loss = lost
	r := &Reconciler{agenda: b.agenda, worker: &worker{metrics: newMetrics(prometheus.NewRegistry())}}
	for i := range 3 * maxNotes {
		o := lossy
		o.job = b.records[a.UID].job(jobCheck)
		o.job.owner.Name = strconv.Itoa(i)
		r.announce(ctrl.LoggerInto(t.Context(), logr.Discard()), &o, newlyLost)
	}
	if n := len(r.notes); n != maxNotes || r.notes[n-1].name != strconv.Itoa(3*maxNotes-1) {
		t.Errorf("%d notes, the last of %s", n, r.notes[n-1].name)
	}
}

// What an API server that is away did not take waits; what it refuses goes, or it would be refused for ever.
func TestNotesWaitForTheAPIServer(t *testing.T) {
	for _, test := range []struct {
		why   string
		fails error
		waits int
	}{
		{"away", errors.New("connection refused"), 2},
		{"busy", apierrors.NewTooManyRequests("later", 1), 2},
		{"refused by a webhook", apierrors.NewBadRequest("no"), 0},
		{"without the right", apierrors.NewForbidden(schema.GroupResource{Resource: "events"}, "e", nil), 0},
		{"refused by a webhook that says it is broken", apierrors.NewInternalError(errors.New("no")), 2},
	} {
		server := &eventLog{fails: test.fails}
		r := &Reconciler{Client: server}
		r.note(note{name: "a", typ: "Normal", reason: eventReleased, text: "one"})
		r.note(note{name: "b", typ: "Normal", reason: eventHealed, text: "two"})
		if err := r.sendNotes(t.Context(), "uid"); (err != nil) != (test.waits > 0) || r.hasNews() != (test.waits > 0) {
			t.Errorf("%s: something waits: %v, error %v", test.why, r.hasNews(), err)
		}
		server.fails = nil
		if err := r.sendNotes(t.Context(), "later"); err != nil || r.hasNews() || len(server.events) != test.waits {
			t.Errorf("%s, then there: something waits: %v, %q, error %v", test.why, r.hasNews(), server.texts(), err)
		}
		for _, e := range server.events {
			if e.Regarding.UID != "later" {
				t.Errorf("%s: an Event about an object that is gone: %q", test.why, e.Regarding.UID)
			}
		}
	}
}

// However often an API server is slow, it gets each Event once.
func TestEventIsToldOnce(t *testing.T) {
	server := &eventLog{late: true}
	r := &Reconciler{Client: server, NodeName: "n"}
	for i := range 3 {
		r.note(note{name: strconv.Itoa(i), typ: "Normal", reason: eventHealed, text: "text"})
		if err := r.sendNotes(t.Context(), "uid"); err == nil {
			t.Fatal("it does not learn that the API server is slow")
		}
	}
	server.late = false
	if err := r.sendNotes(t.Context(), "uid"); err != nil || r.hasNews() {
		t.Errorf("something waits: %v, error %v", r.hasNews(), err)
	}
	if got, want := server.texts(), []string{"Normal Healed 0: text", "Normal Healed 1: text", "Normal Healed 2: text"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// One that is never taken does not keep others back for ever. Nothing is too old for an API server that is away.
func TestOldEvents(t *testing.T) {
	for _, test := range []struct {
		fails error
		waits bool
	}{{apierrors.NewInternalError(errors.New("no")), false}, {apierrors.NewTooManyRequests("later", 1), false}, {errors.New("connection refused"), true}} {
		synctest.Test(t, func(t *testing.T) {
			r := &Reconciler{Client: &eventLog{fails: test.fails}}
			r.note(note{name: "a", typ: "Normal", reason: eventReleased, text: "one"})
			time.Sleep(maxEventAge)
			if err := r.sendNotes(t.Context(), "uid"); err == nil || !r.hasNews() {
				t.Errorf("%v: given up early", test.fails)
			}
			time.Sleep(time.Second)
			if err := r.sendNotes(t.Context(), "uid"); (err != nil) != test.waits || r.hasNews() != test.waits {
				t.Errorf("%v: something waits: %v, error %v", test.fails, r.hasNews(), err)
			}
		})
	}
}

func TestEventNames(t *testing.T) {
	for _, node := range []string{"n", "node.example", strings.Repeat("a", 253), strings.Repeat("a.", 126) + "a"} {
		r := &Reconciler{NodeName: node}
		e := r.event([]note{{name: "a"}}, "uid")
		if errs := validation.IsDNS1123Subdomain(e.Name); len(errs) > 0 {
			t.Errorf("%s: %q", e.Name, errs)
		}
	}
}

// Of many that fail at once every one is told, in few Events.
func TestNotesAreGathered(t *testing.T) {
	server := &eventLog{}
	r := &Reconciler{Client: server, NodeName: "n"}
	for i := range maxNotes {
		r.note(note{name: fmt.Sprintf("archive-%d", i), typ: "Warning", reason: "Failed", text: strings.Repeat("x", 90)})
	}
	if err := r.sendNotes(t.Context(), "uid"); err != nil {
		t.Fatal(err)
	}
	all := strings.Join(server.texts(), "\n")
	for i := range maxNotes {
		if !strings.Contains(all, fmt.Sprintf("archive-%d: xxx", i)) {
			t.Errorf("archive-%d is not told of", i)
		}
	}
	if n := len(server.events); n > maxNotes/8+1 {
		t.Errorf("%d Events", n)
	}
	for _, e := range server.events {
		if len(e.Note) > condition.MaxText || !strings.HasPrefix(e.Note, "9 messages: ") && e != server.events[len(server.events)-1] {
			t.Errorf("%d bytes: %s", len(e.Note), e.Note)
		}
	}
}
