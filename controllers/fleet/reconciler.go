// Package fleet is what the Deployment runs: Reconciler aggregates all NodeImageStates in the status of ImageArchives, and
// admits nodes to imports as rollouts allow.
package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/object"
)

const (
	// aggregateRate bounds what aggregating costs, some 2 µs a node, to a twentieth of a core: an archive is looked at
	// again only after (nodes * archives / aggregateRate) seconds, or aggregateLimit.
	aggregateRate  = 20000
	aggregateLimit = 2 * time.Second
)

// Reconciler aggregates NodeImageStates and Nodes in the status of ImageArchives, and admits nodes as rollouts allow. Only one
// may run at a time.
type Reconciler struct {
	// Client reads from a cache: ImageArchives, NodeImageStates and the metadata of Nodes.
	Client   client.Client
	Recorder events.EventRecorder
	// Metrics is where to register; nil: nowhere.
	Metrics prometheus.Registerer

	admissions *admissions
	archives   map[string]*archiveMemory // by name
	nextWrite  time.Time                 // before which counts of no archive are written
	metrics    *metrics
	now        func() time.Time
}

// archiveMemory is what this process remembers of one archive.
type archiveMemory struct {
	uid        types.UID
	generation int64
	rollout    rollout
	warned     sets.Set[string] // reasons of Events that were sent about this generation

	next    time.Time              // before which it is not looked at again
	written *v1alpha1.ImageArchive // by this process; the cache shows it a little later
	when    time.Time              // of that write
	due     time.Time              // of the next one; zero: the status is as it should be
}

// remember returns what is remembered of this generation of an archive.
func (r *Reconciler) remember(a *v1alpha1.ImageArchive) *archiveMemory {
	m := r.archives[a.Name]
	if m == nil || m.uid != a.UID {
		m = &archiveMemory{uid: a.UID}
		r.archives[a.Name] = m
	}
	if m.generation != a.Generation {
		m.generation, m.warned = a.Generation, sets.Set[string]{}
		m.rollout.failures, m.rollout.requested = nil, a.Annotations[v1alpha1.AnnotationReconcileRequestedAt]
	}
	return m
}

// SetupWithManager adds the reconciler to a manager.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager) error {
	r.setup(mgr.GetAPIReader(), time.Now)
	if err := (&orphanReconciler{cached: r.Client, live: mgr.GetAPIReader()}).setup(mgr); err != nil {
		return err
	}
	err := ctrl.NewControllerManagedBy(mgr).
		Named("imagearchive").
		For(&v1alpha1.ImageArchive{}).
		Watches(&v1alpha1.NodeImageState{}, handler.EnqueueRequestsFromMapFunc(r.archivesOf)).
		WatchesMetadata(&corev1.Node{}, handler.EnqueueRequestsFromMapFunc(r.allArchives),
			builder.WithPredicates(object.NodeChanged)).
		WithOptions(controller.Options{
			MaxConcurrentReconciles: 1, // rates and slots are shared
			RateLimiter:             object.RateLimiter(),
		}).
		Complete(r)
	if err != nil {
		return fmt.Errorf("set up the archive controller: %w", err)
	}
	return nil
}

func (r *Reconciler) setup(live client.Reader, now func() time.Time) {
	r.now, r.metrics, r.archives = now, newMetrics(r.Metrics), map[string]*archiveMemory{}
	r.admissions = newAdmissions(live, r.Client, now)
}

// archivesOf are the ImageArchives that a NodeImageState reports on. Names of others cost nothing, unless the node is
// admitted to them: such an admission has to go.
func (r *Reconciler) archivesOf(ctx context.Context, o client.Object) []ctrl.Request {
	state, ok := o.(*v1alpha1.NodeImageState)
	if !ok {
		return nil
	}
	var requests []ctrl.Request
	for i := range state.Spec.Admitted {
		requests = append(requests, ctrl.Request{NamespacedName: types.NamespacedName{Name: state.Spec.Admitted[i].Archive}})
	}
	for i := range state.Status.Archives {
		e, a := &state.Status.Archives[i], v1alpha1.ImageArchive{}
		name := types.NamespacedName{Name: e.Name}
		// One that the cache does not show yet brings its own event.
		if err := r.Client.Get(ctx, name, &a, client.UnsafeDisableDeepCopy); err == nil && a.UID == e.UID {
			requests = append(requests, ctrl.Request{NamespacedName: name})
		}
	}
	return requests
}

