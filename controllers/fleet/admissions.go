package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/flowcontrol"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/api/v1alpha1"
)

const rolloutFieldOwner = client.FieldOwner("tarlift-rollout")

const (
	// admissionWriteTimeout bounds a write of admissions, here and in the API server. It is below the time for which
	// nobody leads after a leader was cut off (LeaseDuration less RenewDeadline), so that a new leader, which lists
	// first, misses none of the old one's.
	admissionWriteTimeout = 4 * time.Second
	// LeaseDuration is for how long leader election has to leave a Lease to a leader that is not heard of.
	LeaseDuration = 30 * time.Second
	// RenewDeadline is after how long without its Lease a leader gives up.
	RenewDeadline = 20 * time.Second
	// admissionRate is how many writes of admissions a second the API server is asked for, over all archives. A rollout
	// takes two a node.
	admissionRate = 50
	// admissionBatch is how many follow each other for one archive, before the others are looked at.
	admissionBatch = admissionRate
	// listPage bounds a piece of the list of all NodeImageStates, which have at most 16 KiB each.
	listPage = 200
	// retryOutdated is how long the cache is given to show what made a write fail.
	retryOutdated = 200 * time.Millisecond
	// deletedAfter is after how long an object that the cache does not show is taken for deleted.
	deletedAfter = time.Minute
)

// admissions writes spec.admitted of NodeImageStates. Of what it reads and writes itself it keeps what is newer than the
// cache.
type admissions struct {
	live   client.Reader
	writer client.Client
	rate   flowcontrol.RateLimiter
	texts  *texts
	now    func() time.Time

	listed bool      // all NodeImageStates were read from the API server, since this process may write
	doubt  time.Time // until then, a write whose outcome is unknown may still take effect

	mu    sync.Mutex
	newer map[string]kept // than the cache, by name
}

type kept struct {
	state *v1alpha1.NodeImageState
	when  time.Time
}

func newAdmissions(live client.Reader, writer client.Client, now func() time.Time) *admissions {
	return &admissions{
		live: live, writer: writer, now: now,
		rate:  flowcontrol.NewTokenBucketRateLimiter(admissionRate, admissionRate),
		texts: &texts{known: map[string]string{}},
		newer: map[string]kept{},
	}
}

// errOutdated is that a NodeImageState has changed, or is gone, since it was read.
var errOutdated = errors.New("the NodeImageState has changed")

// ready says whether it is known who is admitted: a cache may lag behind what an earlier leader has written. Until a write
// whose outcome is unknown is over, it is not; then wait says how long.
func (w *admissions) ready(ctx context.Context) (wait time.Duration, err error) {
	if wait := w.doubt.Sub(w.now()); wait > 0 {
		return wait, nil
	}
	if w.listed {
		return 0, nil
	}
	var list v1alpha1.NodeImageStateList
	for {
		page := list.Continue
		list = v1alpha1.NodeImageStateList{}
		if err := w.live.List(ctx, &list, client.Limit(listPage), client.Continue(page)); err != nil {
			return 0, fmt.Errorf("list NodeImageStates: %w", err)
		}
		for i := range list.Items {
			if state := &list.Items[i]; len(state.Spec.Admitted) > 0 {
				w.keep(state.DeepCopy())
			}
		}
		if list.Continue == "" {
			w.listed = true
			return 0, nil
		}
	}
}

func (w *admissions) keep(state *v1alpha1.NodeImageState) {
	w.texts.thinState(state)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.newer[state.Name] = kept{state, w.now()}
}

// forget is for a NodeImageState that was deleted.
func (w *admissions) forget(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.newer, name)
}

// overlay puts into what the cache has what is known to be newer.
func (w *admissions) overlay(states map[string]*v1alpha1.NodeImageState) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, mine := range w.newer {
		cached := states[name]
		switch {
		case cached == nil && w.now().Sub(mine.when) > deletedAfter, cached != nil && !newer(mine.state.ResourceVersion, cached.ResourceVersion):
			delete(w.newer, name)
		default:
			states[name] = mine.state
		}
	}
}

// write sets a node's admissions if its object is as it was read. It returns the object as it is then.
func (w *admissions) write(
	ctx context.Context, state *v1alpha1.NodeImageState, admitted []v1alpha1.Admission,
) (*v1alpha1.NodeImageState, error) {
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": state.UID, "resourceVersion": state.ResourceVersion},
		"spec":     map[string]any{"admitted": admitted},
	})
	if err != nil {
		return nil, fmt.Errorf("encode admissions: %w", err)
	}
	// A process that is told to stop finishes the write, and gives up its Lease only then.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), admissionWriteTimeout)
	defer cancel()
	written := &v1alpha1.NodeImageState{}
	written.Name = state.Name
	err = w.writer.Patch(ctx, written, client.RawPatch(types.MergePatchType, patch), rolloutFieldOwner)
	switch {
	case err == nil:
		w.keep(written)
		return written, nil
	case apierrors.IsConflict(err), apierrors.IsNotFound(err):
		return nil, errOutdated
	case apierrors.IsForbidden(err), apierrors.IsInvalid(err), apierrors.IsTooManyRequests(err):
	default:
		w.doubt, w.listed = w.now().Add(2*admissionWriteTimeout), false
	}
	return nil, fmt.Errorf("write admissions of NodeImageState %s: %w", state.Name, err)
}

