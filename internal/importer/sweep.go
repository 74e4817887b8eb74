package importer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
)

// Swept is what became of an owner's names when its claim on them ended. They are sorted.
type Swept struct {
	Owner    Owner
	Retained []string // stay as they are: by its policy, or for other owners
	Unpinned []string // stay until the kubelet wants their room
	Deleted  []string
	InUse    []string // were to be deleted, and are unpinned: containers use them
	Spared   []string // keep this claim until the next call
}

// maxSwept owners are dealt with at a time; each has a stream to containerd meanwhile.
const maxSwept = 100

// maxFailures end a Sweep, which goes on with what has not failed: each costs calls, and a line of text.
const maxFailures = 10

// Sweep ends the claims on images of owners that are not wanted, told apart by UID, each by the policy that it recorded.
// Of wanted owners it ends the claims on names that their newest publishing no longer had, and records their policies.
// Owners with a living importer are left to it, and `agent import` stays an owner. A wanted owner without a UID spares all
// who have its name: another of that name is still to import, perhaps the same. Owners whose UID among does not say yes to
// are left alone, since nobody knows whether they are wanted; nil for none. It returns who lost names, and who was spared.
func (i *Importer) Sweep(ctx context.Context, wanted []Owner, among func(uid string) bool) (swept []Swept, err error) {
	ctx = i.in(ctx)
	for more := true; more && err == nil; {
		var some []Swept
		some, more, err = i.sweepSome(ctx, wanted, among)
		swept = append(swept, some...)
	}
	return swept, err
}

// sweepSome is Sweep for as many owners as are dealt with at a time. Who was spared is told when there are no more.
func (i *Importer) sweepSome(ctx context.Context, wanted []Owner, among func(string) bool) (swept []Swept, more bool, err error) {
	held, spared, err := i.hold(ctx, wanted, among)
	if len(held) == 0 {
		return spared, false, err
	}
	defer func() {
		for _, c := range held {
			err = errors.Join(err, clearUp(ctx, c.life.end))
		}
	}()
	list, listErr := i.services.images.List(ctx) // as it is now that nobody else writes for these owners
	if listErr != nil {
		return spared, false, runtimeError("list images", listErr)
	}
	now := claimants(list, wanted, among)
	var ends []ending
	for _, c := range held {
		if c = now[c.label]; c != nil {
			ends = append(ends, c.ends...)
		}
	}
	swept, endErr := i.endClaims(ctx, list, ends)
	err = errors.Join(err, endErr)
	for _, c := range held {
		if c = now[c.label]; c != nil {
			err = errors.Join(err, i.recordDeletion(ctx, c))
		}
	}
	if len(held) == maxSwept && err == nil {
		return swept, true, nil
	}
	return append(swept, spared...), false, err
}

// hold takes the signs of life of those for whom there is something to do. One who cannot be held keeps no others from it.
func (i *Importer) hold(ctx context.Context, wanted []Owner, among func(string) bool) (held []*claimant, spared []Swept, err error) {
	list, err := i.services.images.List(ctx)
	if err != nil {
		return nil, nil, runtimeError("list images", err)
	}
	var failures []error
	for _, c := range sorted(claimants(list, wanted, among)) {
		if len(c.spared.Spared) > 0 {
			spared = append(spared, c.spared)
		}
		if len(c.ends)+len(c.names) == 0 || len(held) == maxSwept || hopeless(ctx, failures) {
			continue
		}
		if c.life, err = i.alone(ctx, c.uid, c.wanted != nil); err == nil {
			held = append(held, c)
		} else if !errors.Is(err, errAlive) {
			failures = append(failures, err)
		}
	}
	return held, spared, errors.Join(failures...)
}

// hopeless says that after these failures there is no use in going on with others.
func hopeless(ctx context.Context, failures []error) bool {
	return ctx.Err() != nil || len(failures) == maxFailures ||
		slices.ContainsFunc(failures, func(err error) bool { return errors.Is(err, ErrRuntimeUnavailable) })
}

// claimant is an archive with labels on images.
type claimant struct {
	label, uid string
	wanted     *Owner      // nil if it is not wanted
	newest     publishing  //
	ends       []ending    //
	names      []published // that are wanted, with another policy than the one recorded
	spared     Swept       // of one that is not wanted: what is not to end
	life       *life
}

