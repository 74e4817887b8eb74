package node

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
	"github.com/tarlift/tarlift/controllers/condition"
	"github.com/tarlift/tarlift/controllers/object"
)

const (
	// settleTime lets changes that follow each other at once become one write.
	settleTime = 200 * time.Millisecond
	// progressInterval is the least time between two writes that tell progress only, of at least progressStep percent.
	progressInterval = 10 * time.Second
	progressStep     = 10
	// anyProgressInterval is after how long any progress is worth a write, or a third of a rollout's progressDeadline.
	anyProgressInterval = time.Minute
	// progressPoll is how often the progress of running imports is looked at.
	progressPoll = 2 * time.Second
	// clusterWriteRate is how many status writes a second all agents together may ask of an API server, an Event beside
	// each: what the largest fleet has to tell of one archive then takes it little more than a minute.
	clusterWriteRate = 70
	// uncounted is how many nodes an archive is taken to select until the controller has counted them, and how many agents are
	// taken to have started when there is no archive: the largest fleet that we promise to serve.
	uncounted = 5000
	// writeTimeout is how long the API server may take over a write: a connection that leads nowhere any more would hold
	// it up for most of a minute.
	writeTimeout = 10 * time.Second
	// cacheLag is how long a cache may take to show what was written.
	cacheLag = 2 * time.Second
	// firstReport is how long the first report after a start waits until containerd was asked for each archive: else it would
	// tell that they are pending.
	firstReport = 5 * time.Second
)

const nodeFieldOwner = client.FieldOwner("tarlift-node")

// reporter writes the node's NodeImageState and Events. It is a controller with one request.
type reporter struct {
	client  client.Client
	node    string
	version string
	syncer  *syncer
	events  *events
	log     logr.Logger
	started time.Time
	now     func() time.Time
	jitter  func() float64

	written *v1alpha1.NodeImageState // by this process, nil for none
	when    time.Time                // of the last write
	since   time.Time                // when a change appeared that is not written yet; zero for none
	place   float64                  // in [0, 1): of its write among those of all agents
	outage  backoff                  // of the API server, as its writes tell
	size    int32                    // of the fleet, 0 for unknown

	mu    sync.Mutex
	queue workqueue.TypedRateLimitingInterface[ctrl.Request] // nil until the controller runs
}

func (r *reporter) request() ctrl.Request {
	return ctrl.Request{NamespacedName: client.ObjectKey{Name: r.node}}
}

func (r *reporter) setup(mgr ctrl.Manager) error {
	own := handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []ctrl.Request { return []ctrl.Request{r.request()} })
	err := ctrl.NewControllerManagedBy(mgr).
		Named("report").
		Watches(&v1alpha1.NodeImageState{}, own).
		Watches(&v1alpha1.ImageArchive{}, own, builder.WithPredicates(sizeChanged)).
		WatchesMetadata(&corev1.Node{}, own, builder.WithPredicates(object.Recreated)).
		WatchesRawSource(ctrlsource.Func(func(_ context.Context, q workqueue.TypedRateLimitingInterface[ctrl.Request]) error {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.queue = q
			return nil
		})).
		WithOptions(controller.Options{LogConstructor: logAs(r.log)}).
		Complete(r)
	if err != nil {
		return fmt.Errorf("set up the report controller: %w", err)
	}
	return nil
}

// sizeChanged is for archives whose nodes were counted: how many they are tells how long reports wait.
var sizeChanged = predicate.Funcs{
	CreateFunc: func(event.CreateEvent) bool { return false },
	DeleteFunc: func(event.DeleteEvent) bool { return false },
	UpdateFunc: func(e event.UpdateEvent) bool { return selected(e.ObjectOld) != selected(e.ObjectNew) },
}

// selected is how many nodes an archive selects, as far as the controller has counted them.
func selected(o client.Object) int32 {
	if a, ok := o.(*v1alpha1.ImageArchive); ok && a.Status.Nodes != nil {
		return a.Status.Nodes.Desired
	}
	return uncounted
}

// wake asks for a report, if there is something new to tell.
func (r *reporter) wake() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.queue != nil {
		r.queue.Add(r.request())
	}
}

