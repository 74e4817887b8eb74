package importer

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

const (
	// leaseExpiry is when containerd drops what a vanished importer left: containerd's own default for a client.
	leaseExpiry = 24 * time.Hour
	// leaseRenewAfter is the age at which a kept lease is exchanged for a new one. Leases cannot be renewed, and
	// writes below an expired one fail, so half of its life stays for the attempt that adopts it.
	leaseRenewAfter = leaseExpiry / 2
	// cleanupTimeout bounds clearing up after a failure. Deleting a lease takes milliseconds, collecting many
	// gigabytes with it some seconds.
	cleanupTimeout = time.Minute

	labelUID        = "tarlift.dev/uid"
	labelGeneration = "tarlift.dev/generation"
)

// session is one attempt at an import: a lease that holds what it needs, and ingests that only it uses.
type session struct {
	importer *Importer
	services services // with private ingest references
	lease    leases.Lease
	prefix   string // of the ingest references
	keep     bool
	progress *reporter

	written map[digest.Digest]int64 // blobs that this session committed, with their sizes in bytes
	streams int                     // ingests so far whose digest was unknown
}

// begin opens a session and returns the context that all its calls use. An owner's session adopts what an
// earlier attempt at the same generation kept.
func (i *Importer) begin(ctx context.Context, req Request) (*session, context.Context, error) {
	s := &session{importer: i, services: i.services, keep: req.Keep, progress: newReporter(req.Progress), written: map[digest.Digest]int64{}}
	var err error
	if req.Owner.UID == "" {
		s.lease, err = i.services.leases.Create(ctx, leases.WithRandomID(), leases.WithExpiration(leaseExpiry),
			leases.WithLabel(labelUID, ""))
		s.prefix = "tarlift/import/" + s.lease.ID + "/"
	} else {
		s.lease, err = i.adoptLease(ctx, req.Owner)
		s.prefix = ingestPrefix(req.Owner.UID)
	}
	if err != nil {
		return nil, nil, runtimeError("create lease", err)
	}
	s.services.content = privateIngests{i.services.content, s.prefix}
	return s, leases.WithLease(ctx, s.lease.ID), nil
}

func ingestPrefix(uid string) string { return "tarlift/archive/" + uid + "/" }

// adoptLease returns the lease of this generation: the one that an earlier attempt kept while it is young, else
// a new one that holds what the old one held. Leases of other generations go.
func (i *Importer) adoptLease(ctx context.Context, o Owner) (leases.Lease, error) {
	kept, err := i.ownLeases(ctx, o.UID)
	if err != nil {
		return leases.Lease{}, err
	}
	generation := strconv.FormatInt(o.Generation, 10)
	for _, l := range kept {
		if l.Labels[labelGeneration] == generation && time.Since(l.CreatedAt) < leaseRenewAfter {
			return l, nil
		}
	}
	fresh, err := i.services.leases.Create(ctx,
		leases.WithID(fmt.Sprintf("tarlift-%s-%s-%d", o.UID, generation, time.Now().Unix())),
		leases.WithExpiration(leaseExpiry),
		leases.WithLabel(labelUID, o.UID),
		leases.WithLabel(labelGeneration, generation))
	if err != nil {
		return leases.Lease{}, err //nolint:wrapcheck // begin adds the context
	}
	for _, l := range kept {
		if err := i.moveLease(ctx, l, fresh, l.Labels[labelGeneration] == generation); err != nil {
			return leases.Lease{}, err
		}
	}
	return fresh, nil
}

// moveLease ends a lease, after its resources are held by another one if they are still wanted.
func (i *Importer) moveLease(ctx context.Context, from, to leases.Lease, wanted bool) error {
	if wanted {
		resources, err := i.services.leases.ListResources(ctx, from)
		if err != nil {
			return fmt.Errorf("list resources of lease %s: %w", from.ID, err)
		}
		for _, r := range resources {
			if err := i.services.leases.AddResource(ctx, to, r); err != nil && !errdefs.IsNotFound(err) {
				return fmt.Errorf("hold %s %s: %w", r.Type, r.ID, err)
			}
		}
	}
	if err := i.services.leases.Delete(ctx, from, leases.SynchronousDelete); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete lease %s: %w", from.ID, err)
	}
	return nil
}

func (i *Importer) ownLeases(ctx context.Context, uid string) ([]leases.Lease, error) {
	return i.services.leases.List(ctx, fmt.Sprintf("labels.%q==%q", labelUID, uid)) //nolint:wrapcheck // callers add the context
}

// Release drops the lease and the partial ingests that earlier attempts for an archive kept: what no published
// image holds is collected before it returns.
func (i *Importer) Release(ctx context.Context, uid string) error {
	if uid == "" {
		return nil
	}
	ctx = i.in(ctx)
	if err := i.abortIngests(ctx, ingestPrefix(uid)); err != nil {
		return err
	}
	kept, err := i.ownLeases(ctx, uid)
	if err != nil {
		return runtimeError("list leases", err)
	}
	for _, l := range kept {
		if err := i.services.leases.Delete(ctx, l, leases.SynchronousDelete); err != nil && !errdefs.IsNotFound(err) {
			return runtimeError("delete lease "+l.ID, err)
		}
	}
	return nil
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

// end clears up. A failed session that keeps leaves its lease and ingests to the next attempt; every other one
// leaves nothing but what it published. It works even when ctx was cancelled.
func (s *session) end(ctx context.Context, failed bool) error {
	if failed && s.keep {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	err := s.importer.abortIngests(ctx, s.prefix)
	if deleteErr := s.importer.services.leases.Delete(ctx, s.lease, leases.SynchronousDelete); deleteErr != nil && !errdefs.IsNotFound(deleteErr) {
		err = errors.Join(err, runtimeError("delete lease "+s.lease.ID, deleteErr))
	}
	return err
}

// privateIngests is a content store whose ingest references carry a prefix. containerd derives references from
// names alone, so that without it one importer's partial or stalled ingest fails or blocks every other's.
type privateIngests struct {
	content.Store
	prefix string
}

func (p privateIngests) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var o content.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, err
		}
	}
	return p.Store.Writer(ctx, content.WithRef(p.prefix+o.Ref), content.WithDescriptor(o.Desc)) //nolint:wrapcheck // as above
}

func (p privateIngests) Abort(ctx context.Context, ref string) error {
	return p.Store.Abort(ctx, p.prefix+ref) //nolint:wrapcheck // as above
}

func (p privateIngests) Status(ctx context.Context, ref string) (content.Status, error) {
	return p.Store.Status(ctx, p.prefix+ref) //nolint:wrapcheck // as above
}
