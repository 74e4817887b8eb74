package importer

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

const (
	// leaseExpiry is when containerd drops what a vanished importer left: containerd's own default for a client.
	leaseExpiry = 24 * time.Hour
	// leaseRenewAfter is the age at which a kept lease is exchanged for a new one. Leases cannot be renewed, and
	// writes below an expired one fail, so half of its life stays for the attempt that adopts it.
	leaseRenewAfter = leaseExpiry / 2
	// cleanupTimeout bounds a step of clearing up after a failure. Deleting a lease takes milliseconds, collecting
	// many gigabytes with it some seconds, and a containerd that restarts is back within seconds.
	cleanupTimeout = 20 * time.Second

	labelUID  = "tarlift.dev/uid"
	labelSpec = "tarlift.dev/spec"
)

// session is one attempt at an import: a lease that holds what it needs, and ingests that only it uses.
type session struct {
	importer *Importer
	services services // with private ingest references
	lease    leases.Lease
	prefix   string // of the ingest references
	keep     bool
	life     *life
	progress *reporter
	arrivals *arrivals
	cancel   context.CancelCauseFunc // ends the work of bring, for a reason
	unpacker *unpacker               // nil when nothing is to be unpacked
	follows  int64                   // see worthFollowing
	writing  atomic.Int32            // how much of containerd's is writing now
	ownedAll bool                    // see ownsAll
	replaced []images.Image          // names as they were before this publishing gave them another target
	streams  int                     // ingests so far whose digest was unknown

	mu      sync.Mutex
	written map[digest.Digest]int64 // blobs that this session committed, with their sizes in bytes
}

// begin opens a session and returns the context that all its calls use. An owner's session adopts what an
// earlier attempt at the same spec kept; another one clears away what those like it have left that were killed.
func (i *Importer) begin(ctx context.Context, req Request) (_ *session, _ context.Context, err error) {
	s := &session{
		importer: i, services: i.services, keep: req.Keep, progress: newReporter(req.Progress),
		arrivals: &arrivals{blobs: map[digest.Digest]chan struct{}{}}, written: map[digest.Digest]int64{},
	}
	uid, id := req.Owner.UID, ""
	if uid == "" {
		if err := i.recover(ctx, importUID, nil, func(Owner) bool { return false }); err != nil {
			return nil, nil, err
		}
		uid = importUID
	}
	id = leasePrefix(uid) + rand.Text()
	key := sessionKey(uid, id)
	if s.life, err = i.live(ctx, key, ingestWait); err != nil {
		return nil, nil, err
	}
	if uid == importUID {
		s.lease, err = i.newLease(ctx, id, Owner{UID: uid})
	} else {
		s.lease, err = i.adoptLease(ctx, id, req.Owner)
	}
	if err != nil {
		return nil, nil, errors.Join(runtimeError("create lease", err), clearUp(ctx, s.life.end))
	}
	s.prefix = ingestPrefix(key)
	s.services.content = guardedContent{i.services.content, s.prefix}
	return s, leases.WithLease(ctx, s.lease.ID), nil
}

func leasePrefix(uid string) string { return "tarlift-" + uid + "-" }

// newLease creates a lease; one whose creation was cancelled does not stay.
func (i *Importer) newLease(ctx context.Context, id string, o Owner) (leases.Lease, error) {
	l, err := i.services.leases.Create(ctx, leases.WithID(id), leases.WithExpiration(leaseExpiry),
		leases.WithLabel(labelUID, o.UID), leases.WithLabel(labelSpec, o.SpecHash))
	if err != nil && ctx.Err() != nil {
		_ = i.services.leases.Delete(context.WithoutCancel(ctx), leases.Lease{ID: id}) // most likely there is none
	}
	return l, err //nolint:wrapcheck // begin adds the context
}

// adoptLease returns the lease of an import: the one that an earlier attempt kept while it is young, else a new one.
// It takes over what other leases of the same spec hold, and drops those of other specs.
func (i *Importer) adoptLease(ctx context.Context, id string, o Owner) (leases.Lease, error) {
	kept, err := i.sessionLeases(ctx, o.UID)
	if err != nil {
		return leases.Lease{}, err
	}
	for _, l := range kept {
		if err := i.settle(ctx, l, false); err != nil {
			return leases.Lease{}, err
		}
	}
	ours := slices.IndexFunc(kept, func(l leases.Lease) bool {
		return l.Labels[labelSpec] == o.SpecHash && time.Since(l.CreatedAt) < leaseRenewAfter
	})
	var lease leases.Lease
	if ours >= 0 {
		lease = kept[ours]
	} else if lease, err = i.newLease(ctx, id, o); err != nil {
		return leases.Lease{}, err
	}
	for _, l := range kept {
		if l.ID == lease.ID {
			if err := i.dropExtractions(ctx, lease); err != nil {
				return leases.Lease{}, err
			}
			continue
		}
		if err := i.moveLease(ctx, l, lease, l.Labels[labelSpec] == o.SpecHash); err != nil {
			return leases.Lease{}, err
		}
	}
	return lease, nil
}

// dropExtractions lets go of snapshots that an attempt which was killed had begun to fill: nobody will find them again.
func (i *Importer) dropExtractions(ctx context.Context, l leases.Lease) error {
	resources, err := i.services.leases.ListResources(ctx, l)
	if err != nil {
		return fmt.Errorf("list resources of lease %s: %w", l.ID, err)
	}
	for _, r := range resources {
		if !isExtraction(r) {
			continue
		}
		if err := i.services.leases.DeleteResource(ctx, l, r); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("let go of %s %s: %w", r.Type, r.ID, err)
		}
	}
	return nil
}

