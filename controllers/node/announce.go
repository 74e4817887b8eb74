package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/internal/reason"
)

// Reasons of Events that are none of a condition.
const (
	eventHealed        = "Healed"
	eventSourceChanged = "SourceChanged"
	eventReleased      = "Released"
)

// The kinds of tarlift_heals_total.
const (
	healedByRepair = "repair"
	healedByImport = "import"
)

// announce tells of a job's end by an Event on the NodeImageState, by metrics and in the log. A failure like the
// one before is no news.
func (r *Reconciler) announce(ctx context.Context, o *outcome, n news) {
	log := ctrl.LoggerFrom(ctx)
	if o.job.owner.Name != "" {
		log = log.WithValues("archive", o.job.owner.Name)
	}
	if o.job.kind == jobImport {
		r.worker.metrics.count(o)
	}
	tell := func(typ, reason, message, text string) {
		log.Info(message, "summary", text)
		r.note(note{name: o.job.owner.Name, archive: o.job.archive, typ: typ, reason: reason, text: text})
	}
	for _, was := range o.released {
		if len(was.Skipped) > 0 {
			continue // until there is something to tell
		}
		log.Info("Released", "archive", was.Owner.Name, "uid", was.Owner.UID, "retained", was.Retained, "unpinned", was.Unpinned,
			"deleted", was.Deleted, "inUse", was.InUse)
		r.note(note{name: was.Owner.Name, typ: corev1.EventTypeNormal, reason: eventReleased, text: releasedText(was)})
	}
	if o.err != nil && !o.stopped {
		reason, terminal := reason.Classify(o.err)
		text := condition.ErrorText(o.err)
		log.Info("Failed", "job", o.job.kind.String(), "reason", reason, "terminal", terminal, "error", text)
		if n == newlyFailed {
			r.note(note{name: o.job.owner.Name, archive: o.job.archive, typ: corev1.EventTypeWarning, reason: reason, text: text})
		}
		return
	}
	switch n {
	case newlyHealed:
		r.worker.metrics.heals.WithLabelValues(healedByImport).Inc()
		tell(corev1.EventTypeNormal, v1alpha1.ReasonImported, "Imported again", summary(o))
	case newlyImported:
		tell(corev1.EventTypeNormal, v1alpha1.ReasonImported, "Imported", summary(o))
	case newlyRepaired:
		r.worker.metrics.heals.WithLabelValues(healedByRepair).Inc()
		tell(corev1.EventTypeNormal, eventHealed, "Healed", condition.Count(o.repaired, "name")+" repaired, nothing read")
	case newlyLost:
		tell(corev1.EventTypeWarning, v1alpha1.ReasonDrifted, "Lost", r.agenda.records[o.job.uid].loss)
	case newlyStale:
		tell(corev1.EventTypeNormal, eventSourceChanged, "Source changed", "the source holds another archive than before")
	}
	if text := notVisibleText(o.result); text != "" && (n == newlyImported || n == newlyHealed) {
		tell(corev1.EventTypeWarning, eventNotVisible, "Not visible to the kubelet", text)
	}
}

// note is an Event about this node and an archive, which may be gone.
type note struct {
	name              string
	archive           *v1alpha1.ImageArchive
	typ, reason, text string
	when              time.Time
}

func (n note) String() string { return n.name + ": " + n.text }

// maxNotes bounds what waits while the API server is away. The oldest go first.
const maxNotes = 100

func (r *Reconciler) note(n note) {
	n.when = time.Now()
	if len(r.notes) == maxNotes {
		r.notes = slices.Delete(r.notes, 0, 1)
	}
	r.notes = append(r.notes, n)
}

// tellTimeout is how long an Event may take. What the reconciler has to do besides waits for it.
const tellTimeout = 2 * time.Second

// tell sends what waits, if it is time for that. Events may fail where the status does not: they have a store of their own in
// some clusters, and webhooks. So they are tried again by themselves.
func (r *Reconciler) tell(ctx context.Context, state types.UID, now time.Time, window time.Duration) {
	if !r.hasNews() || r.telling.notBefore.After(now) {
		return
	}
	err := r.sendNotes(ctx, state)
	if err == nil {
		r.telling.reset()
		return
	}
	r.telling.failed(r.now(), max(apiRetryLimit, window), r.jitter)
	if r.telling.tries == 1 {
		ctrl.LoggerFrom(ctx).Info("Could not create an Event; trying again", "error", condition.ErrorText(err))
	}
}

