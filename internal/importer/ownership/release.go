package ownership

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

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
	InUse    []string // are unpinned since containers use them, and deleted by a later call when none does
	Skipped  []string // keep this claim until the next call
}

// Sweep releases the claims of ImageArchives that are not wanted, distinguished by UID, each by the policy that it recorded. Of
// wanted owners it releases the claims on names that their newest publishing no longer had, and records their policies.
// `agent import` stays an owner. A wanted owner without a UID is one that is still to import, perhaps the same as before: who
// has its name is skipped. Owners whose UID known does not say yes to are skipped, since nobody can say whether they are
// wanted; nil for none. It returns who lost names, and who was skipped by name.
func (o *Ownership) Sweep(ctx context.Context, wanted []Owner, known func(uid string) bool) ([]Released, error) {
	_, owners, err := o.list(ctx)
	if err != nil {
		return nil, err
	}
	var going []claim
	var skipped []Released
	var failures []error
	for _, p := range sorted(owners) {
		owner := p.newest[0].owner()
		if owner.UID == "" || known != nil && !known(owner.UID) {
			continue
		}
		if k := slices.IndexFunc(wanted, func(w Owner) bool { return w.UID == owner.UID }); k >= 0 {
			if len(p.newest) < p.newest[0].record.Names { // until it is complete it may still want the others
				p.newest, p.earlier = append(p.newest, p.earlier...), nil
			}
			failures = append(failures, o.recordDeletion(ctx, p.newest, wanted[k].Deletion))
			for _, c := range p.earlier {
				c.record.Deletion = wanted[k].Deletion
				going = append(going, c)
			}
			continue
		}
		var names []string
		for _, c := range append(p.newest, p.earlier...) {
			if !slices.ContainsFunc(wanted, func(w Owner) bool { return w.UID == "" && w.Name == c.record.Archive }) {
				going = append(going, c)
			} else if !isID(c.Name) {
				names = append(names, c.Name)
			}
		}
		if len(names) > 0 {
			skipped = append(skipped, Released{Owner: owner, Skipped: slices.Sorted(slices.Values(names))})
		}
	}
	released, err := o.release(ctx, going)
	return append(released, skipped...), errors.Join(append(failures, err)...)
}

// ReleaseFormer releases an archive's claims on names that its newest publishing no longer had. What `agent import` brought stays
// until somebody else says.
func (o *Ownership) ReleaseFormer(ctx context.Context, owner Owner) (Released, error) {
	all, err := o.Sweep(ctx, []Owner{owner}, func(uid string) bool { return uid == owner.UID })
	return append(all, Released{})[0], err
}

// recordDeletion writes a wanted owner's policy where another is recorded.
func (o *Ownership) recordDeletion(ctx context.Context, mine []claim, policy Deletion) error {
	for _, c := range mine {
		if c.record.Deletion.mildness() == policy.mildness() {
			continue
		}
		c.record.Deletion = policy
		err := o.change(ctx, c.Name, func(now *images.Image) (*edit, error) {
			if !c.standsIn(now) {
				return nil, nil
			}
			return &edit{labels: map[string]string{c.label: c.record.encode()}}, nil
		})
		if err != nil && !errors.Is(err, errRaced) {
			return fmt.Errorf("record the policy of %q: %w", c.Name, err)
		}
	}
	return nil
}

// standsIn says whether a name still has a claim as it was listed. It is being published again otherwise.
func (c claim) standsIn(now *images.Image) bool {
	return now != nil && now.Labels[c.label] == c.Labels[c.label]
}

// maxFailures end a release, which goes on with what has not failed: each costs calls, and a line of text.
const maxFailures = 10

// outcome is what becomes of a name.
type outcome string

const (
	unchanged outcome = "" // somebody else has changed it meanwhile
	retained  outcome = "retained"
	unpinned  outcome = "unpinned"
	inUse     outcome = "in use"
	deleted   outcome = "deleted"
)

