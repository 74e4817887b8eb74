package ownership

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Published is what an owner's newest publishing has left.
type Published struct {
	Import Import
	Tags   []Name   // without digest references and ids, sorted, with the targets that they were published with
	Names  []string // all, sorted
	// Lost says in words what is missing: names, targets, content, pins or snapshots. It is empty while all is whole.
	Lost string
}

// maxLosses are named of one publishing, in a sentence for an Event.
const maxLosses = 3

// Published says what an owner has published, and what of it is lost since. No source is opened. It is nil when nothing of
// this owner and spec is there. Names that are gone are not in the result: nothing says any more which they were.
func (o *Ownership) Published(ctx context.Context, owner Owner) (*Published, error) {
	all, err := o.newest(ctx, owner)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	r := all[0].record
	p := &Published{Import: r.Import}
	var losses []string
	if gone := r.Names - len(all); gone > 0 {
		losses = append(losses, fmt.Sprintf("%d of %d names missing", gone, r.Names))
	}
	seen := map[imageKey]bool{}
	for _, c := range all {
		p.Names = append(p.Names, c.Name)
		if !isID(c.Name) && !strings.Contains(c.Name, "@") {
			target := c.Target
			target.Digest = c.record.Target
			p.Tags = append(p.Tags, Name{Name: c.Name, Target: target})
		}
		c = o.sameID(ctx, c)
		lost := c.lost()
		if lost == "" {
			if lost, err = o.contentLost(ctx, c, seen); err != nil {
				return nil, err
			}
		}
		if lost != "" {
			losses = append(losses, c.Name+" "+lost)
		}
	}
	if more := len(losses) - maxLosses; more > 0 {
		losses = append(losses[:maxLosses], fmt.Sprintf("%d more", more))
	}
	p.Lost = strings.Join(losses, ", ")
	return p, nil
}

// newest are the claims of an owner's newest publishing, none if that was of another spec.
func (o *Ownership) newest(ctx context.Context, owner Owner) ([]claim, error) {
	_, owners, err := o.list(ctx)
	if err != nil {
		return nil, err
	}
	if p := owners[owner.label()]; p != nil && p.newest[0].record.Spec == owner.SpecHash {
		return p.newest, nil
	}
	return nil, nil
}

// sameID is a claim on an id as if it had been made with the image that the id stands for, where that means the same.
func (o *Ownership) sameID(ctx context.Context, c claim) claim {
	if isID(c.Name) && c.Target.Digest != c.record.Target && o.hasConfig(ctx, c.Target, c.Name) {
		c.record.Target = c.Target.Digest
	}
	return c
}

// lost says what the name itself lacks.
func (c claim) lost() string {
	switch {
	case c.Target.Digest != c.record.Target:
		return fmt.Sprintf("stands for %s instead of %s", c.Target.Digest, c.record.Target)
	case c.record.Pinned && c.Labels[labelPinned] != valuePinned:
		return "is not pinned"
	case c.Labels[labelManaged] != valueManaged:
		return "is not marked as complete for the CRI"
	}
	return ""
}

// imageKey is an image with where it was unpacked: claims by two snapshotters may have lost different things.
type imageKey struct {
	target      digest.Digest
	snapshotter string
}

// contentLost says what the image behind a name lacks, content or snapshots, unless it has been seen by another name.
func (o *Ownership) contentLost(ctx context.Context, c claim, seen map[imageKey]bool) (string, error) {
	key := imageKey{c.Target.Digest, c.record.Snapshotter}
	if seen[key] {
		return "", nil
	}
	seen[key] = true
	return o.check.Lost(ctx, c.Target, c.record.Snapshotter)
}

// Repair gives names of an owner what they have lost and can get back without a source: the pin, the mark for the CRI,
// and the former target, if another of the owner's names has kept that whole. It returns how many names it wrote.
func (o *Ownership) Repair(ctx context.Context, owner Owner) (repaired int, err error) {
	all, err := o.newest(ctx, owner)
	for _, c := range all {
		wrote, err := o.repair(ctx, owner, o.sameID(ctx, c), all)
		if err != nil {
			return repaired, fmt.Errorf("repair %q: %w", c.Name, err)
		}
		if wrote {
			repaired++
		}
	}
	return repaired, err
}

// repair publishes a name again as it was, if it has lost anything. It takes nothing from others.
func (o *Ownership) repair(ctx context.Context, owner Owner, c claim, all []claim) (wrote bool, err error) {
	n := Name{Name: c.Name, Target: c.Target}
	if c.Target.Digest != c.record.Target {
		k := slices.IndexFunc(all, func(other claim) bool { return other.Target.Digest == c.record.Target })
		if k < 0 {
			return false, nil
		}
		n.Target = all[k].Target
		if lost, err := o.check.Lost(ctx, n.Target, c.record.Snapshotter); err != nil || lost != "" {
			return false, err
		}
	}
	p := &publishing{Ownership: o, Claim: Claim{Owner: owner}, record: c.record}
	err = o.change(ctx, c.Name, func(now *images.Image) (*edit, error) {
		if !c.standsIn(now) || (claim{*now, c.label, c.record}).lost() == "" || p.conflict(*now, n) != nil {
			return nil, nil
		}
		wrote = true
		return p.edit(n, now), nil
	})
	if errors.Is(err, errRaced) {
		return false, nil
	}
	return wrote, err
}

// Held is a name that was published, as its newest record says.
type Held struct {
	Name     string
	Unpinned bool   // although it was to be pinned
	Lost     string // what else the name lacks, in words
	Target   ocispec.Descriptor

	claim claim
}

// Held lists the names that are there for anybody of us, sorted, and says how many more there were.
func (o *Ownership) Held(ctx context.Context) (held []Held, gone int, err error) {
	_, owners, err := o.list(ctx)
	if err != nil {
		return nil, 0, err
	}
	for _, p := range sorted(owners) {
		if p.newest[0].label != labelImport {
			gone += max(p.newest[0].record.Names-len(p.newest), 0)
		}
		for _, c := range p.newest {
			c = o.sameID(ctx, c)
			h := Held{Name: c.Name, Target: c.Target, claim: c}
			if h.Unpinned = c.record.Pinned && c.Labels[labelPinned] != valuePinned; !h.Unpinned {
				h.Lost = c.lost()
			}
			held = append(held, h)
		}
	}
	slices.SortStableFunc(held, func(a, b Held) int { return cmp.Compare(a.Name, b.Name) })
	return held, gone, nil
}

// ContentLost says of those names that have lost content or snapshots what, each image once.
func (o *Ownership) ContentLost(ctx context.Context, held []Held) (losses []string, err error) {
	seen := map[imageKey]bool{}
	for _, h := range held {
		lost, err := o.contentLost(ctx, h.claim, seen)
		if err != nil {
			return losses, err
		}
		if lost != "" {
			losses = append(losses, h.Name+" "+lost)
		}
	}
	return losses, nil
}
