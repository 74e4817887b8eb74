package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/tarlift/tarlift/internal/importer/daemon"
)

// lease is one of a session's, with how many calls use it.
type lease struct {
	leases.Lease
	users int
}

// Do makes a call of containerd below the session's lease, for what does not go through Content and Snapshotter.
func (s *Session) Do(ctx context.Context, call func(context.Context) error) error {
	l, err := s.hold(ctx)
	if err != nil {
		return err
	}
	defer s.release(ctx, l)
	return call(leases.WithLease(ctx, l.ID))
}

// hold returns the session's lease, for one call or one open writer; release ends its use. A lease that is older than its
// hand-over time is replaced by one that holds the same, and deleted when nothing uses it any more.
func (s *Session) hold(ctx context.Context) (*lease, error) {
	s.leaseMu.Lock()
	defer s.leaseMu.Unlock()
	if s.store.old(s.lease.Lease) {
		next, err := s.store.create(ctx, s.owner)
		if err != nil {
			return nil, err
		}
		if err := s.store.move(ctx, s.lease.Lease, next, true); err != nil {
			return nil, errors.Join(err, s.store.deleteLease(ctx, next))
		}
		last := s.lease
		s.lease = &lease{Lease: next}
		s.endReplaced(ctx, last)
	}
	s.lease.users++
	return s.lease, nil
}

// current says whether calls below a lease may go on.
func (s *Session) current(l *lease) bool {
	s.leaseMu.Lock()
	defer s.leaseMu.Unlock()
	return l == s.lease && !s.store.old(l.Lease)
}

func (s *Store) old(l leases.Lease) bool { return time.Since(l.CreatedAt) > s.handOver }

func (s *Session) release(ctx context.Context, l *lease) {
	s.leaseMu.Lock()
	defer s.leaseMu.Unlock()
	l.users--
	s.endReplaced(ctx, l)
}

// endReplaced deletes a lease that was replaced and that nothing uses, after what was done below it since is held by the next
// one. What fails is left to its expiry.
func (s *Session) endReplaced(ctx context.Context, l *lease) {
	if l == s.lease || l.users > 0 {
		return
	}
	_ = cleanUp(ctx, func(ctx context.Context) error {
		if err := s.store.move(ctx, l.Lease, s.lease.Lease, true); err != nil {
			return err
		}
		// Not synchronously: other calls of the session wait for this one.
		return daemon.Error("delete lease "+l.ID, s.store.leases.Delete(ctx, l.Lease))
	})
	s.store.active.Delete(l.ID)
}

// Held makes sure that what the session has written is still held. What else fails after its lease is gone, fails for
// that reason: containerd then lacks the lease, a blob, or the file of an ingest. It works although ctx was cancelled.
func (s *Session) Held(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	s.leaseMu.Lock()
	defer s.leaseMu.Unlock()
	left, err := s.store.leases.List(ctx, fmt.Sprintf("id==%q", s.lease.ID))
	if err == nil && len(left) == 0 {
		return ErrLeaseLost
	}
	return daemon.Error("look for the lease", err)
}

// adopt returns a new lease for a session, which holds what others with the same spec hold. Those of earlier sessions go then; those
// that a session of this process works below stay, and those of other processes until they are old: they may be at work.
func (s *Store) adopt(ctx context.Context, o Owner) (leases.Lease, error) {
	earlier, err := s.list(ctx)
	if err != nil {
		return leases.Lease{}, err
	}
	lease, err := s.create(ctx, o)
	for _, l := range earlier {
		if l.Labels[labelUID] != o.UID {
			continue
		}
		if err == nil && l.Labels[labelSpec] == o.Spec {
			if err = s.move(ctx, l, lease, false); errdefs.IsNotFound(err) { // it has expired meanwhile
				err = nil
			}
		}
		_, active := s.active.Load(l.ID)
		if err == nil && !active && (l.Labels[labelProcess] == s.process || s.old(l)) {
			err = s.deleteLease(ctx, l)
		}
	}
	if err != nil { // what it holds already is for the next attempt
		s.active.Delete(lease.ID)
	}
	return lease, err
}

