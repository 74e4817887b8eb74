package node

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/manager"
)

// unknown says of which archives nobody has told yet. What they have brought is left alone.
type unknown struct{ archives, dropIns bool }

// among says whether it is known which archives with such UIDs there are.
func (u unknown) among(uid string) bool {
	if strings.HasPrefix(uid, dropInUID) {
		return !u.dropIns
	}
	return !u.archives
}

// recognise takes in of which archives nobody has told. When that is other than before, what nobody wants is looked at
// again.
func (a *agenda) recognise(u unknown) {
	if a.unknown != u {
		a.unknown = u
		a.sweep.need()
	}
}

// alone looks after drop-ins until the controller does, which waits for the API server. It is a Runnable.
func (r *Reconciler) alone(ctx context.Context) error {
	for {
		wait, over := r.lookAlone(ctx)
		if over {
			return nil
		}
		var due <-chan time.Time
		if wait > 0 {
			due = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.poked:
		case <-due:
		}
	}
}

func (r *Reconciler) lookAlone(ctx context.Context) (wait time.Duration, over bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.taken {
		return 0, true
	}
	now := r.now()
	r.takeIn(ctx, &nodeView{blind: true}, now)
	return r.steer(ctx, now), false
}

// firstLook is how long what the API server tells waits for the first look into the drop-in directory, which takes
// milliseconds: else its archives would be missing in a report in between.
const firstLook = time.Second

func (r *Reconciler) awaitDropIns(ctx context.Context) {
	if r.dropIns == nil || r.waited {
		return
	}
	r.waited = true
	select {
	case <-ctx.Done():
	case <-r.dropIns.looked:
	case <-time.After(firstLook):
	}
}

// poke wakes alone.
func (r *Reconciler) poke() {
	select {
	case r.poked <- struct{}{}:
	default: // it is awake, or gone
	}
}

// addDropIns adds what looks after the drop-in directory. The manager starts it, and the worker, without an API server.
func (r *Reconciler) addDropIns(mgr ctrl.Manager) error {
	r.poked = make(chan struct{}, 1)
	if !r.DropIns {
		return nil
	}
	r.dropIns = newDropIns(r.Sources.ArchiveDir)
	r.onWake(r.poke)
	return errors.Join(mgr.Add(r.dropIns), mgr.Add(manager.RunnableFunc(r.alone)))
}

// onWake sets what wakes the reconciler.
func (r *Reconciler) onWake(wake func()) {
	r.worker.onWake(wake)
	r.watcher.onWake(wake)
	if r.dropIns != nil {
		r.dropIns.onWake(wake)
	}
}

// followAll follows the archives that the API server told of last, and drop-ins.
func (r *Reconciler) followAll(now time.Time) {
	archives, unclear, blind := r.last.archives, r.last.unclear, unknown{archives: !r.told}
	if r.dropIns != nil {
		list := r.dropIns.current()
		archives, unclear = slices.Concat(archives, list.archives), slices.Concat(unclear, list.unclear)
		blind.dropIns = !list.known
	}
	r.agenda.recognise(blind)
	r.agenda.follow(archives, now)
	r.agenda.unclear = unclear
}
