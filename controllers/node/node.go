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

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
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
	"github.com/tarlift/tarlift/controllers/object"
	"github.com/tarlift/tarlift/internal/importer"
)

// Reconciler brings the archives that select one node onto it. There is one request for each ImageArchive, and the empty one
// for what belongs to ImageArchives that are gone.
type Reconciler struct {
	// Client reads ImageArchives, the node's metadata and its NodeImageState from a cache.
	Client   client.Client
	Importer Importer
	Sources  Sources
	NodeName string
	// Version of the agent, as reported.
	Version string
	Metrics prometheus.Registerer
	// CheckInterval is how often all images are checked though nothing tells of a change; 0: DefaultCheckInterval.
	CheckInterval time.Duration
	// ReleaseDelay is how long images stay when the node's labels changed, or its Node is gone; 0: DefaultReleaseDelay.
	ReleaseDelay time.Duration
	// DropIns says to import what lies in the drop-in directory below Sources.ArchiveDir, also without an API server.
	DropIns bool

	syncer  *syncer
	reports *reporter
	sweeper sweeper

	mu         sync.Mutex
	queue      workqueue.TypedRateLimitingInterface[ctrl.Request] // nil until the controller runs
	unselected map[string]unselected                              // ImageArchives that lately selected this node, by name
	selectors  map[string]string                                  // by which they did
	restored   map[string]*v1alpha1.ArchiveState                  // what an earlier process reported, by name; nil: not read yet
}

// unselected is an ImageArchive that does not select the node any more, but whose images stay for a while.
type unselected struct {
	owner importer.Owner
	until time.Time
}

const (
	// DefaultCheckInterval is short beside the days that a node keeps images, and long beside the tenth of a second that it
	// takes to go through them. What containerd tells of is noticed at once; a lost blob is not among that.
	DefaultCheckInterval = 10 * time.Minute
	// DefaultReleaseDelay is long beside the seconds for which a Node that is deleted and registers again lacks its labels.
	DefaultReleaseDelay = 5 * time.Minute
)

// maxConcurrentReconciles keeps one archive whose containerd calls hang from holding up all others.
const maxConcurrentReconciles = 2

// sweepRequest asks for what belongs to ImageArchives that are gone.
var sweepRequest = ctrl.Request{}

// SetupWithManager adds the reconciler, its pool and its reporter to a manager.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager) error {
	if r.CheckInterval == 0 {
		r.CheckInterval = DefaultCheckInterval
	}
	if r.ReleaseDelay == 0 {
		r.ReleaseDelay = DefaultReleaseDelay
	}
	r.unselected, r.selectors = map[string]unselected{}, map[string]string{}
	r.sweeper = sweeper{interval: r.CheckInterval, now: time.Now, jitter: rand.Float64}
	log := mgr.GetLogger().WithValues("node", r.NodeName)
	events := &events{client: r.Client, node: r.NodeName}
	r.syncer = &syncer{
		importer: r.Importer, resolve: r.Sources.Resolve, metrics: newMetrics(r.Metrics), events: events, interval: r.CheckInterval,
		now: time.Now, jitter: rand.Float64, log: log, wake: r.wake, states: map[string]*archiveState{},
	}
	r.reports = &reporter{client: r.Client, node: r.NodeName, version: r.Version, syncer: r.syncer, events: events,
		log: log, started: time.Now(), now: time.Now, jitter: rand.Float64}
	r.syncer.changed = r.reports.wake
	runnables := []error{
		mgr.Add(&r.syncer.pool), mgr.Add(&watcher{importer: r.Importer, changed: r.syncer.invalidate, jitter: rand.Float64, log: log}),
		r.reports.setup(mgr),
	}
	if r.DropIns {
		runnables = append(runnables, mgr.Add(newDropIns(r.Sources.ArchiveDir, r.syncer, r.CheckInterval, log)))
	}
	if err := errors.Join(runnables...); err != nil {
		return fmt.Errorf("add the parts of the node controller: %w", err)
	}
	all := handler.EnqueueRequestsFromMapFunc(r.allArchives)
	err := ctrl.NewControllerManagedBy(mgr).
		Named("node").
		Watches(&v1alpha1.ImageArchive{}, &handler.EnqueueRequestForObject{}, builder.WithPredicates(archiveChanged)).
		Watches(&v1alpha1.NodeImageState{}, all, builder.WithPredicates(predicate.Or(predicate.GenerationChangedPredicate{}, object.Recreated))).
		WatchesMetadata(&corev1.Node{}, all, builder.WithPredicates(object.NodeChanged)).
		WatchesRawSource(ctrlsource.Func(func(_ context.Context, q workqueue.TypedRateLimitingInterface[ctrl.Request]) error {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.queue = q
			q.Add(sweepRequest)
			return nil
		})).
		WithOptions(controller.Options{
			MaxConcurrentReconciles: maxConcurrentReconciles,
			RateLimiter:             object.RateLimiter(),
			LogConstructor:          logAs(log),
		}).
		Complete(r)
	if err != nil {
		return fmt.Errorf("set up the node controller: %w", err)
	}
	return nil
}

