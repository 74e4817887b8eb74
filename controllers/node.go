// Package controllers keeps nodes as ImageArchives want them: NodeReconciler imports archives on one node and
// reports in its NodeImageState, ArchiveReconciler sums up all NodeImageStates in the archives' status.
//
// Only this package reads specs, writes status, emits Events and counts metrics; those below it are a library.
package controllers

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	ctrlsource "sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/internal/importer"
)

// NodeReconciler imports the archives that select one node and reports in the node's own NodeImageState. There is
// one request, for the node: whatever happens, the whole is looked at.
type NodeReconciler struct {
	// Client reads from a cache: ImageArchives, and the metadata of the node and its NodeImageState.
	Client   client.Client
	Recorder events.EventRecorder
	Importer Importer
	Sources  Sources
	NodeName string
	Metrics  prometheus.Registerer

	worker *worker
	agenda *agenda // nil until the first reconcile
	state  writtenState
	notes  []note // Events that wait for the object that they are about
	pacer  pacer
	now    func() time.Time
	jitter func() float64
}

// progressPoll is how often the progress of running imports is looked at, to see whether it is worth a write.
const progressPoll = 2 * time.Second

// apiRetry bounds the wait after a failed call of the API server. Imports go on meanwhile.
const apiRetryBase, apiRetryLimit = 500 * time.Millisecond, 30 * time.Second

// SetupWithManager adds the reconciler and its worker to a manager.
func (r *NodeReconciler) SetupWithManager(mgr ctrl.Manager) error {
	r.now, r.jitter = time.Now, rand.Float64
	r.worker = &worker{importer: r.Importer, open: r.Sources.Open, metrics: newMetrics(r.Metrics)}
	if err := mgr.Add(r.worker); err != nil {
		return fmt.Errorf("add worker: %w", err)
	}
	request := ctrl.Request{NamespacedName: types.NamespacedName{Name: r.NodeName}}
	toNode := handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []ctrl.Request {
		return []ctrl.Request{request}
	})
	err := ctrl.NewControllerManagedBy(mgr).
		Named("node").
		Watches(&v1alpha1.ImageArchive{}, toNode, builder.WithPredicates(archiveChanged)).
		Watches(&v1alpha1.NodeImageState{}, toNode).
		WatchesMetadata(&corev1.Node{}, toNode, builder.WithPredicates(nodeChanged)).
		WatchesRawSource(ctrlsource.Func(func(_ context.Context, q workqueue.TypedRateLimitingInterface[ctrl.Request]) error {
			r.worker.onWake(func() { q.Add(request) })
			return nil
		})).
		WithOptions(controller.Options{
			RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[ctrl.Request](apiRetryBase, apiRetryLimit),
		}).
		Complete(r)
	if err != nil {
		return fmt.Errorf("set up the node controller: %w", err)
	}
	return nil
}

// archiveChanged leaves out what the roll-up writes: else each of its writes would wake every agent's reconciler.
var archiveChanged = predicate.Or(predicate.GenerationChangedPredicate{}, recreated, predicate.Funcs{
	UpdateFunc: func(e event.UpdateEvent) bool {
		const key = v1alpha1.AnnotationReconcileRequestedAt
		return e.ObjectOld.GetAnnotations()[key] != e.ObjectNew.GetAnnotations()[key]
	},
})

// nodeChanged leaves out what the kubelet writes all the time.
var nodeChanged = predicate.Or(predicate.LabelChangedPredicate{}, recreated)

// recreated is for objects that were deleted and created again while a watch was down: that arrives as one update.
var recreated = predicate.Funcs{
	UpdateFunc: func(e event.UpdateEvent) bool { return e.ObjectOld.GetUID() != e.ObjectNew.GetUID() },
}