// isExtraction knows a snapshot that is being filled by its name (containerd's snapshots.UnpackKeyFormat).
func isExtraction(r leases.Resource) bool {
	return strings.HasPrefix(r.Type, "snapshots/") && strings.HasPrefix(r.ID, snapshots.UnpackKeyPrefix+"-")
}

// moveLease ends a lease, after its resources are held by another one if they are still wanted.
func (i *Importer) moveLease(ctx context.Context, from, to leases.Lease, wanted bool) error {
	if wanted {
		resources, err := i.services.leases.ListResources(ctx, from)
		if err != nil {
			return fmt.Errorf("list resources of lease %s: %w", from.ID, err)
		}
		for _, r := range resources {
			if isExtraction(r) {
				continue
			}
			if err := i.services.leases.AddResource(ctx, to, r); err != nil && !errdefs.IsNotFound(err) {
				return fmt.Errorf("hold %s %s: %w", r.Type, r.ID, err)
			}
		}
	}
	return i.dropLease(ctx, from)
}

func (i *Importer) abortIngests(ctx context.Context, prefix string) error {
	statuses, err := i.services.content.ListStatuses(ctx, fmt.Sprintf("ref~=%q", "^"+regexp.QuoteMeta(prefix)))
	if err != nil {
		return runtimeError("list ingests", err)
	}
	for _, st := range statuses {
		if err := i.abortIngest(ctx, st.Ref); err != nil {
			return runtimeError("abort ingest "+st.Ref, err)
		}
	}
	return nil
}

// abortIngest removes an ingest. The daemon may still be writing for a call that was cancelled, which makes the
// removal of the ingest's directory fail: that takes it milliseconds.
func (i *Importer) abortIngest(ctx context.Context, ref string) error {
	for pause := 2 * time.Millisecond; ; pause *= 2 {
		err := i.services.content.Abort(ctx, ref)
		if err == nil || errdefs.IsNotFound(err) {
			return nil
		}
		if pause > time.Second || ctx.Err() != nil {
			return err //nolint:wrapcheck // the caller says which
		}
		time.Sleep(pause)
	}
}

// clearUp calls step even when ctx was cancelled, and again while containerd restarts.
func clearUp(ctx context.Context, step func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		err := step(ctx)
		if err == nil || !errors.Is(runtimeError("", err), ErrRuntimeUnavailable) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}

// end clears up. A failed session that keeps leaves its lease and ingests to the next attempt, unless they fill the
// disk; every other one leaves nothing but what it published.
func (s *session) end(ctx context.Context, failure error) error {
	i, steps := s.importer, []func(context.Context) error{s.life.end}
	if failure == nil || !s.keep || errors.Is(failure, ErrInsufficientDisk) {
		steps = slices.Insert(steps, 0,
			func(ctx context.Context) error { return i.abortIngests(ctx, s.prefix) },
			func(ctx context.Context) error { return i.dropLease(ctx, s.lease) })
	}
	// Whoever has this sign of life meanwhile uses, or has dealt with, all that this session had.
	err := clearUp(ctx, func(ctx context.Context) error { _, err := s.life.renew(ctx); return err })
	if errors.Is(err, errAlive) {
		return err
	}
	var failures []error
	for _, step := range steps {
		failures = append(failures, clearUp(ctx, step))
	}
	return errors.Join(failures...)
}

// guardedContent is a content store as one importer may use it.
//
// Its ingest references carry a prefix: containerd derives references from names alone, so that without it one
// importer's partial or stalled ingest fails or blocks every other's.
//
// It adds labels that hold content, and replaces none: containerd numbers the children of an index anew for each
// platform, so that the import of one would let go of what another import of the same index holds.
type guardedContent struct {
	content.Store
	prefix string
}

const gcContentLabel = "containerd.io/gc.ref.content."

func (g guardedContent) Update(ctx context.Context, info content.Info, paths ...string) (content.Info, error) {
	now, err := g.Info(ctx, info.Digest)
	if err != nil {
		return now, err //nolint:wrapcheck // a transparent wrapper
	}
	labels := maps.Clone(info.Labels)
	for k, v := range info.Labels {
		held := now.Labels[k]
		if !strings.HasPrefix(k, gcContentLabel) || held == "" || held == v {
			continue
		}
		free := k + "." + digest.Digest(v).Encoded()[:12]
		delete(labels, k)
		labels[free] = v
		for n, p := range paths {
			if p == "labels."+k {
				paths[n] = "labels." + free
			}
		}
	}
	info.Labels = labels
	return g.Store.Update(ctx, info, paths...) //nolint:wrapcheck // as above
}

func (g guardedContent) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var o content.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, err
		}
	}
	return g.Store.Writer(ctx, content.WithRef(g.prefix+o.Ref), content.WithDescriptor(o.Desc)) //nolint:wrapcheck // as above
}

func (g guardedContent) Abort(ctx context.Context, ref string) error {
	return g.Store.Abort(ctx, g.prefix+ref) //nolint:wrapcheck // as above
}

func (g guardedContent) Status(ctx context.Context, ref string) (content.Status, error) {
	return g.Store.Status(ctx, g.prefix+ref) //nolint:wrapcheck // as above
}