// logAs makes a controller log without the empty fields of its requests.
func logAs(log logr.Logger) func(*ctrl.Request) logr.Logger {
	return func(*ctrl.Request) logr.Logger { return log }
}

// archiveChanged leaves out what the controller writes to the status: else each of its writes would wake every agent.
var archiveChanged = predicate.Or(predicate.GenerationChangedPredicate{}, object.Recreated, predicate.Funcs{
	UpdateFunc: func(e event.UpdateEvent) bool {
		const key = v1alpha1.AnnotationReconcileRequestedAt
		return e.ObjectOld.GetAnnotations()[key] != e.ObjectNew.GetAnnotations()[key] ||
			e.ObjectOld.GetDeletionTimestamp().IsZero() != e.ObjectNew.GetDeletionTimestamp().IsZero()
	},
})

// wake queues the request for an ImageArchive. Files are looked at all the time.
func (r *Reconciler) wake(name string) {
	if !v1alpha1.IsDropIn(name) {
		r.enqueue(ctrl.Request{NamespacedName: client.ObjectKey{Name: name}})
	}
}

func (r *Reconciler) enqueue(request ctrl.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.queue != nil {
		r.queue.Add(request)
	}
}

func (r *Reconciler) allArchives(ctx context.Context, _ client.Object) []ctrl.Request {
	var list v1alpha1.ImageArchiveList
	if err := r.Client.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return nil // not filled yet: each archive has its own event
	}
	requests := make([]ctrl.Request, len(list.Items))
	for i := range list.Items {
		requests[i].Name = list.Items[i].Name
	}
	return requests
}

// Reconcile does what is to be done about one ImageArchive.
func (r *Reconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	if req == sweepRequest {
		wait, err := r.sweep(ctx)
		return ctrl.Result{RequeueAfter: wait}, err
	}
	node, err := readNode(ctx, r.Client, r.NodeName)
	if err != nil {
		return ctrl.Result{}, err
	}
	state, err := readState(ctx, r.Client, node)
	if err != nil {
		return ctrl.Result{}, err
	}
	archive := &v1alpha1.ImageArchive{}
	err = r.Client.Get(ctx, req.NamespacedName, archive)
	switch {
	case client.IgnoreNotFound(err) != nil:
		return ctrl.Result{}, err
	case err != nil || !archive.DeletionTimestamp.IsZero():
		if r.release(req.Name) {
			r.mu.Lock()
			delete(r.unselected, req.Name)
			delete(r.selectors, req.Name)
			r.mu.Unlock()
		}
		return ctrl.Result{}, nil
	}
	selects, until := r.selects(archive, node)
	switch {
	case selects:
		w := wantOf(archive, state.Spec.Admitted)
		before, found := r.syncer.known(req.Name)
		if found && before.uid != w.uid { // another object of the name
			if !r.syncer.remove(req.Name) {
				return ctrl.Result{}, nil
			}
			r.enqueue(sweepRequest)
		}
		wait := r.syncer.sync(ctx, w, r.restore(state, w))
		if found && before.request.Owner.Deletion != w.request.Owner.Deletion {
			r.enqueue(sweepRequest) // which records the policy
		}
		return ctrl.Result{RequeueAfter: wait}, nil
	case !until.IsZero() && until.After(r.syncer.now()):
		r.syncer.remove(req.Name)
		return ctrl.Result{RequeueAfter: until.Sub(r.syncer.now())}, nil
	}
	r.release(req.Name)
	return ctrl.Result{}, nil
}

