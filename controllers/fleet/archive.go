// Package fleet is what the Deployment runs: Reconciler aggregates all NodeImageStates in the status of ImageArchives, and
// admits nodes to imports as rollouts allow.
package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	"github.com/tarlift/tarlift/api/v1alpha1"
	v1alpha1ac "github.com/tarlift/tarlift/api/v1alpha1/applyconfiguration/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
)

const (
	controllerFieldOwner = client.FieldOwner("tarlift-controller")
	// apiRetryBase and apiRetryLimit bound the wait after a failed call of the API server.
	apiRetryBase  = 500 * time.Millisecond
	apiRetryLimit = 5 * time.Second
	// stalledInterval is after how long what stalls is tried again.
	stalledInterval = 10 * time.Minute
	// rollUpInterval is the least time between two writes of an archive's status that only move counts.
	rollUpInterval = 10 * time.Second
	// rollUpRate bounds what such writes cost: each reaches every agent, so with more nodes they may be made less
	// often, once in (nodes / rollUpRate) seconds.
	rollUpRate = 100
	// rollUpsRate is the same for all archives whose counts move at the same time, up to rollUpLimit: later than that, counts
	// would tell nobody anything.
	rollUpsRate = 500
	rollUpLimit = 5 * time.Minute
)

const (
	// sumRate is over how many nodes a second archives whose counts move are summed up, which takes some 2 µs a node: one
	// archive of 5,000 nodes four times a second at most, each of twenty every five seconds.
	sumRate = 20000
	// sumLimit bounds that for the archives of which somebody waits to see that they are Ready, and rolloutSumLimit for
	// those that let nodes in, a batch at a time.
	sumLimit        = 5 * time.Second
	rolloutSumLimit = time.Second
)

// Reconciler sums up NodeImageStates and Nodes in the status of ImageArchives, and lets nodes in as rollouts
// allow. Only one may run at a time.
type Reconciler struct {
	// Client reads from a cache: ImageArchives, NodeImageStates and the metadata of Nodes.
	Client   client.Client
	Recorder events.EventRecorder
	// Metrics is where to register; nil: nowhere.
	Metrics prometheus.Registerer

	admissions *admissions
	archives   map[string]*knownArchive // by name
	metrics    *fleetMetrics
	now        func() time.Time
}

// knownArchive is what this process remembers of one archive.
type knownArchive struct {
	rollout rollout
	written writtenStatus
	summed  time.Time // since when it may be summed up again
	moves   bool      // it has counts that have not been written yet
}

// known makes a new one for an archive that is seen for the first time.
func (r *Reconciler) known(name string) *knownArchive {
	k := r.archives[name]
	if k == nil {
		k = &knownArchive{}
		r.archives[name] = k
	}
	return k
}

// moving is how many archives have counts that have not been written yet.
func (r *Reconciler) moving() int {
	n := 0
	for _, k := range r.archives {
		if k.moves {
			n++
		}
	}
	return n
}

// writtenStatus is the last write of one archive's status by this process, which the cache shows a little later.
type writtenStatus struct {
	uid             types.UID
	resourceVersion string
	status          *v1alpha1.ImageArchiveStatus
	when            time.Time
}

// SetupWithManager adds the reconciler to a manager.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager) error {
	r.now, r.metrics, r.archives = time.Now, newFleetMetrics(r.Metrics), map[string]*knownArchive{}
	conf := rest.CopyConfig(mgr.GetConfig())
	conf.Timeout = admissionWriteTimeout // which the API server is told, too
	writer, err := client.New(conf, client.Options{Scheme: mgr.GetScheme(), Mapper: mgr.GetRESTMapper()})
	if err != nil {
		return fmt.Errorf("create client for admissions: %w", err)
	}
	r.admissions = newAdmissions(mgr.GetAPIReader(), writer, r.now)
	if err := (&strayReconciler{cached: r.Client, live: mgr.GetAPIReader(), forget: r.admissions.forget}).setup(mgr); err != nil {
		return err
	}
	err = ctrl.NewControllerManagedBy(mgr).
		Named("imagearchive").
		For(&v1alpha1.ImageArchive{}).
		Watches(&v1alpha1.NodeImageState{}, listedArchives).
		WatchesMetadata(&corev1.Node{}, handler.EnqueueRequestsFromMapFunc(r.allArchives),
			builder.WithPredicates(nodeChanged)).
		WithOptions(controller.Options{
			MaxConcurrentReconciles: 1, // what is decided for one archive, the next look at it has to know
			RateLimiter:             workqueue.NewTypedItemExponentialFailureRateLimiter[ctrl.Request](apiRetryBase, apiRetryLimit),
		}).
		Complete(r)
	if err != nil {
		return fmt.Errorf("set up the archive controller: %w", err)
	}
	return nil
}