// create makes a lease for a session; one whose creation was cancelled does not stay.
func (s *Store) create(ctx context.Context, o Owner) (leases.Lease, error) {
	id := "tarlift-" + o.UID + "-" + rand.Text()
	s.active.Store(id, nil)
	l, err := s.leases.Create(ctx, leases.WithID(id), leases.WithExpiration(leaseExpiry), leases.WithLabels(map[string]string{
		labelUID: o.UID, labelSpec: o.Spec, labelProcess: s.process,
	}))
	if err != nil {
		s.active.Delete(id)
		if ctx.Err() != nil {
			_ = s.leases.Delete(context.WithoutCancel(ctx), leases.Lease{ID: id}) // most likely there is none
		}
	}
	return l, daemon.Error("create lease", err)
}

// move lets one lease hold what another one holds, without private ingests and the snapshots that a layer is being unpacked into
// unless those are wanted: their names are made up anew by each session, so that no other would find them. A lease that is gone is
// not found.
func (s *Store) move(ctx context.Context, from, to leases.Lease, private bool) error {
	resources, err := s.leases.ListResources(ctx, from)
	if err != nil {
		return daemon.Error("list resources of lease "+from.ID, err)
	}
	for _, r := range resources {
		unpacking := strings.HasPrefix(r.Type, "snapshots/") && strings.HasPrefix(r.ID, snapshots.UnpackKeyPrefix+"-")
		if !private && (unpacking || r.Type == "ingests" && isPrivate(from.Labels[labelUID], r.ID)) {
			continue
		}
		if err := s.leases.AddResource(ctx, to, r); err != nil {
			return daemon.Error("hold "+r.Type+" "+r.ID, err)
		}
	}
	return nil
}

// list returns all leases of ours.
func (s *Store) list(ctx context.Context) ([]leases.Lease, error) {
	list, err := s.leases.List(ctx, fmt.Sprintf("labels.%q", labelUID))
	return list, daemon.Error("list leases", err)
}

// deleteLease collects what nothing else holds before it returns.
func (s *Store) deleteLease(ctx context.Context, l leases.Lease) error {
	defer s.active.Delete(l.ID)
	return cleanUp(ctx, func(ctx context.Context) error {
		if err := s.leases.Delete(ctx, l, leases.SynchronousDelete); !errdefs.IsNotFound(err) {
			return daemon.Error("delete lease "+l.ID, err)
		}
		return nil
	})
}

// Release deletes the leases of those UIDs that unwanted says yes to. What no image holds is collected before it returns.
func (s *Store) Release(ctx context.Context, unwanted func(uid string) bool) error {
	list, err := s.list(ctx)
	failures := []error{err}
	for _, l := range list {
		if ctx.Err() != nil {
			return errors.Join(append(failures, ctx.Err())...)
		}
		if unwanted(l.Labels[labelUID]) {
			failures = append(failures, s.deleteLease(ctx, l))
		}
	}
	return errors.Join(failures...)
}

// Leftovers are what sessions have in containerd beside images, also those that are at work. It is collected when its leases
// expire, at the latest.
type Leftovers struct {
	Leases  int
	Ingests int       // partial blobs
	Bytes   int64     // in these
	Oldest  time.Time // when the oldest of the leases was made
}

// Leftovers finds them.
func (s *Store) Leftovers(ctx context.Context) (Leftovers, error) {
	var all Leftovers
	list, err := s.list(ctx)
	for _, l := range list {
		all.Leases++
		if all.Oldest.IsZero() || l.CreatedAt.Before(all.Oldest) {
			all.Oldest = l.CreatedAt
		}
	}
	ingests, ingestsErr := s.content.ListStatuses(ctx, fmt.Sprintf("ref~=%q", "^"+ingestRoot))
	for _, st := range ingests {
		all.Ingests++
		all.Bytes += st.Offset
	}
	return all, errors.Join(err, daemon.Error("list ingests", ingestsErr))
}

// Collect has containerd collect its garbage.
func (s *Store) Collect(ctx context.Context) error {
	l, err := s.create(ctx, Owner{UID: "collect"}) // should we be killed now, it is nobody's who is wanted
	if err != nil {
		return err
	}
	return s.deleteLease(ctx, l)
}

// cleanUp calls step even when ctx was cancelled, again while containerd restarts, and a few times whatever fails: the daemon may
// still be writing for a call that was cancelled, which makes the removal of an ingest's directory fail.
func cleanUp(ctx context.Context, step func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	for pause := 2 * time.Millisecond; ; pause *= 2 {
		err := step(ctx)
		if err == nil || pause > time.Second && !errors.Is(err, daemon.ErrUnavailable) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(min(pause, time.Second)):
		}
	}
}
