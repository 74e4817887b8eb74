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

// fate is what becomes of a name.
type fate int

const (
	fateNone fate = iota // somebody else has changed it meanwhile
	fateRetained
	fateUnpinned
	fateInUse
	fateDeleted
)

// ending is a name with the claims on it that end. Each has the policy that is to be followed.
type ending struct {
	images.Image
	claims []claim
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
	byName, snapshotters := map[string]*ending{}, []string{}
	for _, c := range ends {
		e := byName[c.Name]
		if e == nil {
			e = &ending{Image: c.Image, policy: Delete}
			byName[c.Name] = e
		}
		e.claims = append(e.claims, c)
		e.policy = milder(e.policy, policy(c))
		snapshotters = append(snapshotters, c.record.Snapshotter)
	}
	order := sorted(byName)
	slices.SortStableFunc(order, func(a, b *ending) int { return rank(a) - rank(b) })
	r := &releasing{Ownership: o, snapshotters: snapshotters}
	fates := map[string]fate{}
	var failures []error
	failed := map[digest.Digest]bool{} // images of which a name has failed
	deleted := false
	for _, e := range order {
		if unrecoverable(ctx, failures) {
			break
		}
		if e.isID() && failed[e.Target.Digest] {
			continue // else it would stay for that name, and nobody's
		}
		f, err := r.end(ctx, e)
		if err != nil {
			failed[e.Target.Digest] = true
			failures = append(failures, fmt.Errorf("end the claim on %q: %w", e.Name, err))
			continue
		}
		fates[e.Name] = f
		deleted = deleted || f == fateDeleted
	}
	if deleted {
		failures = append(failures, o.collect(ctx))
	}
	return summarize(sorted(byName), fates), errors.Join(failures...)
}

func rank(e *ending) int {
	if e.isID() {
		return 1
	}
	return 0
}

// milder is the one of two policies that takes less away.
func milder(a, b Deletion) Deletion {
	if mildness(b) > mildness(a) {
		return b
	}
	return a
}

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

func (e *ending) labels() (all []string) {
	for _, c := range e.claims {
		all = append(all, c.label)
	}
	return all
}

func (e *ending) isID() bool {
	return slices.ContainsFunc(e.claims, func(c claim) bool { return c.record.Kind == KindID })
}

// end does with one name what is to be done, in one step.
func (r *releasing) end(ctx context.Context, e *ending) (f fate, err error) {
	err = r.rewrite(ctx, e.Image, e.labels(), func(now images.Image) error {
		if f, err = r.decide(ctx, e, now); err != nil {
			return err
		}
		if f == fateDeleted {
			return r.images.Delete(ctx, e.Name, images.DeleteTarget(&now.Target))
		}
		img, paths := images.Image{Name: e.Name, Labels: map[string]string{}}, []string(nil)
		for _, label := range e.labels() {
			paths = append(paths, "labels."+label)
		}
		if f == fateUnpinned || f == fateInUse {
			paths = append(paths, "labels."+labelPinned)
		}
		_, err := r.images.Update(ctx, img, paths...)
		return err //nolint:wrapcheck // as above
	})
	return f, err
}

// decide says what becomes of a name as it is now. It changes nothing.
func (r *releasing) decide(ctx context.Context, e *ending, now images.Image) (fate, error) {
	rest := slices.DeleteFunc(claims(now), func(c claim) bool { return slices.Contains(e.labels(), c.label) })
	unpin := fateRetained
	if e.unpins(rest) {
		unpin = fateUnpinned
	}
	wasOurs := !slices.ContainsFunc(e.claims, func(c claim) bool { return c.record.Target != now.Target.Digest || c.record.Found != nil })
	switch {
	case len(rest) > 0:
		return unpin, nil
	case e.isID():
		siblings, err := r.names(ctx, now)
		if err != nil || len(siblings) > 1 {
			return unpin, err
		}
	case e.policy != Delete || !wasOurs:
		return unpin, nil
	}
	used, err := r.uses(ctx, now)
	if err != nil {
		return fateNone, err
	}
	if used {
		return fateInUse, nil
	}
	return fateDeleted, nil
}

// unpins says whether the pin goes: it was set for those who go, nobody else wants it, and it was not there before.
func (e *ending) unpins(rest []claim) bool {
	pinned := func(c claim) bool { return c.record.Pinned }
	before := func(c claim) bool { return c.record.Found != nil && c.record.Found.Pinned }
	return mildness(e.policy) < mildness(Retain) && slices.ContainsFunc(e.claims, pinned) && !slices.ContainsFunc(rest, pinned) &&
		!slices.ContainsFunc(e.claims, before)
}

// names are those that stand for the same image.
func (r *releasing) names(ctx context.Context, img images.Image) (all []string, err error) {
	list, err := r.images.List(ctx, fmt.Sprintf("target.digest==%q", img.Target.Digest))
	if err != nil {
		return nil, daemon.Error("list images", err)
	}
	for _, other := range list {
		all = append(all, other.Name)
	}
	return all, nil
}

func (r *releasing) uses(ctx context.Context, img images.Image) (used bool, err error) {
	if r.usage == nil {
		if r.usage, err = r.check.Usage(ctx, r.snapshotters...); err != nil {
			return false, err
		}
	}
	names, err := r.names(ctx, img)
	if err != nil {
		return false, err
	}
	return r.usage.Uses(ctx, img.Target, names)
}

// summarize tells what became of names, for each owner in the order of their labels.
func summarize(ends []*ending, fates map[string]fate) (all []Released) {
	byLabel := map[string]*Released{}
	for _, e := range ends {
		for _, c := range e.claims {
			if fates[e.Name] == fateNone {
				continue
			}
			r := byLabel[c.label]
			if r == nil {
				r = &Released{Owner: c.owner()}
				byLabel[c.label] = r
			}
			list := map[fate]*[]string{fateRetained: &r.Retained, fateUnpinned: &r.Unpinned, fateInUse: &r.InUse, fateDeleted: &r.Deleted}[fates[e.Name]]
			if c.record.Kind != KindID {
				*list = append(*list, e.Name)
			}
		}
	}
	for _, r := range sorted(byLabel) {
		all = append(all, *r)
	}
	return all
}
