// Package node is what the DaemonSet runs: Reconciler keeps one node as the ImageArchives that select it, and the files in
// its drop-in directory, want it, and reports in the node's NodeImageState.
//
// Only controllers read specs, write status, emit Events and count metrics; the packages below internal are a library.
package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
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

// Reconciler imports the archives that select one node and reports in the node's own NodeImageState. There is
// one request, for the node: whatever happens, the whole is looked at.
type Reconciler struct {
	// Client reads ImageArchives, the node's metadata and its NodeImageState from a cache.
	Client   client.Client
	Importer Importer
	Sources  Sources
	NodeName string
	Metrics  prometheus.Registerer
	// CheckInterval is how often all images are looked at though nothing tells of a change; 0: DefaultCheckInterval.
	CheckInterval time.Duration
	// DropIns says to import what lies in the drop-in directory below Sources.ArchiveDir, also without an API server.
	DropIns bool

	worker  *worker
	watcher *watcher
	dropIns *dropIns      // nil for none
	poked   chan struct{} // wakes alone
	waited  bool          // for the first look at drop-ins

	mu      sync.Mutex
	taken   bool     // the controller works, and alone is over
	told    bool     // the API server has told of its archives
	last    nodeView // what it told of them
	agenda  *agenda  // nil until the first reconcile
	state   writtenState
	notes   []note          // Events that wait for the object that they are about
	sending *eventsv1.Event // one of which the API server has not said that it has it; nil for none
	telling attempt         // at sending them
	size    int32           // of the fleet, 0 for unknown
	pacer   pacer
	outage  attempt // of the API server, as its writes tell
	contact contact // with it
	now     func() time.Time
	jitter  func() float64
}

// DefaultCheckInterval is short beside the days that a node keeps images, and long beside the tenth of a second that it
// takes to go through them. What containerd tells of is noticed at once; a lost blob is not among that.
const DefaultCheckInterval = 10 * time.Minute

// progressPoll is how often the progress of running imports is looked at, to see whether it is worth a write.
const progressPoll = 2 * time.Second

const (
	// apiRetryBase and apiRetryLimit bound the wait after a failed call of the API server. Imports go on meanwhile. With
	// the timeout, what failed is tried again within 15 s of its return; what many agents have to write is spread further,
	// as any write of theirs.
	apiRetryBase  = 500 * time.Millisecond
	apiRetryLimit = 5 * time.Second
	// writeTimeout is how long the API server may take over a write: a connection that leads nowhere any more would hold
	// it up for most of a minute.
	writeTimeout = 10 * time.Second
)