// release ends claims by the policies in their records, and tells what became of the names, by owner. Any step may be the last:
// what is not done still has its labels, so that the next call finds it. Ids come last, since they go with the other names of
// their images.
func (o *Ownership) release(ctx context.Context, going []claim) ([]Released, error) {
	names, ids := map[string][]claim{}, map[string][]claim{}
	var snapshotters []string
	for _, c := range going {
		if isID(c.Name) {
			ids[c.Name] = append(ids[c.Name], c)
		} else {
			names[c.Name] = append(names[c.Name], c)
		}
		snapshotters = append(snapshotters, c.record.Snapshotter)
	}
	usage := sync.OnceValues(func() (*check.Usage, error) { return o.check.Usage(ctx, snapshotters...) })
	byOwner := map[string]*Released{}
	var failures []error
	failed := map[digest.Digest]bool{} // images of which a name has failed
	collect := false
	for _, of := range append(sorted(names), sorted(ids)...) {
		name := of[0].Image
		if isID(name.Name) && failed[name.Target.Digest] {
			continue // else it would stay for that name, and nobody's
		}
		became, err := o.releaseName(ctx, of, usage)
		if err != nil {
			failed[name.Target.Digest] = true
			failures = append(failures, fmt.Errorf("release %q: %w", name.Name, err))
			if ctx.Err() != nil || errors.Is(err, daemon.ErrUnavailable) || len(failures) == maxFailures {
				break
			}
			continue
		}
		collect = collect || became == deleted
		for _, c := range of {
			if became != unchanged {
				r := cmp.Or(byOwner[c.label], &Released{Owner: c.owner()})
				byOwner[c.label] = r
				r.add(c, became)
			}
		}
	}
	if collect {
		failures = append(failures, o.collect(ctx))
	}
	var all []Released
	for _, r := range sorted(byOwner) {
		all = append(all, *r)
	}
	return all, errors.Join(failures...)
}

// add says what became of a name. Ids are left out.
func (r *Released) add(c claim, o outcome) {
	list := map[outcome]*[]string{retained: &r.Retained, unpinned: &r.Unpinned, inUse: &r.InUse, deleted: &r.Deleted}[o]
	if !isID(c.Name) {
		*list = append(*list, c.Name)
	}
}

// releaseName ends these claims on a name.
func (o *Ownership) releaseName(ctx context.Context, going []claim, usage func() (*check.Usage, error)) (became outcome, err error) {
	err = o.change(ctx, going[0].Name, func(now *images.Image) (*edit, error) {
		if slices.ContainsFunc(going, func(c claim) bool { return !c.standsIn(now) }) {
			return nil, nil
		}
		e, removable := release(*now, going)
		became = retained
		if _, ok := e.labels[labelPinned]; ok {
			became = unpinned
		}
		if !removable {
			return e, nil
		}
		names, waiting, err := o.names(ctx, now.Target.Digest)
		if err != nil || len(names) > 1 && isID(now.Name) && !waiting {
			return e, err
		}
		all, err := usage()
		if err != nil {
			return nil, err
		}
		used, err := all.Uses(ctx, now.Target, names)
		switch {
		case !used:
			became, e.remove = deleted, true
		case !slices.ContainsFunc(going, func(c claim) bool { return !c.record.Released }):
			became, e = unchanged, nil // until a later call
		default:
			became = inUse
			for _, c := range going {
				c.record.Released, c.record.Pinned = true, false
				e.labels[c.label] = c.record.encode()
			}
		}
		return e, err
	})
	if errors.Is(err, errRaced) {
		return unchanged, nil
	}
	return became, err
}

// release is how a name is to be written without some of its claims, by the mildest of their policies, and whether it may be
// removed instead, when nothing uses it: an id whatever the policies, since it goes with the other names of its image.
func release(now images.Image, going []claim) (e *edit, removable bool) {
	e = &edit{labels: map[string]string{}}
	mildest, before, ours := Delete.mildness(), false, true
	for _, c := range going {
		e.labels[c.label] = ""
		mildest = max(mildest, c.record.Deletion.mildness())
		before = before || c.wasFound() && c.record.Found.Pinned
		ours = ours && !c.wasFound() && c.record.Target == now.Target.Digest
	}
	staying := slices.DeleteFunc(claims(now), func(c claim) bool { _, goes := e.labels[c.label]; return goes })
	if mildest < Retain.mildness() && unpins(going, staying, before) {
		e.labels[labelPinned] = ""
	}
	return e, len(staying) == 0 && (isID(now.Name) || mildest == Delete.mildness() && ours)
}

// names are those that stand for an image. It is waiting for containers to end if one of them is to go then.
func (o *Ownership) names(ctx context.Context, target digest.Digest) (all []string, waiting bool, err error) {
	list, err := o.images.List(ctx, fmt.Sprintf("target.digest==%q", target))
	if err != nil {
		return nil, false, daemon.Error("list images", err)
	}
	for _, img := range list {
		all = append(all, img.Name)
		waiting = waiting || !isID(img.Name) && slices.ContainsFunc(claims(img), func(c claim) bool { return c.record.Released })
	}
	return all, waiting, nil
}