// Reconcile writes the node's status if it says something new and it is time for that. That the API server does not take it
// keeps nothing else from going on.
func (r *reporter) Reconcile(ctx context.Context, _ ctrl.Request) (ctrl.Result, error) {
	node, err := readNode(ctx, r.client, r.node)
	if err != nil || node == nil {
		return ctrl.Result{}, err
	}
	state, wait, err := r.latest(ctx, node)
	if err != nil || wait > 0 || state == nil {
		return ctrl.Result{RequeueAfter: wait}, err
	}
	var list v1alpha1.ImageArchiveList
	if err := r.client.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return ctrl.Result{}, err
	}
	now := r.now()
	status, active, settled := r.syncer.report(r.version, list.Items, now)
	keepHistory(status, &state.Status)
	if early := r.started.Add(firstReport).Sub(now); !settled && early > 0 {
		return ctrl.Result{RequeueAfter: early}, nil
	}
	if wait := r.outage.readyAt.Sub(now); wait > 0 {
		return ctrl.Result{RequeueAfter: wait}, nil
	}
	wait = r.due(compare(&state.Status, status, r.anyProgress(list.Items, state), now.Sub(r.when)), r.window(list.Items, state), now)
	if wait == 0 {
		wait, err = r.write(ctx, node, state, status)
	}
	if err != nil {
		r.outage.failed(r.now(), max(object.RetryLimit, r.window(list.Items, state)), r.jitter)
		if r.outage.failures == 1 {
			ctrl.LoggerFrom(ctx).Error(nil, "Could not write the NodeImageState; trying again", "error", condition.ErrorText(err))
		}
		wait = max(time.Millisecond, r.outage.readyAt.Sub(r.now()))
	}
	if active {
		wait = sooner(max(wait, 0), progressPoll)
	}
	return ctrl.Result{RequeueAfter: max(wait, 0)}, nil
}

// latest is the NodeImageState as the API server has it: what this process wrote, until the cache shows it. It is empty where
// there is none, and nil where the one that is there belongs to an earlier Node, which the garbage collector removes.
func (r *reporter) latest(ctx context.Context, node *metav1.PartialObjectMetadata) (*v1alpha1.NodeImageState, time.Duration, error) {
	state := &v1alpha1.NodeImageState{}
	err := r.client.Get(ctx, client.ObjectKey{Name: r.node}, state)
	switch {
	case client.IgnoreNotFound(err) != nil:
		return nil, 0, err
	case err != nil && r.written != nil && r.now().Sub(r.when) < cacheLag:
		return nil, cacheLag, nil
	case err != nil:
		return &v1alpha1.NodeImageState{}, 0, nil
	case !state.BelongsTo(node):
		return nil, 0, nil
	case r.written != nil && r.written.UID == state.UID && !object.Newer(state.ResourceVersion, r.written.ResourceVersion):
		return r.written, 0, nil
	}
	return state, 0, nil
}

// keepHistory takes over when images were imported, of those that an earlier process imported and this one only checked.
func keepHistory(status, before *v1alpha1.NodeImageStateStatus) {
	for i := range status.Archives {
		e := &status.Archives[i]
		for k := range before.Archives {
			b := &before.Archives[k]
			if e.Ready && b.Ready && e.Attempts == 0 && e.UID == b.UID && e.IndexDigest == b.IndexDigest {
				e.CompletionTime, e.Attempts = b.CompletionTime, b.Attempts
			}
		}
	}
}

// due is how long a write waits, 0 for not at all and negative for no write. All agents that have the same to tell at the same
// time spread their writes over a window. The window grows and shrinks as the nodes are counted.
func (r *reporter) due(c change, window time.Duration, now time.Time) time.Duration {
	if r.events.pending() {
		c = max(c, stateChange) // Events are writes as well: they go when the status does
	}
	switch {
	case c == noChange:
		r.since = time.Time{}
		return -1
	case c == progressChange:
		r.since = time.Time{}
		return max(0, r.when.Add(max(progressInterval, window)).Sub(now))
	case r.since.IsZero():
		r.since, r.place = now, r.jitter()
	}
	at := later(r.since.Add(settleTime+time.Duration(r.place*float64(window))), r.when.Add(window))
	return max(0, at.Sub(now))
}

// window is what all agents that have the same to tell spread their writes over: as many as the most widely selecting archive
// selects. Where a rollout has admitted this node, those are the nodes admitted beside it, so that its place is free soon.
func (r *reporter) window(archives []v1alpha1.ImageArchive, state *v1alpha1.NodeImageState) time.Duration {
	var n, admitted int32
	for i := range archives {
		a, selected := &archives[i], selected(&archives[i])
		n = max(n, selected)
		if admissionFor(a, state.Spec.Admitted) != nil {
			admitted += int32(a.Spec.Rollout.Slots(int(selected))) //nolint:gosec // at most the number of nodes
		}
	}
	if len(archives) > 0 {
		r.size = n
	}
	n = cmp.Or(r.size, uncounted) // when the last archive goes, those agents write that had it
	if admitted > 0 {
		n = min(n, admitted)
	}
	return time.Duration(n) * time.Second / clusterWriteRate
}

// anyProgress is after how long any progress is reported: the controller waits for it where it has admitted the node.
func (r *reporter) anyProgress(archives []v1alpha1.ImageArchive, state *v1alpha1.NodeImageState) time.Duration {
	least := anyProgressInterval
	for i := range archives {
		if a := &archives[i]; admissionFor(a, state.Spec.Admitted) != nil {
			least = min(least, a.Spec.Rollout.Deadline()/3)
		}
	}
	return least
}