// Reconcile looks at all archives of the node: it takes in what has changed, gives the worker its next jobs, and
// reports.
func (r *NodeReconciler) Reconcile(ctx context.Context, _ ctrl.Request) (ctrl.Result, error) {
	view, err := r.look(ctx)
	if err != nil || view.node == nil {
		return ctrl.Result{}, err
	}
	now := r.now()
	r.takeIn(ctx, view, now)
	wait := r.steer(ctx, now)
	later, err := r.report(ctx, view, now)
	if err != nil {
		return ctrl.Result{}, err
	}
	return ctrl.Result{RequeueAfter: sooner(wait, later)}, nil
}

// nodeView is what the API server says that concerns one node.
type nodeView struct {
	node     *metav1.PartialObjectMetadata // nil: not there
	state    *v1alpha1.NodeImageState      // nil: not there
	leftover bool                          // the state that is there belongs to an earlier Node of the name
	archives []*v1alpha1.ImageArchive      // those that select the node
}

// look reads from the cache. An archive whose selector cannot be read selects no node; its status says so.
func (r *NodeReconciler) look(ctx context.Context) (*nodeView, error) {
	view := &nodeView{}
	key := client.ObjectKey{Name: r.NodeName}
	node := nodeMetadata()
	if err := r.Client.Get(ctx, key, node); err != nil {
		return view, client.IgnoreNotFound(err)
	}
	view.node = node
	state := &v1alpha1.NodeImageState{}
	switch err := r.Client.Get(ctx, key, state); {
	case err == nil && belongsTo(state, node):
		view.state = state
	case err == nil:
		view.leftover = true
	case client.IgnoreNotFound(err) != nil:
		return view, err
	}
	var list v1alpha1.ImageArchiveList
	if err := r.Client.List(ctx, &list); err != nil {
		return view, err
	}
	for i := range list.Items {
		a := &list.Items[i]
		if selector, err := nodeSelector(a); err == nil && a.DeletionTimestamp.IsZero() && selector.Matches(labels.Set(node.Labels)) {
			view.archives = append(view.archives, a)
		}
	}
	return view, nil
}

// belongsTo says whether a NodeImageState is about this Node, and not about an earlier one of the same name.
func belongsTo(state *v1alpha1.NodeImageState, node *metav1.PartialObjectMetadata) bool {
	uid := owningNode(state)
	return uid == "" || uid == node.UID
}

// owningNode is the UID of the Node that a NodeImageState belongs to, empty for none.
func owningNode(state *v1alpha1.NodeImageState) types.UID {
	for _, o := range state.OwnerReferences {
		if o.Kind == "Node" {
			return o.UID
		}
	}
	return ""
}

// nodeSelector is what selects an archive's nodes; absent means all, unlike with other uses of a LabelSelector.
func nodeSelector(a *v1alpha1.ImageArchive) (labels.Selector, error) {
	if a.Spec.NodeSelector == nil {
		return labels.Everything(), nil
	}
	return metav1.LabelSelectorAsSelector(a.Spec.NodeSelector)
}

// takeIn updates what is known by what has been seen and by what the worker has done.
func (r *NodeReconciler) takeIn(ctx context.Context, view *nodeView, now time.Time) {
	if r.agenda == nil {
		r.agenda = newAgenda(r.jitter)
		if view.state != nil {
			r.agenda.restore(&view.state.Status)
		}
	}
	r.agenda.follow(view.archives, now)
	for _, o := range r.worker.collect() {
		news := r.agenda.learn(o, now)
		r.announce(ctx, o, news)
	}
	r.sendNotes(view)
}

// steer keeps the worker at what is most urgent. It returns when something else will be due, 0 for unknown.
func (r *NodeReconciler) steer(ctx context.Context, now time.Time) time.Duration {
	log := ctrl.LoggerFrom(ctx)
	for {
		start, stop, wait := r.agenda.next(r.worker.running(now), now)
		switch {
		case stop != nil:
			r.worker.stop(stop.uid)
			log.Info("Stopping an import that is no longer wanted", "archive", stop.owner.Name)
		case start != nil && r.worker.begin(start): //nolint:contextcheck // a job outlives this reconcile
			r.agenda.started(start, now)
			if start.kind == jobImport {
				log.Info("Importing", "archive", start.owner.Name, "generation", start.archive.Generation)
			}
		default:
			return wait
		}
	}
}