// listedArchives maps a NodeImageState to the archives to whose sums it adds something else than before.
var listedArchives = handler.Funcs{
	CreateFunc: func(_ context.Context, e event.CreateEvent, q workqueue.TypedRateLimitingInterface[ctrl.Request]) {
		enqueueChanged(q, nil, e.Object)
	},
	UpdateFunc: func(_ context.Context, e event.UpdateEvent, q workqueue.TypedRateLimitingInterface[ctrl.Request]) {
		enqueueChanged(q, e.ObjectOld, e.ObjectNew)
	},
	DeleteFunc: func(_ context.Context, e event.DeleteEvent, q workqueue.TypedRateLimitingInterface[ctrl.Request]) {
		enqueueChanged(q, e.Object, nil)
	},
}

func enqueueChanged(q workqueue.TypedRateLimitingInterface[ctrl.Request], before, after client.Object) {
	was, is := sharesIn(before), sharesIn(after)
	for name, e := range is {
		if w, ok := was[name]; !ok || w != e {
			q.Add(ctrl.Request{NamespacedName: types.NamespacedName{Name: name}})
		}
		delete(was, name)
	}
	for name := range was {
		q.Add(ctrl.Request{NamespacedName: types.NamespacedName{Name: name}})
	}
}

// archiveShare is all that a NodeImageState says about an archive that is counted.
type archiveShare struct {
	node, archive types.UID
	generation    int64
	share         share
	admission     v1alpha1.Admission
	stalled       int64 // since when: with a rollout, that another attempt failed as the one before is seen by this alone
	waits         bool  // to be let in
}

// sharesIn also has archives that are gone, but for which a node is still admitted.
func sharesIn(o client.Object) map[string]archiveShare {
	m := map[string]archiveShare{}
	state, ok := o.(*v1alpha1.NodeImageState)
	if !ok {
		return m
	}
	node := state.OwningNode()
	for i := range state.Status.Archives {
		e := &state.Status.Archives[i]
		if v1alpha1.IsDropIn(e.Name) {
			continue
		}
		m[e.Name] = archiveShare{
			node: node, archive: e.UID, generation: e.ObservedGeneration, share: shareOf(e), stalled: stalledSince(e).Unix(), waits: waits(e),
		}
	}
	for _, x := range state.Spec.Admitted {
		s := m[x.Archive]
		s.node, s.admission = node, x
		m[x.Archive] = s
	}
	return m
}

func (r *Reconciler) allArchives(ctx context.Context, _ client.Object) []ctrl.Request {
	var list v1alpha1.ImageArchiveList
	err := r.Client.List(ctx, &list, client.UnsafeDisableDeepCopy)
	if notYet := new(cache.ErrResourceNotCached); errors.As(err, &notYet) {
		return nil // at the start: archives bring their own events
	}
	if err != nil {
		ctrl.LoggerFrom(ctx).Error(err, "List ImageArchives")
		return nil
	}
	requests := make([]ctrl.Request, len(list.Items))
	for i := range list.Items {
		requests[i].Name = list.Items[i].Name
	}
	return requests
}

// Reconcile lets nodes in and sums up, for one archive.
func (r *Reconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	now, known := r.now(), r.known(req.Name)
	if wait := known.summed.Sub(now); wait > 0 {
		return ctrl.Result{RequeueAfter: wait}, nil
	}
	var archive v1alpha1.ImageArchive
	err := r.Client.Get(ctx, req.NamespacedName, &archive)
	if apierrors.IsNotFound(err) {
		return r.cleanUp(ctx, req.Name)
	}
	if err != nil {
		return ctrl.Result{}, err
	}
	f, err := r.look(ctx)
	if err != nil {
		return ctrl.Result{}, err
	}
	known.summed = now.Add(sumWait(&archive, len(f.nodes), r.moving()))
	last := known.written.latest(&archive)
	stand, wait, failed := r.rollOut(ctx, &archive, f, now)
	status := rollUp(&archive, f.nodes, f.states, stand, now)
	r.metrics.set(&archive, status)
	if known.moves = !equality.Semantic.DeepEqual(&archive.Status, status); !known.moves {
		return after(wait, failed)
	}
	if later := rollUpWait(&archive.Status, status, len(f.nodes), r.moving(), now.Sub(last)); later > 0 {
		return after(sooner(wait, min(later, rollUpInterval)), failed) // less, once others do not move any more
	}
	return after(wait, errors.Join(failed, r.write(ctx, &archive, status, now)))
}

// after asks for another reconcile, after an error as soon as the rate limiter lets it: only one of the two counts.
func after(wait time.Duration, err error) (ctrl.Result, error) {
	if err != nil {
		return ctrl.Result{}, err
	}
	return ctrl.Result{RequeueAfter: wait}, nil
}

// cleanUp forgets an archive that is gone.
func (r *Reconciler) cleanUp(ctx context.Context, name string) (ctrl.Result, error) {
	delete(r.archives, name)
	r.metrics.forget(name)
	f, err := r.look(ctx)
	if err != nil {
		return ctrl.Result{}, err
	}
	gone := &v1alpha1.ImageArchive{}
	gone.Name = name
	_, wait, err := r.rollOut(ctx, gone, f, r.now())
	delete(r.archives, name)
	return after(wait, err)
}