// release forgets an archive that is gone or selects other nodes, and lets its images go. It is false while a job of it has
// not ended: its end asks again.
func (r *Reconciler) release(name string) bool {
	if !r.syncer.remove(name) {
		return false
	}
	r.enqueue(sweepRequest)
	return true
}

// selects says whether an archive selects the node. Where it does not any more, though its spec is the same, or this process
// never saw it do so, its images stay until a time: a Node that is deleted and registers again lacks its labels for seconds.
// With a selector that cannot be read they stay for as long.
func (r *Reconciler) selects(a *v1alpha1.ImageArchive, node *metav1.PartialObjectMetadata) (selects bool, until time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	selector, err := a.Selector()
	if err == nil && node != nil && selector.Matches(labels.Set(node.Labels)) {
		delete(r.unselected, a.Name)
		r.selectors[a.Name] = selectorText(a)
		return true, time.Time{}
	}
	now := r.syncer.now()
	if err != nil {
		r.unselected[a.Name] = unselected{ownerOf(a), now.Add(r.ReleaseDelay)}
		return false, now.Add(r.ReleaseDelay)
	}
	if last, known := r.selectors[a.Name]; known && last != selectorText(a) && node != nil {
		delete(r.unselected, a.Name)
		return false, time.Time{}
	}
	u, known := r.unselected[a.Name]
	if !known {
		u.until = now.Add(r.ReleaseDelay)
	}
	u.owner = ownerOf(a)
	r.unselected[a.Name] = u
	return false, u.until
}

// restore is what an earlier process of this agent reported of an archive, nil for nothing.
func (r *Reconciler) restore(state *v1alpha1.NodeImageState, w *want) *v1alpha1.ArchiveState {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.restored == nil {
		r.restored = map[string]*v1alpha1.ArchiveState{}
		for i := range state.Status.Archives {
			e := state.Status.Archives[i].DeepCopy()
			r.restored[e.Name] = e
		}
	}
	e := r.restored[w.name]
	delete(r.restored, w.name)
	if e == nil || e.UID != w.uid {
		return nil
	}
	return e
}

// readNode reads a Node's metadata from the cache, nil where there is none.
func readNode(ctx context.Context, c client.Reader, name string) (*metav1.PartialObjectMetadata, error) {
	node := object.NodeMetadata()
	if err := c.Get(ctx, client.ObjectKey{Name: name}, node); err != nil {
		return nil, client.IgnoreNotFound(err)
	}
	return node, nil
}

// readState reads a Node's NodeImageState from the cache. It is empty where there is none, or one of an earlier Node of the name.
func readState(ctx context.Context, c client.Reader, node *metav1.PartialObjectMetadata) (*v1alpha1.NodeImageState, error) {
	state := &v1alpha1.NodeImageState{}
	if node == nil {
		return state, nil
	}
	err := c.Get(ctx, client.ObjectKey{Name: node.Name}, state)
	if err == nil && !state.BelongsTo(node) {
		return &v1alpha1.NodeImageState{}, nil
	}
	return state, client.IgnoreNotFound(err)
}