// announce tells of a job's end by an Event on the NodeImageState, by metrics and in the log. A failure like the
// one before is no news.
func (r *NodeReconciler) announce(ctx context.Context, o *outcome, news bool) {
	log := ctrl.LoggerFrom(ctx).WithValues("archive", o.job.owner.Name)
	if o.job.kind == jobImport {
		r.worker.metrics.count(o)
	}
	switch {
	case o.stopped:
	case o.err != nil:
		reason, terminal := Classify(o.err)
		text := errorText(o.err)
		log.Info("Failed", "job", o.job.kind.String(), "reason", reason, "terminal", terminal, "error", text)
		if news && o.job.archive != nil {
			r.notes = append(r.notes, note{o.job.archive, corev1.EventTypeWarning, reason, text})
		}
	case o.job.kind == jobImport:
		text := summary(o)
		log.Info("Imported", "summary", text)
		r.notes = append(r.notes, note{o.job.archive, corev1.EventTypeNormal, v1alpha1.ReasonImported, text})
	case o.job.kind == jobCheck && news:
		const text = "images that were complete are missing or damaged"
		log.Info("Lost", "summary", text)
		r.notes = append(r.notes, note{o.job.archive, corev1.EventTypeWarning, v1alpha1.ReasonPending, text})
	}
}

// note is an Event about this node and an archive.
type note struct {
	archive           *v1alpha1.ImageArchive
	typ, reason, text string
}

// sendNotes emits the Events that wait. Only the very first import may end before the NodeImageState is there.
func (r *NodeReconciler) sendNotes(view *nodeView) {
	if view.state == nil {
		return
	}
	for _, n := range r.notes {
		r.Recorder.Eventf(view.state, n.archive, n.typ, n.reason, "Import", "%s", clip(n.archive.Name+": "+n.text))
	}
	r.notes = nil
}

func summary(o *outcome) string {
	b := o.result.Bytes
	size := func(n int64) string {
		if n == 0 {
			return "nothing"
		}
		return displaySize(n)
	}
	return fmt.Sprintf("%s imported in %s: %s read, %s written, %s skipped", count(len(o.result.Images), "image"),
		o.duration.Round(100*time.Millisecond), size(b.Read), size(b.Written), size(b.Skipped))
}

// report writes the node's status if it says something new and it is time for that. It returns when it will be, 0
// for unknown.
func (r *NodeReconciler) report(ctx context.Context, view *nodeView, now time.Time) (time.Duration, error) {
	running := r.worker.running(now)
	var poll time.Duration
	if slices.ContainsFunc(running, func(a activity) bool { return a.kind == jobImport }) {
		poll = progressPoll
	}
	if view.leftover {
		return poll, nil // the garbage collector removes it, and that event brings what is next
	}
	written, wait := r.state.latest(view, now)
	if wait > 0 {
		return wait, nil
	}
	current := r.agenda.status(running, now)
	c := compare(written, current)
	if c == noChange {
		r.pacer.settled()
		return poll, nil
	}
	if wait := r.pacer.wait(c, now, largest(view.archives), r.jitter); wait > 0 {
		return sooner(poll, wait), nil
	}
	if err := r.state.write(ctx, r.Client, view, current, now); err != nil {
		return 0, fmt.Errorf("write status of NodeImageState %s: %w", r.NodeName, err)
	}
	r.pacer.wrote(now)
	return poll, nil
}

// uncounted is how many nodes an archive is taken to select until the roll-up has counted them: enough to wait for
// that up to 2 s.
const uncounted = 2 * clusterWriteRate

// largest is how many nodes the most widely selecting archive selects: about as many agents write as this one does.
func largest(archives []*v1alpha1.ImageArchive) int32 {
	var n int32
	for _, a := range archives {
		selected := int32(uncounted)
		if a.Status.Nodes != nil {
			selected = a.Status.Nodes.Desired
		}
		n = max(n, selected)
	}
	return n
}

// sooner is the smaller of two waits, of which 0 means none.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

var _ Importer = (*importer.Importer)(nil)
