package ownership

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"

	"github.com/tarlift/tarlift/internal/importer/check"
	"github.com/tarlift/tarlift/internal/importer/daemon"
)

// Released is what became of an owner's names when its claims on them ended. They are sorted. Ids are left out: people do
// not know them, and they go with the other names of their images.
type Released struct {
	Owner    Owner
	Retained []string // stay as they are: by its policy, or for other owners
	Unpinned []string // stay until the kubelet wants their room
	Deleted  []string
	InUse    []string // were to be deleted, and are unpinned: containers use them
	Skipped  []string // keep this claim until the next call
}

// outcome is what becomes of a name.
type outcome string

const (
	unchanged outcome = "" // somebody else has changed it meanwhile
	retained  outcome = "retained"
	unpinned  outcome = "unpinned"
	inUse     outcome = "in use"
	deleted   outcome = "deleted"
)

// add says what became of a name. Ids are left out.
func (r *Released) add(c claim, o outcome) {
	list := map[outcome]*[]string{retained: &r.Retained, unpinned: &r.Unpinned, inUse: &r.InUse, deleted: &r.Deleted}[o]
	if c.record.Kind != KindID {
		*list = append(*list, c.Name)
	}
}

// ending are the claims on one name that end.
type ending struct {
	images.Image
	claims []claim
	labels []string // of the claims
	isID   bool
	policy Deletion // the mildest
}

// maxFailures end a release, which goes on with what has not failed: each costs calls, and a line of text.
const maxFailures = 10

// unrecoverable says that after these failures there is no use in going on with others.
func unrecoverable(ctx context.Context, failures []error) bool {
	return ctx.Err() != nil || len(failures) == maxFailures ||
		slices.ContainsFunc(failures, func(err error) bool { return errors.Is(err, daemon.ErrUnavailable) })
}

// release ends claims by these policies, and tells what became of the names, by owner. Any step may be the last: what is not
// done still has its labels, so that the next call finds it. Ids come last, since they go with the other names of their images.
func (o *Ownership) release(ctx context.Context, ends []claim, policy func(claim) Deletion) ([]Released, error) {
	r := &releasing{Ownership: o}
	byName, byLabel := map[string]*ending{}, map[string]*Released{}
	for _, c := range ends {
		e := byName[c.Name]
		if e == nil {
			e = &ending{Image: c.Image, policy: Delete}
			byName[c.Name] = e
		}
		e.claims, e.labels = append(e.claims, c), append(e.labels, c.label)
		e.isID = e.isID || c.record.Kind == KindID
		if p := policy(c); mildness(p) > mildness(e.policy) {
			e.policy = p
		}
		r.snapshotters = append(r.snapshotters, c.record.Snapshotter)
	}
	var names, ids []*ending
	for _, e := range sorted(byName) {
		if e.isID {
			ids = append(ids, e)
		} else {
			names = append(names, e)
		}
	}
	var failures []error
	failed := map[digest.Digest]bool{} // images of which a name has failed
	collect := false
	for _, e := range append(names, ids...) {
		if unrecoverable(ctx, failures) {
			failures = append(failures, ctx.Err())
			break
		}
		if e.isID && failed[e.Target.Digest] {
			continue // else it would stay for that name, and nobody's
		}
		became, err := r.end(ctx, e)
		if err != nil {
			failed[e.Target.Digest] = true
			failures = append(failures, fmt.Errorf("end the claim on %q: %w", e.Name, err))
			continue
		}
		collect = collect || became == deleted
		for _, c := range e.claims {
			if became == unchanged {
				break
			}
			if byLabel[c.label] == nil {
				byLabel[c.label] = &Released{Owner: c.owner()}
			}
			byLabel[c.label].add(c, became)
		}
	}
	if collect {
		failures = append(failures, o.collect(ctx))
	}
	var all []Released
	for _, r := range sorted(byLabel) {
		all = append(all, *r)
	}
	return all, errors.Join(failures...)
}

// mildness orders policies by how much they leave.
func mildness(d Deletion) int {
	switch d {
	case Delete:
		return 0
	case Unpin:
		return 1
	}
	return 2 // Retain, and what later versions may know
}

// releasing is one release. What is in use is asked once, when it matters first.
type releasing struct {
	*Ownership
	snapshotters []string
	usage        *check.Usage
}

// end does with one name what is to be done, in one step.
func (r *releasing) end(ctx context.Context, e *ending) (became outcome, err error) {
	err = r.rewrite(ctx, e.Image, e.labels, func(now images.Image) error {
		if became, err = r.decide(ctx, e, now); err != nil {
			return err
		}
		if became == deleted {
			return r.images.Delete(ctx, e.Name, images.DeleteTarget(&now.Target))
		}
		img := images.Image{Name: e.Name, Labels: map[string]string{}}
		for _, label := range e.labels {
			img.Labels[label] = ""
		}
		if became != retained {
			img.Labels[labelPinned] = ""
		}
		return r.update(ctx, img)
	})
	return became, err
}

// decide says what becomes of a name as it is now. It changes nothing.
func (r *releasing) decide(ctx context.Context, e *ending, now images.Image) (outcome, error) {
	rest := slices.DeleteFunc(claims(now), func(c claim) bool { return slices.Contains(e.labels, c.label) })
	stays := retained
	if e.unpins(rest) {
		stays = unpinned
	}
	wasOurs := !slices.ContainsFunc(e.claims, func(c claim) bool { return c.record.Target != now.Target.Digest || c.record.Found != nil })
	if len(rest) > 0 || !e.isID && (e.policy != Delete || !wasOurs) {
		return stays, nil
	}
	names, err := r.names(ctx, now.Target.Digest)
	if err != nil || e.isID && len(names) > 1 {
		return stays, err
	}
	if r.usage == nil {
		if r.usage, err = r.check.Usage(ctx, r.snapshotters...); err != nil {
			return unchanged, err
		}
	}
	used, err := r.usage.Uses(ctx, now.Target, names)
	if err != nil {
		return unchanged, err
	}
	if used {
		return inUse, nil
	}
	return deleted, nil
}

// unpins says whether the pin goes: it was set for those who go, nobody else wants it, and it was not there before.
func (e *ending) unpins(rest []claim) bool {
	pinned := func(c claim) bool { return c.record.Pinned }
	before := func(c claim) bool { return c.record.Found != nil && c.record.Found.Pinned }
	return mildness(e.policy) < mildness(Retain) && slices.ContainsFunc(e.claims, pinned) && !slices.ContainsFunc(rest, pinned) &&
		!slices.ContainsFunc(e.claims, before)
}

// names are those that stand for an image.
func (o *Ownership) names(ctx context.Context, target digest.Digest) (all []string, err error) {
	list, err := o.images.List(ctx, fmt.Sprintf("target.digest==%q", target))
	if err != nil {
		return nil, daemon.Error("list images", err)
	}
	for _, img := range list {
		all = append(all, img.Name)
	}
	return all, nil
}