func (r *Reconciler) allArchives(ctx context.Context, _ client.Object) []ctrl.Request {
	var list v1alpha1.ImageArchiveList
	if err := r.Client.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return nil // the cache has none yet: each archive has an event of its own
	}
	requests := make([]ctrl.Request, len(list.Items))
	for i := range list.Items {
		requests[i].Name = list.Items[i].Name
	}
	return requests
}

// Reconcile admits nodes to an archive and aggregates its status.
func (r *Reconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	if m := r.archives[req.Name]; m != nil && m.next.After(r.now()) {
		return ctrl.Result{RequeueAfter: m.next.Sub(r.now())}, nil
	}
	var archive v1alpha1.ImageArchive
	err := r.Client.Get(ctx, req.NamespacedName, &archive)
	if apierrors.IsNotFound(err) {
		return r.forget(ctx, req.Name)
	}
	if err != nil {
		return ctrl.Result{}, err
	}
	m := r.remember(&archive)
	if m.written != nil && object.Newer(m.written.ResourceVersion, archive.ResourceVersion) {
		m.written.DeepCopyInto(&archive)
		m = r.remember(&archive)
	}
	if archive.Spec.Rollout != nil {
		if err := r.admissions.list(ctx); err != nil {
			return ctrl.Result{}, err
		}
	}
	s, err := r.snapshot(ctx)
	if err != nil {
		return ctrl.Result{}, err
	}
	m.next = r.now().Add(min(time.Duration(len(s.nodes)*len(r.archives))*time.Second/aggregateRate, aggregateLimit))
	nodes, invalid := s.selected(&archive)
	wait, failed := time.Duration(0), error(nil)
	if invalid == nil {
		wait, failed = r.rollOut(ctx, &archive, s, nodes, &m.rollout)
	}
	status := aggregate(&archive, nodes, invalid, &m.rollout, r.now())
	r.metrics.set(&archive, status)
	later, err := r.writeStatus(ctx, &archive, status, m, len(s.nodes))
	return after(sooner(wait, later), errors.Join(failed, err))
}

// after asks for another reconcile, after an error as soon as the rate limiter allows it: only one of the two counts.
func after(wait time.Duration, err error) (ctrl.Result, error) {
	if err != nil {
		return ctrl.Result{}, err
	}
	return ctrl.Result{RequeueAfter: wait}, nil
}

// forget removes what there is of an archive that is gone.
func (r *Reconciler) forget(ctx context.Context, name string) (ctrl.Result, error) {
	delete(r.archives, name)
	r.metrics.forget(name)
	s, err := r.snapshot(ctx)
	if err != nil {
		return ctrl.Result{}, err
	}
	gone := &v1alpha1.ImageArchive{}
	gone.Name = name
	return after(r.rollOut(ctx, gone, s, nil, &rollout{}))
}

// snapshot lists from the cache without copying, which for thousands of nodes would cost more than aggregating.
func (r *Reconciler) snapshot(ctx context.Context) (*snapshot, error) {
	var nodes metav1.PartialObjectMetadataList
	nodes.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("NodeList"))
	if err := r.Client.List(ctx, &nodes, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	var list v1alpha1.NodeImageStateList
	if err := r.Client.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list NodeImageStates: %w", err)
	}
	states := make(map[string]*v1alpha1.NodeImageState, len(list.Items))
	for i := range list.Items {
		states[list.Items[i].Name] = &list.Items[i]
	}
	r.admissions.overlay(states)
	return &snapshot{nodes.Items, states}, nil
}
