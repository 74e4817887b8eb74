package node

import (
	"context"
	"errors"
	"slices"
	"time"

	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
	"github.com/tarlift/tarlift/internal/importer"
)

// sweeper is when the claims of owners that nobody wants are to be ended: at the start, since some may have gone before it,
// when one goes, and now and then.
type sweeper struct {
	backoff
	interval time.Duration
	now      func() time.Time
	jitter   func() float64
}

// skippedInterval is when to sweep again what was kept for archives that are still to be imported.
const skippedInterval = time.Minute

// ended notes how a sweep ended, and returns when to do the next. It skipped what so many archives may still want.
func (s *sweeper) ended(ctx context.Context, skipped int, err error) time.Duration {
	if err != nil {
		if s.failures == 0 {
			ctrl.LoggerFrom(ctx).Error(nil, "Could not release images that nobody wants", "error", condition.ErrorText(err))
		}
		limit := retryLimit
		if errors.Is(err, importer.ErrRuntimeUnavailable) {
			limit = runtimeRetryLimit
		}
		s.failed(s.now(), limit, s.jitter)
		return max(time.Millisecond, s.readyAt.Sub(s.now()))
	}
	s.reset()
	if skipped > 0 {
		return about(min(s.interval, skippedInterval), s.jitter)
	}
	return about(s.interval, s.jitter)
}

// sweep ends the claims of ImageArchives that do not want this node, and returns when to do so again.
func (r *Reconciler) sweep(ctx context.Context) (time.Duration, error) {
	if wait := r.sweeper.readyAt.Sub(r.syncer.now()); wait > 0 {
		return wait, nil
	}
	var list v1alpha1.ImageArchiveList
	if err := r.Client.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return 0, err
	}
	node, err := readNode(ctx, r.Client, r.NodeName)
	if err != nil {
		return 0, err
	}
	var wanted []importer.Owner
	for i := range list.Items {
		a := &list.Items[i]
		if !a.DeletionTimestamp.IsZero() {
			continue
		}
		selects, until := r.selects(a, node)
		if selects || until.After(r.syncer.now()) {
			wanted = append(wanted, ownerOf(a))
		}
		if selects && r.syncer.expects(a.Name) {
			wanted = append(wanted, importer.Owner{Name: a.Name})
		}
	}
	for name, owner := range r.syncer.owners() {
		if !slices.ContainsFunc(list.Items, func(a v1alpha1.ImageArchive) bool { return a.Name == name }) {
			return 0, nil // a job of an archive that is gone may be publishing; its end asks again
		}
		if !slices.ContainsFunc(wanted, func(o importer.Owner) bool { return o.UID == owner.UID }) {
			wanted = append(wanted, owner) // it came after the list, and may be publishing
		}
	}
	skipped, err := r.syncer.sweep(ctx, false, wanted)
	return r.sweeper.ended(ctx, skipped, err), nil
}