// SetupWithManager adds the reconciler and its worker to a manager.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager) error {
	r.now, r.jitter = time.Now, rand.Float64
	if r.CheckInterval == 0 {
		r.CheckInterval = DefaultCheckInterval
	}
	r.worker = &worker{importer: r.Importer, open: r.Sources.Open, changed: r.Sources.Changed, metrics: newMetrics(r.Metrics)}
	r.watcher = &watcher{importer: r.Importer, jitter: r.jitter}
	if err := errors.Join(mgr.Add(r.worker), mgr.Add(r.watcher), r.addDropIns(mgr)); err != nil {
		return fmt.Errorf("add worker and watcher: %w", err)
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
			r.onWake(func() { q.Add(request); r.poke() })
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

// archiveChanged leaves out what the roll-up writes: else each of its writes would wake every agent's reconciler. Only its
// first, which counts the nodes, tells how long reports have to wait.
var archiveChanged = predicate.Or(predicate.GenerationChangedPredicate{}, recreated, predicate.Funcs{
	UpdateFunc: func(e event.UpdateEvent) bool {
		const key = v1alpha1.AnnotationReconcileRequestedAt
		return e.ObjectOld.GetAnnotations()[key] != e.ObjectNew.GetAnnotations()[key] || counted(e.ObjectNew) && !counted(e.ObjectOld)
	},
})

func counted(o client.Object) bool {
	a, ok := o.(*v1alpha1.ImageArchive)
	return ok && a.Status.Nodes != nil
}

// nodeChanged leaves out what the kubelet writes all the time.
var nodeChanged = predicate.Or(predicate.LabelChangedPredicate{}, recreated)

// recreated is for objects that were deleted and created again while a watch was down: that arrives as one update.
var recreated = predicate.Funcs{
	UpdateFunc: func(e event.UpdateEvent) bool { return e.ObjectOld.GetUID() != e.ObjectNew.GetUID() },
}

// Reconcile looks at all archives of the node: it takes in what has changed, gives the worker its next jobs, and
// reports.
func (r *Reconciler) Reconcile(ctx context.Context, _ ctrl.Request) (ctrl.Result, error) {
	r.awaitDropIns(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.poke()
	view, err := r.look(ctx)
	r.taken = r.taken || err == nil
	if view.blind = view.node == nil; err != nil || view.blind && r.dropIns == nil {
		return ctrl.Result{}, err
	}
	now := r.now()
	r.takeIn(ctx, view, now)
	wait := r.steer(ctx, now)
	if view.blind {
		return ctrl.Result{RequeueAfter: wait}, nil
	}
	return ctrl.Result{RequeueAfter: sooner(wait, r.report(ctx, view, now))}, nil
}

// nodeView is what the API server says that concerns one node.
type nodeView struct {
	node     *metav1.PartialObjectMetadata // nil: not there
	state    *v1alpha1.NodeImageState      // nil: not there
	leftover bool                          // the state that is there belongs to an earlier Node of the name
	archives []*v1alpha1.ImageArchive      // those that select the node
	unclear  []importer.Owner              // those whose selector nobody can read
	blind    bool                          // it says nothing: it is away, or has no such Node
}

// look reads from the cache. An archive whose selector cannot be read selects no node, and its status says so; what it
// has brought to nodes stays. What it returns is the cache's own, and only for reading.
func (r *Reconciler) look(ctx context.Context) (*nodeView, error) {
	view := &nodeView{}
	key := client.ObjectKey{Name: r.NodeName}
	node := nodeMetadata()
	if err := r.Client.Get(ctx, key, node); err != nil {
		return view, client.IgnoreNotFound(err)
	}
	view.node = node
	state := &v1alpha1.NodeImageState{}
	switch err := r.Client.Get(ctx, key, state, client.UnsafeDisableDeepCopy); {
	case err == nil && state.BelongsTo(node):
		view.state = state
	case err == nil:
		view.leftover = true
	case client.IgnoreNotFound(err) != nil:
		return view, err
	}
	var list v1alpha1.ImageArchiveList
	if err := r.Client.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return view, err
	}
	for i := range list.Items {
		a := &list.Items[i]
		selector, err := a.Selector()
		switch {
		case !a.DeletionTimestamp.IsZero():
		case err != nil:
			view.unclear = append(view.unclear, ownerOf(a))
		case selector.Matches(labels.Set(node.Labels)):
			view.archives = append(view.archives, a)
		}
	}
	return view, nil
}

// takeIn updates what is known by what has been seen and by what the worker has done.
func (r *Reconciler) takeIn(ctx context.Context, view *nodeView, now time.Time) {
	if r.agenda == nil {
		r.agenda = newAgenda(r.jitter)
		r.agenda.checkInterval = r.CheckInterval
	}
	if !view.blind {
		if !r.told && view.state != nil {
			r.agenda.restore(&view.state.Status)
		}
		r.told, r.last = true, *view
		r.contact.see(view.state, now)
	}
	r.followAll(now)
	r.agenda.silence = now.Sub(r.contact.at)
	r.agenda.admit(r.contact.admitted)
	r.agenda.disturb(r.watcher.collect(), now)
	for _, o := range r.worker.collect() {
		news := r.agenda.learn(o, now)
		r.announce(ctx, o, news)
	}
}

// steer keeps the worker at what is most urgent. It returns when something else will be due, 0 for unknown.
func (r *Reconciler) steer(ctx context.Context, now time.Time) time.Duration {
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

// sooner is the smaller of two waits, of which 0 means none.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

var _ Importer = (*importer.Importer)(nil)