// hasNews says whether Events wait.
func (r *Reconciler) hasNews() bool { return r.sending != nil || len(r.notes) > 0 }

// untold is when to try again, 0 for never.
func (r *Reconciler) untold(now time.Time) time.Duration {
	if !r.hasNews() {
		return 0
	}
	return max(r.telling.notBefore.Sub(now), settleTime)
}

// sendNotes creates the Events that wait, about the NodeImageState with this UID: one for archives that have the same to
// tell. client-go's recorder would take all with one reason for a series of the first, and drop what the others say.
//
// An Event that seems to have failed may have been created, the answer being late. It stays as it is, name included, until
// the API server says what became of it: else each attempt at an API server that is slow would be another Event.
func (r *Reconciler) sendNotes(ctx context.Context, state types.UID) error {
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	for r.hasNews() {
		if r.sending == nil {
			groups := gather(r.notes)
			r.sending, r.notes = r.event(groups[0], state), slices.Concat(groups[1:]...)
		}
		r.sending.Regarding.UID = state // which may be another by now
		err := r.Client.Create(ctx, r.sending)
		switch {
		case apierrors.IsAlreadyExists(err): // since an earlier attempt
		case isRefusal(err, time.Since(r.sending.EventTime.Time)):
			ctrl.LoggerFrom(ctx).Info("The API server refuses an Event", "reason", r.sending.Reason, "error", condition.ErrorText(err))
		case err != nil:
			return err
		}
		r.sending = nil
	}
	return nil
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

const (
	// maxEventAge is after how long an API server would have forgotten an Event, had it taken it.
	maxEventAge = time.Hour
	// maxInstance is how long an Event's field reportingInstance may be, in bytes.
	maxInstance = 128
	// maxNamePrefix leaves room for what tells the names of a node's Events apart.
	maxNamePrefix = 200
)

// event tells of notes of one kind.
func (r *Reconciler) event(notes []note, state types.UID) *eventsv1.Event {
	first := notes[0]
	prefix := strings.TrimRight(r.NodeName[:min(len(r.NodeName), maxNamePrefix)], "-.")
	e := &eventsv1.Event{
		// Where the Events of objects without a namespace are.
		ObjectMeta:          metav1.ObjectMeta{Name: prefix + "-" + rand.String(10), Namespace: metav1.NamespaceDefault},
		EventTime:           metav1.NewMicroTime(first.when),
		ReportingController: "tarlift-node",
		ReportingInstance:   r.NodeName[:min(len(r.NodeName), maxInstance)],
		Action:              "Import",
		Type:                first.typ,
		Reason:              first.reason,
		Regarding:           reference("NodeImageState", r.NodeName, state),
		Note:                condition.Clip(textOf(notes)),
	}
	if len(notes) == 1 && first.archive != nil && !v1alpha1.IsDropIn(first.archive.Name) {
		e.Related = ptr.To(reference("ImageArchive", first.archive.Name, first.archive.UID))
	}
	return e
}

func reference(kind, name string, uid types.UID) corev1.ObjectReference {
	return corev1.ObjectReference{APIVersion: v1alpha1.GroupVersion.String(), Kind: kind, Name: name, UID: uid}
}

// gather puts together notes of one kind, as many as an Event has room for.
func gather(notes []note) [][]note {
	type kind struct{ typ, reason string }
	var groups [][]note
	last := map[kind]int{}
	for _, n := range notes {
		k := kind{n.typ, n.reason}
		if i, ok := last[k]; ok && len(textOf(append(slices.Clip(groups[i]), n))) <= condition.MaxText {
			groups[i] = append(groups[i], n)
			continue
		}
		last[k] = len(groups)
		groups = append(groups, []note{n})
	}
	return groups
}

func textOf(notes []note) string {
	if len(notes) == 1 {
		return notes[0].String()
	}
	texts := make([]string, len(notes))
	for i, n := range notes {
		texts[i] = n.String()
	}
	return condition.Count(len(notes), "message") + ": " + strings.Join(texts, "; ")
}

func summary(o *outcome) string {
	b := o.result.Bytes
	size := func(n int64) string {
		if n == 0 {
			return "nothing"
		}
		return condition.DisplaySize(n)
	}
	return fmt.Sprintf("%s imported in %s: %s read, %s written, %s skipped", condition.Count(len(o.result.Images), "image"),
		o.duration.Round(100*time.Millisecond), size(b.Read), size(b.Written), size(b.Skipped))
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