// write creates the NodeImageState where there is none, writes the status if it is another, and sends Events.
func (r *reporter) write(
	ctx context.Context, node *metav1.PartialObjectMetadata, state *v1alpha1.NodeImageState, status *v1alpha1.NodeImageStateStatus,
) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	object := state.DeepCopy()
	if state.UID == "" {
		object = &v1alpha1.NodeImageState{ObjectMeta: metav1.ObjectMeta{
			Name:            r.node,
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: r.node, UID: node.UID}},
		}}
		if err := r.client.Create(ctx, object); err != nil {
			return 0, client.IgnoreAlreadyExists(err) // the cache will show it
		}
	}
	if !equality.Semantic.DeepEqual(&object.Status, status) {
		base := object.DeepCopy()
		object.Status = *status
		if err := r.client.Status().Patch(ctx, object, client.MergeFrom(base), nodeFieldOwner); err != nil {
			return 0, err
		}
	}
	r.outage.reset()
	r.written, r.when, r.since = object, r.now(), time.Time{}
	return r.events.send(ctx, object.UID, r.jitter), nil
}

// report is the node's status. It also says whether imports run, and whether containerd was asked for each archive.
func (s *syncer) report(version string, archives []v1alpha1.ImageArchive, now time.Time) (
	status *v1alpha1.NodeImageStateStatus, active, settled bool,
) {
	listed := map[string][]v1alpha1.Image{}
	for i := range archives {
		listed[archives[i].Name] = archives[i].Status.Images
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	status, settled = &v1alpha1.NodeImageStateStatus{AgentVersion: version, Containerd: s.runtime.DeepCopy()}, true
	ready, total := 0, 0
	for _, st := range s.states {
		if st.ready {
			ready++
		}
		total++
		active = active || st.running != nil
		settled = settled && (!st.checked.IsZero() || st.failure != nil)
		status.Archives = append(status.Archives, st.reported(listed[st.name], now))
	}
	slices.SortFunc(status.Archives, func(x, y v1alpha1.ArchiveState) int { return strings.Compare(x.Name, y.Name) })
	if n := len(status.Archives) - v1alpha1.MaxArchives; n > 0 {
		status.Archives, status.Omitted = status.Archives[:v1alpha1.MaxArchives], int32(n) //nolint:gosec // a number of objects
	}
	status.Summary = fmt.Sprintf("%d/%d", ready, total)
	fitTexts(status.Archives)
	return status, active, settled
}

const (
	// maxTexts bounds the texts of a report, in bytes of JSON: with what else it says, an object of twenty archives that all
	// fail stays below 16 KiB.
	maxTexts = 6 << 10
	minText  = 60
)

// fitTexts shortens the texts of a report: when many archives fail on a node at the same time, each says less.
func fitTexts(archives []v1alpha1.ArchiveState) {
	texts := 0
	for i := range archives {
		if texts += len(archives[i].Conditions); archives[i].LastError != nil {
			texts++
		}
	}
	if texts == 0 {
		return
	}
	most := min(condition.MaxText, max(minText, maxTexts/texts))
	for i := range archives {
		for k := range archives[i].Conditions {
			c := &archives[i].Conditions[k]
			c.Message = condition.ClipTo(c.Message, most)
		}
		if e := archives[i].LastError; e != nil {
			e.Message = condition.ClipTo(e.Message, most)
		}
	}
}

// change says how much a status differs from the one that was written.
type change int

const (
	noChange       change = iota
	progressChange        // what may wait: bytes, attempts, and what exactly is being done
	stateChange           // what people and the controller wait for
)

// compare says what kind of write a status is worth, since when ago the last one was made.
func compare(written, current *v1alpha1.NodeImageStateStatus, anyProgress, ago time.Duration) change {
	if !equality.Semantic.DeepEqual(withoutProgress(written, current), withoutProgress(current, current)) {
		return stateChange
	}
	for i := range current.Archives {
		was, is := &written.Archives[i], &current.Archives[i]
		if is.Ready {
			continue
		}
		step := percent(is) - percent(was)
		moved := !equality.Semantic.DeepEqual(was, is)
		if step >= progressStep || moved && ago >= anyProgress || was.Attempts != is.Attempts || (was.Bytes == nil) != (is.Bytes == nil) {
			return progressChange
		}
	}
	return noChange
}

// withoutProgress is a status without what changes in the course of an attempt. Images that current leaves out, since the
// ImageArchive lists them by now, are not worth a write.
func withoutProgress(s, current *v1alpha1.NodeImageStateStatus) *v1alpha1.NodeImageStateStatus {
	s = s.DeepCopy()
	for i := range s.Archives {
		e := &s.Archives[i]
		e.Bytes, e.Attempts, e.StartTime, e.NextAttemptTime = nil, 0, nil, nil
		if i < len(current.Archives) && len(current.Archives[i].Images) == 0 {
			e.Images = nil
		}
		e.Conditions = slices.DeleteFunc(e.Conditions, func(c metav1.Condition) bool { return c.Type == v1alpha1.ConditionReconciling })
	}
	return s
}

// percent is how far a transfer is.
func percent(e *v1alpha1.ArchiveState) int64 {
	if e.Bytes == nil || e.Bytes.Total <= 0 {
		return 0
	}
	return 100 * (e.Bytes.Done + e.Bytes.Skipped) / e.Bytes.Total
}