// ending is the end of one claim on a name.
type ending struct {
	published
	label string
	owner Owner // as recorded, with the policy that is to be followed
}

// claimants finds the archives that have labels, by these, among those with such UIDs; nil for all.
func claimants(list []images.Image, wanted []Owner, among func(uid string) bool) map[string]*claimant {
	all := map[string]*claimant{}
	var claims []ending
	for _, img := range list {
		for label := range img.Labels {
			uid, ok := strings.CutPrefix(label, ownerLabelPrefix)
			r := readRecord(img, label)
			if !ok || !r.of(img.Name) || among != nil && !among(uid) {
				continue
			}
			owner := Owner{Name: r.Archive, UID: uid, SpecHash: r.Spec, Deletion: cmp.Or(r.Deletion, DeletionUnpin)}
			claims = append(claims, ending{published{img, r}, label, owner})
			c := all[label]
			if c == nil {
				c = &claimant{label: label, uid: uid}
				if k := slices.IndexFunc(wanted, func(o Owner) bool { return o.UID == uid }); k >= 0 {
					c.wanted = &wanted[k]
				}
				all[label] = c
			}
			if c.wanted != nil {
				c.newest.see(r, *c.wanted)
			}
		}
	}
	for _, e := range claims {
		c := all[e.label]
		switch {
		case c.wanted == nil && slices.ContainsFunc(wanted, func(o Owner) bool { return o.UID == "" && o.Name == e.owner.Name }):
			c.spared.Owner, c.spared.Spared = e.owner, append(c.spared.Spared, e.Name)
		case c.wanted == nil:
			c.ends = append(c.ends, e)
		case !c.newest.has(e.record):
			e.owner.Deletion = cmp.Or(c.wanted.Deletion, DeletionUnpin)
			c.ends = append(c.ends, e)
		case e.record.Deletion != c.wanted.Deletion.recorded():
			c.names = append(c.names, e.published)
		}
	}
	return all
}

// alone takes the sign of life of an archive that nobody imports, and deals with what somebody who was killed had begun to
// publish: only then is it sure what has been published.
func (i *Importer) alone(ctx context.Context, uid string, finish bool) (*life, error) {
	l, err := i.live(ctx, sessionKey(uid, ""), deathWait)
	if err != nil {
		return nil, err
	}
	left, err := i.sessionLeases(ctx, uid)
	for _, lease := range left {
		if err == nil {
			err = i.settle(ctx, lease, finish)
		}
	}
	if err != nil {
		return nil, errors.Join(err, clearUp(ctx, l.end))
	}
	return l, nil
}

// recordDeletion writes a wanted owner's policy where another is recorded.
func (i *Importer) recordDeletion(ctx context.Context, c *claimant) error {
	for _, p := range c.names {
		p.record.Deletion = c.wanted.Deletion.recorded()
		value, err := p.record.encode()
		if err != nil {
			return err
		}
		img := images.Image{Name: p.Name, Labels: map[string]string{c.label: value}}
		err = i.rewrite(ctx, p.Image, []string{c.label}, func(images.Image) error {
			_, err := i.services.images.Update(ctx, img, "labels."+c.label)
			return err //nolint:wrapcheck // rewrite adds the context
		})
		if err != nil {
			return fmt.Errorf("record the policy of %q: %w", p.Name, err)
		}
	}
	return nil
}

// endFormer ends an archive's claims on names that its newest publishing no longer had. Its own importer is the caller.
func (i *Importer) endFormer(ctx context.Context, o Owner) (Swept, error) {
	if o.UID == "" { // what `agent import` brought stays until somebody else says
		return Swept{}, nil
	}
	list, err := i.services.images.List(ctx)
	if err != nil {
		return Swept{}, runtimeError("list images", err)
	}
	c := claimants(list, []Owner{o}, nil)[ownerLabel(o)]
	if c == nil {
		return Swept{}, nil
	}
	swept, err := i.endClaims(ctx, list, c.ends)
	if len(swept) == 0 {
		return Swept{}, err
	}
	return swept[0], err
}

// sorted returns the values in the order of their keys.
func sorted[V any](m map[string]V) []V {
	var list []V
	for _, k := range slices.Sorted(maps.Keys(m)) {
		list = append(list, m[k])
	}
	return list
}
