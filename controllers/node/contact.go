package node

import (
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/tarlift/tarlift/api/v1alpha1"
)

// minFence keeps a short progressDeadline from stopping imports for an API server that is only slow.
const minFence = 6 * time.Second

// fenceTime is how long an agent that does not hear from the API server holds its place in a rollout. After that it
// stops: it would not learn that the place has been given to another. The controller waits as long before it gives the
// place away.
func fenceTime(r *v1alpha1.Rollout) time.Duration { return max(r.Deadline()/3, minFence) }

// lifeInterval is after how long an agent that holds a place is to hear from the API server, and a running import to show
// that it makes progress, however little. It leaves as long for another attempt.
func lifeInterval(r *v1alpha1.Rollout) time.Duration { return fenceTime(r) / 2 }

// contact is when the API server was last heard, and what it said of this node's admissions.
type contact struct {
	at       time.Time
	uid      types.UID // of the NodeImageState
	version  string
	admitted []v1alpha1.Admission
}

// see takes in what the cache shows. What it has shown before says nothing of the API server now.
func (c *contact) see(state *v1alpha1.NodeImageState, now time.Time) {
	switch {
	case state == nil:
		*c = contact{}
	case state.UID != c.uid || newer(state.ResourceVersion, c.version):
		*c = contact{now, state.UID, state.ResourceVersion, state.Spec.Admitted}
	}
}

// answered takes in the answer to a write that began then. It may be ahead of the cache, whose watch may be broken.
func (c *contact) answered(object *v1alpha1.NodeImageState, begin time.Time) {
	*c = contact{begin, object.UID, object.ResourceVersion, object.Spec.Admitted}
}

// lifeInterval is the shortest of those of the places that this node holds and still needs, 0 for none.
func (a *agenda) lifeInterval() time.Duration {
	var least time.Duration
	for _, rec := range a.records {
		if r := rec.archive.Spec.Rollout; r != nil && rec.admission != nil && !rec.done && !rec.archive.Spec.Suspend {
			least = sooner(least, lifeInterval(r))
		}
	}
	return least
}

// admittedBeside is how many nodes rollouts let in at the same time as this one, 0 where it is not let in.
func (a *agenda) admittedBeside() int32 {
	var n int
	for _, rec := range a.records {
		if nodes := rec.archive.Status.Nodes; rec.admission != nil && nodes != nil {
			n += rec.archive.Spec.Rollout.Places(int(nodes.Desired))
		}
	}
	return int32(n)
}
