package fleet

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/util/flowcontrol"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/object"
)

const rolloutFieldOwner = client.FieldOwner("tarlift-rollout")

const (
	// admissionTimeout bounds a write of admissions.
	admissionTimeout = 4 * time.Second
	// admissionRate is how many writes of admissions a second the API server is asked for, over all archives. A rollout
	// takes two a node.
	admissionRate = 50
	// listPage bounds a piece of the list of all NodeImageStates, which have at most 16 KiB each.
	listPage = 200
	// conflictRetry is how long the cache is given to show what made a write fail.
	conflictRetry = 200 * time.Millisecond
)

// admissions writes spec.admitted of NodeImageStates, and remembers what it has read and written until the cache shows it.
type admissions struct {
	live   client.Reader
	writer client.Client
	rate   flowcontrol.RateLimiter
	intern *interner
	now    func() time.Time

	listed time.Time                           // since when all that others have written is known; zero: it is not
	newer  map[string]*v1alpha1.NodeImageState // than in the cache, by name
}

func newAdmissions(live client.Reader, writer client.Client, now func() time.Time) *admissions {
	return &admissions{
		live: live, writer: writer, now: now,
		rate:   flowcontrol.NewTokenBucketRateLimiter(admissionRate, admissionRate),
		intern: newInterner(), newer: map[string]*v1alpha1.NodeImageState{},
	}
}

// list reads all NodeImageStates from the API server: once, since a cache may lag behind what an earlier leader has written,
// and after a write whose outcome is unknown.
func (w *admissions) list(ctx context.Context) error {
	if !w.listed.IsZero() {
		return nil
	}
	for list := new(v1alpha1.NodeImageStateList); ; {
		page := list.Continue
		list = new(v1alpha1.NodeImageStateList)
		if err := w.live.List(ctx, list, client.Limit(listPage), client.Continue(page)); err != nil {
			return fmt.Errorf("list NodeImageStates: %w", err)
		}
		for i := range list.Items {
			if state := &list.Items[i]; len(state.Spec.Admitted) > 0 {
				w.remember(state.DeepCopy())
			}
		}
		if list.Continue == "" {
			w.listed = w.now()
			return nil
		}
	}
}

func (w *admissions) remember(state *v1alpha1.NodeImageState) {
	w.intern.trimState(state)
	w.newer[state.Name] = state
}

// overlay replaces what the cache has by what is known to be newer. A NodeImageState that the cache does not have may be gone,
// which the write that removes its admissions finds out.
func (w *admissions) overlay(states map[string]*v1alpha1.NodeImageState) {
	for name, state := range w.newer {
		cached := states[name]
		if cached == nil && len(state.Spec.Admitted) == 0 || cached != nil && !object.Newer(state.ResourceVersion, cached.ResourceVersion) {
			delete(w.newer, name)
			continue
		}
		states[name] = state
	}
}

// write sets a node's admissions if its NodeImageState is as it was read.
func (w *admissions) write(ctx context.Context, state *v1alpha1.NodeImageState, list []v1alpha1.Admission) error {
	// A process that has to stop finishes the write before it gives up its Lease.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), admissionTimeout)
	defer cancel()
	written := state.DeepCopy()
	written.Spec.Admitted = list
	err := w.writer.Patch(ctx, written, client.MergeFromWithOptions(state, client.MergeFromWithOptimisticLock{}), rolloutFieldOwner)
	switch {
	case err == nil:
		w.remember(written)
		return nil
	case apierrors.IsNotFound(err):
		delete(w.newer, state.Name)
	case !apierrors.IsConflict(err):
		w.listed = time.Time{} // it may have been written
	}
	return fmt.Errorf("write admissions of NodeImageState %s: %w", state.Name, err)
}

// rollOut brings the admissions of an archive in line with its rollout, as far as the rate of writes allows. Without one, or
// of an archive that is gone, they go. It also returns when there will be more to do, 0 for unknown.
func (r *Reconciler) rollOut(
	ctx context.Context, a *v1alpha1.ImageArchive, s *snapshot, nodes []selectedNode, ro *rollout,
) (wait time.Duration, err error) {
	now := r.now()
	var list []decision
	if a.Spec.Rollout == nil {
		nodes = nil
	}
	for _, node := range s.unselected(a.Name, nodes) {
		list = append(list, decision{ended, node, v1alpha1.Admission{Archive: a.Name}})
	}
	if a.Spec.Rollout != nil {
		ro.observe(a, nodes, r.admissions.listed, now)
		decided, later := ro.decide(a, nodes, now)
		list, wait = append(list, decided...), later
	}
	for i := 0; i < len(list); i++ {
		d := &list[i]
		if !r.admissions.rate.TryAccept() {
			return time.Second, nil
		}
		state := s.states[d.node]
		err := r.admissions.write(ctx, state, d.apply(state.Spec.Admitted))
		if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
			wait = sooner(wait, conflictRetry)
			if d.frees() {
				list = list[:len(list)-1] // a slot that was not freed is not given away
			}
			continue
		}
		if err != nil {
			return 0, err
		}
		if d.verdict == expired {
			p := ro.progress[d.node]
			ro.failures[d.node] = failure{admitted: p.admitted, timedOut: true, entry: p.entry, since: now}
		}
		ctrl.LoggerFrom(ctx).Info("Wrote an admission", "archive", a.Name, "node", d.node, "decision", d.verdict, "generation", a.Generation)
		r.metrics.admissions.WithLabelValues(string(d.verdict)).Inc()
	}
	return wait, nil
}
