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
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"github.com/tarlift/tarlift/api/v1alpha1"
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

// sent sends what waits, and says whether nothing does any more.
func sent(t *testing.T, e *events, uid types.UID) bool {
	e.outage.reset()
	return e.send(ctrl.LoggerInto(t.Context(), logr.Discard()), uid, noJitter) < 0
}

// What an API server that is away did not take waits; what it refuses goes, or it would be refused for ever.
func TestEventsWaitForTheAPIServer(t *testing.T) {
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
		e := &events{client: server, node: "n"}
		e.add(&want{name: "a"}, "Normal", eventReasonReleased, "one")
		e.add(&want{name: "b"}, "Normal", eventReasonHealed, "two")
		if all := sent(t, e, "uid"); all != (test.waits == 0) {
			t.Errorf("%s: all were sent: %v", test.why, all)
		}
		server.fails = nil
		if !sent(t, e, "later") || len(server.events) != test.waits {
			t.Errorf("%s, then there: %q", test.why, server.texts())
		}
		for _, v := range server.events {
			if v.Regarding.UID != "later" {
				t.Errorf("%s: an Event about an object that is gone: %q", test.why, v.Regarding.UID)
			}
		}
	}
}

// However often an API server is slow, it gets each Event once.
func TestEventIsSentOnce(t *testing.T) {
	server := &eventLog{late: true}
	e := &events{client: server, node: "n"}
	for i := range 3 {
		e.add(&want{name: strconv.Itoa(i)}, "Normal", eventReasonHealed, "text")
		if sent(t, e, "uid") {
			t.Fatal("it does not learn that the API server is slow")
		}
	}
	server.late = false
	if !sent(t, e, "uid") {
		t.Error("something waits")
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
			e := &events{client: &eventLog{fails: test.fails}, node: "n"}
			e.add(&want{name: "a"}, "Normal", eventReasonReleased, "one")
			time.Sleep(maxEventAge)
			if sent(t, e, "uid") {
				t.Errorf("%v: given up early", test.fails)
			}
			time.Sleep(time.Second)
			if sent(t, e, "uid") == test.waits {
				t.Errorf("%v: waits %v", test.fails, !test.waits)
			}
		})
	}
}

// What waits while the API server is away does not fill the agent's memory, and of many every one is told, in few Events.
func TestEventsAreGrouped(t *testing.T) {
	server := &eventLog{}
	e := &events{client: server, node: "n"}
	for i := range 20 * maxEvents {
		e.add(&want{name: fmt.Sprintf("archive-%d", i)}, "Warning", "Failed", strings.Repeat("x", 90))
	}
	if !sent(t, e, "uid") {
		t.Fatal("something waits")
	}
	all := strings.Join(server.texts(), "\n")
	for i := 13 * maxEvents; i < 20*maxEvents; i++ {
		if !strings.Contains(all, fmt.Sprintf("archive-%d: xxx", i)) {
			t.Errorf("archive-%d is not told of", i)
		}
	}
	if n := len(server.events); n > maxEvents {
		t.Errorf("%d Events", n)
	}
	for _, v := range server.events {
		if len(v.Note) > condition.MaxText {
			t.Errorf("%d bytes: %s", len(v.Note), v.Note)
		}
	}
}

// The API server refuses an Event whose name is none, whose note is longer than 1 KiB, or whose reportingInstance is longer
// than 128 bytes.
func TestEventsAreValid(t *testing.T) {
	for _, node := range []string{"n", "node.example", strings.Repeat("a", 253), strings.Repeat("a.", 126) + "a"} {
		server := &eventLog{}
		e := &events{client: server, node: node}
		a := newArchive(strings.Repeat("n", 253), 0)
		e.add(wantOf(a, nil), "Warning", "Truncated", strings.Repeat("x", condition.MaxText))
		if !sent(t, e, "uid") {
			t.Fatal("something waits")
		}
		v := server.events[0]
		if errs := validation.IsDNS1123Subdomain(v.Name); len(errs) > 0 {
			t.Errorf("%s: %q", v.Name, errs)
		}
		if len(v.Note) > 1024 || !strings.HasPrefix(v.Note, a.Name+": xxx") || len(v.ReportingInstance) > 128 || v.Related.UID != a.UID {
			t.Errorf("%d bytes: %s; by %s, of %v", len(v.Note), v.Note, v.ReportingInstance, v.Related)
		}
	}
}

func TestReleasedText(t *testing.T) {
	for want, r := range map[string]importer.Released{
		"no images of it are left": {},
		"2 names deleted, 1 name unpinned and not deleted, since containers use them": {Deleted: []string{"x", "y"}, InUse: []string{"z"}},
		"1 name unpinned, 1 name left as they are":                                    {Unpinned: []string{"v"}, Retained: []string{"w"}},
	} {
		if got := releasedText(r); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestArchiveChanged(t *testing.T) {
	for _, test := range []struct {
		why  string
		edit func(*v1alpha1.ImageArchive)
		want bool
	}{
		{"the controller writes", func(a *v1alpha1.ImageArchive) { a.Status.ImageCount++ }, false},
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
