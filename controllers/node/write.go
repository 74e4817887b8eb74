package node

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
)

const nodeFieldOwner = client.FieldOwner("tarlift-node")

// cacheLag is how long a cache may take to show an object after its creation.
const cacheLag = 2 * time.Second

// writtenState is what this process has written to its NodeImageState. The cache shows it a little later, and
// until then comparing with the cache would write it again.
type writtenState struct {
	uid             types.UID
	resourceVersion string
	status          *v1alpha1.NodeImageStateStatus
	when            time.Time
}

// latest is the status as the API server has it, or how long to wait until the cache can tell.
func (w *writtenState) latest(view *nodeView, now time.Time) (*v1alpha1.NodeImageStateStatus, time.Duration) {
	switch {
	case view.state == nil && w.status != nil && now.Sub(w.when) < cacheLag:
		return nil, cacheLag
	case view.state == nil:
		return &v1alpha1.NodeImageStateStatus{}, 0
	case w.status != nil && w.uid == view.state.UID && !newer(view.state.ResourceVersion, w.resourceVersion):
		return w.status, 0
	}
	return &view.state.Status, 0
}

// newer says whether a is later than b. Where that cannot be said, a is taken for later.
func newer(a, b string) bool {
	c, err := resourceversion.CompareResourceVersion(a, b)
	return err != nil || c > 0
}

// write replaces the status, after creating the object where there is none. It belongs to the Node, so that it goes
// with it. What it returns is the object as the API server has it then. It is a JSON patch since only this agent writes
// a status: an API server takes longer for server-side apply, of a report of 20 archives some 40 ms.
func (w *writtenState) write(
	ctx context.Context, c client.Client, view *nodeView, status *v1alpha1.NodeImageStateStatus, now time.Time,
) (*v1alpha1.NodeImageState, error) {
	name := view.node.Name
	if view.state == nil {
		err := c.Create(ctx, &v1alpha1.NodeImageState{ObjectMeta: metav1.ObjectMeta{
			Name:            name,
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: name, UID: view.node.UID}},
		}})
		if client.IgnoreAlreadyExists(err) != nil {
			return nil, err
		}
	}
	patch, err := json.Marshal([]map[string]any{{"op": "add", "path": "/status", "value": status}})
	if err != nil {
		return nil, fmt.Errorf("encode the status: %w", err)
	}
	object := &v1alpha1.NodeImageState{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if err := c.Status().Patch(ctx, object, client.RawPatch(types.JSONPatchType, patch), nodeFieldOwner); err != nil {
		return nil, err
	}
	w.uid, w.resourceVersion = object.UID, object.ResourceVersion
	w.status, w.when = status, now
	return object, nil
}

// report writes the node's status if it says something new and it is time for that. It returns when it will be, 0
// for unknown. That the API server does not take it keeps nothing else from going on.
func (r *Reconciler) report(ctx context.Context, view *nodeView, now time.Time) time.Duration {
	running := r.worker.running(now)
	var poll time.Duration
	if slices.ContainsFunc(running, func(a activity) bool { return a.kind == jobImport }) {
		poll = progressPoll
	}
	life := r.agenda.lifeInterval()
	silent := life > 0 && now.Sub(r.contact.at) >= life
	if life > 0 && !silent {
		poll = sooner(poll, r.contact.at.Add(life).Sub(now))
	}
	if view.leftover {
		return poll // the garbage collector removes it, and that event brings what is next
	}
	if wait := r.outage.notBefore.Sub(now); wait > 0 {
		return sooner(poll, wait)
	}
	written, wait := r.state.latest(view, now)
	if wait > 0 {
		return wait
	}
	current := r.agenda.status(running, now)
	archives := len(current.Archives)
	if r.agenda.admittedBeside() > 0 {
		archives = 1 // its place is to be free for the next node soon, and its deadline runs
	}
	window := writeWindow(r.peers(view.archives), archives)
	c := compare(written, current)
	due := c
	if r.hasNews() && !r.telling.notBefore.After(now) {
		due = stateChange // Events are writes as well: they go when the status does
	}
	switch {
	case silent, life > 0 && now.Sub(r.pacer.last) >= life && (c != noChange || moved(written, current)):
		c = max(c, progressChange) // the controller waits for it
		poll = sooner(poll, life)
	case due == noChange:
		r.pacer.settled()
		return sooner(poll, r.untold(now))
	default:
		if wait := r.pacer.wait(due, now, window, r.jitter); wait > 0 {
			return sooner(poll, wait)
		}
	}
	if c == noChange && view.state != nil {
		r.pacer.settled()
	} else { // where there is no object yet, Events need one
		if err := r.write(ctx, view, current, now); err != nil {
			return sooner(poll, r.refused(ctx, err, window))
		}
		r.pacer.wrote(now)
	}
	uid := r.state.uid
	if view.state != nil {
		uid = view.state.UID
	}
	r.tell(ctx, uid, now, window)
	return sooner(poll, r.untold(now))
}

func (r *Reconciler) write(ctx context.Context, view *nodeView, status *v1alpha1.NodeImageStateStatus, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	begin := r.now()
	object, err := r.state.write(ctx, r.Client, view, status, now)
	if err != nil {
		return err
	}
	r.outage.reset()
	r.contact.answered(object, begin)
	return nil
}

// refused puts off the next write after one that failed, and returns by how much.
func (r *Reconciler) refused(ctx context.Context, err error, window time.Duration) time.Duration {
	now := r.now()
	r.outage.failed(now, max(apiRetryLimit, window), r.jitter)
	if r.outage.tries == 1 {
		ctrl.LoggerFrom(ctx).Info("Could not write the status of the NodeImageState; trying again", "error", condition.ErrorText(err))
	}
	return r.outage.notBefore.Sub(now)
}

// uncounted is how many nodes an archive is taken to select until the roll-up has counted them, and how many agents are
// taken to have started when there is no archive: the largest fleet that we promise to serve. Taken for fewer, they could
// keep the roll-up itself from counting. Of an archive it says within a second or two how many they are; with none, what an
// agent has to tell can wait.
const uncounted = 5000

// fleet is how many agents may write when this one does. When the last archive goes, they are those that had it.
func (r *Reconciler) fleet(archives []*v1alpha1.ImageArchive) int32 {
	if len(archives) > 0 {
		r.size = largest(archives)
	}
	return cmp.Or(r.size, uncounted)
}

// peers is how many agents may have something to tell when this one has: where a rollout has let it in, those that are in
// besides, so that the place is free for the next node soon.
func (r *Reconciler) peers(archives []*v1alpha1.ImageArchive) int32 {
	n := r.fleet(archives)
	if admitted := r.agenda.admittedBeside(); admitted > 0 {
		return min(n, admitted)
	}
	return n
}

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