// rollOut brings the admissions of an archive in line with its rollout, as far as the rate of writes allows: first those
// that there are, then further ones. What it has written is in f from then on. It also returns when there will be more to
// do, 0 for unknown.
func (r *Reconciler) rollOut(
	ctx context.Context, a *v1alpha1.ImageArchive, f *fleet, now time.Time,
) (stand standing, wait time.Duration, err error) {
	if a.Spec.Rollout == nil && len(f.admitted(a.Name)) == 0 {
		return stand, 0, nil
	}
	wait, err = r.admissions.ready(ctx)
	r.admissions.overlay(f.states)
	ro := &r.known(a.Name).rollout
	ro.follow(a, now)
	members := f.members(a)
	if a.Spec.Rollout != nil {
		stand = ro.count(a, members, now)
	}
	if err != nil || wait > 0 {
		r.deafen(now)
		return stand, wait, err
	}

	list, wait := ro.tidy(a, members, f.strays(a.Name, members), now)
	more, err := r.carryOut(ctx, a, f, list, now)
	if a.Spec.Rollout == nil || err != nil || more > 0 {
		return stand, sooner(wait, more), err
	}
	if len(list) > 0 {
		members = f.members(a)
		stand = ro.count(a, members, now)
	}
	if stand.stopped {
		return stand, wait, nil
	}
	list, later := ro.admit(a, members, now)
	more, err = r.carryOut(ctx, a, f, list, now)
	return stand, sooner(wait, sooner(later, more)), err
}

// deafen notes that the API server did not answer, and so cannot have told what nodes reported.
func (r *Reconciler) deafen(now time.Time) {
	for _, k := range r.archives {
		k.rollout.since = now
	}
}

// admitted are the nodes that have an admission for archives of this name, expired or not.
func (f *fleet) admitted(archive string) []string {
	var names []string
	for name, state := range f.states {
		if admissionFor(archive, state) != nil {
			names = append(names, name)
		}
	}
	return names
}

// members are the nodes that an archive selects: none if its selector is invalid, which its status says.
func (f *fleet) members(a *v1alpha1.ImageArchive) []member {
	members, err := membersOf(a, f.nodes, f.states)
	if err != nil {
		return nil
	}
	return members
}

// strays are those that are admitted without being members.
func (f *fleet) strays(archive string, members []member) []string {
	rest := f.admitted(archive)
	if len(rest) == 0 {
		return nil
	}
	known := make(map[string]bool, len(rest))
	for i := range members {
		if members[i].admission != nil {
			known[members[i].name] = true
		}
	}
	return slices.DeleteFunc(rest, func(name string) bool { return known[name] })
}

// carryOut writes what was decided. It returns when to go on with what is left, 0 for nothing left.
func (r *Reconciler) carryOut(
	ctx context.Context, a *v1alpha1.ImageArchive, f *fleet, list []decision, now time.Time,
) (wait time.Duration, err error) {
	var written [verdicts]int
	defer func() { r.tell(ctx, a, written) }()
	for i := range list {
		d := &list[i]
		if i >= admissionBatch || ctx.Err() != nil || !r.admissions.rate.TryAccept() {
			return time.Second / 10, nil
		}
		state, err := r.admissions.write(ctx, f.states[d.node], d.apply(f.states[d.node].Spec.Admitted))
		if errors.Is(err, errOutdated) {
			wait = retryOutdated
			continue
		}
		if err != nil {
			r.deafen(now)
			return 0, err
		}
		f.states[d.node] = state
		written[d.verdict]++
		m := &member{d.node, state, entryFor(a, state), admissionFor(a.Name, state)}
		r.known(a.Name).rollout.done(d, m, now)
		if d.verdict == expire {
			r.Recorder.Eventf(a, nil, corev1.EventTypeWarning, v1alpha1.ReasonProgressDeadlineExceeded, "Rollout",
				"%s made no progress for %s; its place goes to another node", d.node, a.Spec.Rollout.Deadline())
		}
	}
	return wait, nil
}

// tell counts and logs what was written.
func (r *Reconciler) tell(ctx context.Context, a *v1alpha1.ImageArchive, written [verdicts]int) {
	if written == [verdicts]int{} {
		return
	}
	r.metrics.admissions(written)
	ctrl.LoggerFrom(ctx).Info("Rollout", "archive", a.Name, "generation", a.Generation, "admitted", written[admit],
		"renewed", written[renew], "expired", written[expire], "ended", written[remove])
}
