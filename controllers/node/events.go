package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
	"github.com/tarlift/tarlift/internal/importer"
)

// outcome is what became of an archive that was not known before, and that an Event is worth.
type outcome int

const (
	eventNone          outcome = iota
	eventImported              // for the first time, or another archive
	eventDrifted               // images that were complete are no more
	eventHealed                // they are complete again, by a repair or an import
	eventSourceChanged         // the source has another archive
)

// Reasons of Events that are none of a condition.
const (
	eventReasonHealed        = "Healed"
	eventReasonSourceChanged = "SourceChanged"
	eventReasonReleased      = "Released"
)

const (
	// maxEvents bounds what waits while the API server is away. The oldest go first.
	maxEvents = 100
	// eventTimeout is how long an Event may take: the next report waits for it.
	eventTimeout = 2 * time.Second
	// maxEventAge is after how long an API server would have forgotten an Event.
	maxEventAge = time.Hour
	// maxInstance is how long an Event's field reportingInstance may be, in bytes.
	maxInstance = 128
	// maxNamePrefix leaves room for what tells the names of a node's Events apart.
	maxNamePrefix = 200
)

// events are Events about the node's NodeImageState that wait to be sent. client-go's recorder would take all with one reason
// for a series of the first, and drop what the others say.
type events struct {
	client client.Client
	node   string
	outage backoff // Events may fail where the status does not: they have a store of their own in some clusters, and webhooks

	mu    sync.Mutex
	queue []*eventsv1.Event
	tried bool // the first was sent, and the API server has not said that it has it
}

// add queues an Event about an archive. Archives that have the same to tell share one, as far as it has room.
func (e *events) add(w *want, typ, reason, text string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	text = condition.Clip(w.name + ": " + text)
	for i, v := range e.queue {
		if v.Type == typ && v.Reason == reason && (i > 0 || !e.tried) && len(v.Note)+len("; ")+len(text) <= condition.MaxText {
			v.Note, v.Related = v.Note+"; "+text, nil
			return
		}
	}
	if len(e.queue) == maxEvents {
		e.queue, e.tried = slices.Delete(e.queue, 0, 1), false
	}
	prefix := strings.TrimRight(e.node[:min(len(e.node), maxNamePrefix)], "-.")
	v := &eventsv1.Event{
		// Where the Events of objects without a namespace are.
		ObjectMeta:          metav1.ObjectMeta{Name: prefix + "-" + rand.String(10), Namespace: metav1.NamespaceDefault},
		EventTime:           metav1.NowMicro(),
		ReportingController: "tarlift-node",
		ReportingInstance:   e.node[:min(len(e.node), maxInstance)],
		Action:              "Import",
		Type:                typ,
		Reason:              reason,
		Regarding:           reference("NodeImageState", e.node, ""),
		Note:                text,
	}
	if w.uid != "" && !v1alpha1.IsDropIn(w.name) {
		v.Related = ptr.To(reference("ImageArchive", w.name, w.uid))
	}
	e.queue = append(e.queue, v)
}

func reference(kind, name string, uid types.UID) corev1.ObjectReference {
	return corev1.ObjectReference{APIVersion: v1alpha1.GroupVersion.String(), Kind: kind, Name: name, UID: uid}
}

// pending says whether Events wait that may be sent now.
func (e *events) pending() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.queue) > 0 && !e.outage.readyAt.After(time.Now())
}

// send creates the Events that wait, about the NodeImageState with this UID. It returns when to try again, negative for never.
//
// An Event that seems to have failed may have been created, the answer being late. It stays as it is, name included, until the
// API server says what became of it: else each attempt at an API server that is slow would be another Event.
func (e *events) send(ctx context.Context, state types.UID, jitter func() float64) time.Duration {
	ctx, cancel := context.WithTimeout(ctx, eventTimeout)
	defer cancel()
	for {
		first := e.first(state)
		if first == nil {
			e.outage.reset()
			return -1
		}
		err := e.client.Create(ctx, first)
		switch age := time.Since(first.EventTime.Time); {
		case err == nil, apierrors.IsAlreadyExists(err): // since an earlier attempt
		case isRefusal(err, age):
			ctrl.LoggerFrom(ctx).Error(nil, "The API server refuses an Event", "reason", first.Reason, "error", condition.ErrorText(err))
		default:
			e.outage.failed(time.Now(), retryLimit, jitter)
			if e.outage.failures == 1 {
				ctrl.LoggerFrom(ctx).Error(nil, "Could not create an Event; trying again", "error", condition.ErrorText(err))
			}
			return max(settleTime, time.Until(e.outage.readyAt))
		}
		e.mu.Lock()
		e.queue = slices.DeleteFunc(e.queue, func(v *eventsv1.Event) bool { return v.Name == first.Name })
		e.tried = false
		e.mu.Unlock()
	}
}

// first is the Event to send, nil for none. It stays in the queue until it was sent.
func (e *events) first(state types.UID) *eventsv1.Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.queue) == 0 {
		return nil
	}
	e.tried = true
	v := e.queue[0].DeepCopy()
	v.Regarding.UID = state
	return v
}

// isRefusal says that an API server, or one of its webhooks, will not take what is of this age later either.
func isRefusal(err error, age time.Duration) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return false
	}
	switch code := status.Status().Code; code {
	case http.StatusUnauthorized, http.StatusRequestTimeout, http.StatusConflict, http.StatusTooManyRequests:
		return age > maxEventAge
	default:
		return code >= 400 && code < 500 || age > maxEventAge
	}
}

// summary says what an import did.
func summary(r importer.Result, took time.Duration) string {
	size := func(n int64) string {
		if n == 0 {
			return "nothing"
		}
		return condition.DisplaySize(n)
	}
	return fmt.Sprintf("%s imported in %s: %s read, %s written, %s skipped", condition.Count(len(r.Images), "image"),
		took.Round(100*time.Millisecond), size(r.Bytes.Read), size(r.Bytes.Written), size(r.Bytes.Skipped))
}

// releasedText says what became of the images of an archive that wants them no more.
func releasedText(r importer.Released) string {
	var parts []string
	for _, p := range []struct {
		names []string
		did   string
	}{
		{r.Deleted, "deleted"},
		{r.Unpinned, "unpinned"},
		{r.InUse, "unpinned and not deleted, since containers use them"},
		{r.Retained, "left as they are"},
	} {
		if len(p.names) > 0 {
			parts = append(parts, condition.Count(len(p.names), "name")+" "+p.did)
		}
	}
	if len(parts) == 0 {
		return "no images of it are left"
	}
	return strings.Join(parts, ", ")
}