// latest puts the status that was written last into an archive for which the cache shows an older one. It returns
// the time of that write.
func (w *writtenStatus) latest(archive *v1alpha1.ImageArchive) time.Time {
	if w.uid != archive.UID {
		return time.Time{}
	}
	if !newer(archive.ResourceVersion, w.resourceVersion) {
		archive.Status = *w.status.DeepCopy()
	}
	return w.when
}

// fleet is all nodes, and what they report, by name.
type fleet struct {
	nodes  []metav1.PartialObjectMetadata
	states map[string]*v1alpha1.NodeImageState
}

// look lists from the cache without copying, which for thousands of nodes would cost more than the counting.
func (r *Reconciler) look(ctx context.Context) (*fleet, error) {
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
	return &fleet{nodes.Items, states}, nil
}

// sumWait is how long an archive is not summed up again when there are this many nodes and the counts of this many archives
// move.
func sumWait(a *v1alpha1.ImageArchive, nodes, moving int) time.Duration {
	limit := sumLimit
	if a.Spec.Rollout != nil {
		limit = rolloutSumLimit
	}
	return min(time.Duration(nodes*max(1, moving))*time.Second/sumRate, limit)
}

// rollUpWait is how long a write has to wait when the last one was made since ago, there are this many nodes, and the counts
// of this many archives move; 0 for not at all. A change of Ready or Stalled, or another generation, does not wait.
func rollUpWait(before, after *v1alpha1.ImageArchiveStatus, nodes, moving int, since time.Duration) time.Duration {
	for _, typ := range []string{v1alpha1.ConditionReady, v1alpha1.ConditionStalled} {
		if condition.IsTrue(before.Conditions, typ) != condition.IsTrue(after.Conditions, typ) {
			return 0
		}
	}
	if before.ObservedGeneration != after.ObservedGeneration {
		return 0
	}
	own := time.Duration(after.Nodes.Desired) * time.Second / rollUpRate
	shared := time.Duration(nodes*moving) * time.Second / rollUpsRate // whomever they select, each agent sees them all
	interval := max(rollUpInterval, own, min(shared, rollUpLimit))
	return max(0, interval-since)
}

func (r *Reconciler) write(
	ctx context.Context, archive *v1alpha1.ImageArchive, status *v1alpha1.ImageArchiveStatus, now time.Time,
) error {
	// The UID keeps the write from creating a status for a later archive of the same name.
	object := v1alpha1ac.ImageArchive(archive.Name).WithUID(archive.UID).WithStatus(v1alpha1ac.ImageArchiveStatus())
	if err := convert(status, object.Status); err != nil {
		return err
	}
	err := r.Client.Status().Apply(ctx, object, controllerFieldOwner, client.ForceOwnership)
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // deleted meanwhile: its event brings what is next
	}
	if err != nil {
		return fmt.Errorf("write status of ImageArchive %s: %w", archive.Name, err)
	}
	r.known(archive.Name).written = writtenStatus{archive.UID, ptr.Deref(object.ResourceVersion, ""), status, now}
	r.announce(archive, status)
	return nil
}

// announce tells by an Event that an archive has become ready, or stalls.
func (r *Reconciler) announce(archive *v1alpha1.ImageArchive, status *v1alpha1.ImageArchiveStatus) {
	became := func(typ string) bool {
		return condition.IsTrue(status.Conditions, typ) && !condition.IsTrue(archive.Status.Conditions, typ)
	}
	ready := condition.Find(status.Conditions, v1alpha1.ConditionReady)
	switch {
	case became(v1alpha1.ConditionReady):
		note := fmt.Sprintf("%s: %s", condition.Count(int(status.ImageCount), "image"), ready.Message)
		if a := status.Artifact; a != nil && a.Size > 0 {
			note += ", from an archive of " + a.DisplaySize
		}
		r.Recorder.Eventf(archive, nil, corev1.EventTypeNormal, ready.Reason, "RollUp", "%s", note)
	case became(v1alpha1.ConditionStalled):
		r.Recorder.Eventf(archive, nil, corev1.EventTypeWarning, ready.Reason, "RollUp", "%s", condition.Clip(ready.Message))
	}
}

// nodeChanged leaves out what the kubelet writes all the time.
var nodeChanged = predicate.Or(predicate.LabelChangedPredicate{}, recreated)

// recreated is for objects that were deleted and created again while a watch was down: that arrives as one update.
var recreated = predicate.Funcs{
	UpdateFunc: func(e event.UpdateEvent) bool { return e.ObjectOld.GetUID() != e.ObjectNew.GetUID() },
}

// sooner is the smaller of two waits, of which 0 means none.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// convert makes an apply configuration of a part of an object, or that of it: both have the same JSON.
func convert(from, to any) error {
	b, err := json.Marshal(from)
	if err != nil {
		return fmt.Errorf("encode %T: %w", from, err)
	}
	if err := json.Unmarshal(b, to); err != nil {
		return fmt.Errorf("encode %T: %w", from, err)
	}
	return nil
}
