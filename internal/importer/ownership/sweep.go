package ownership

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
)

// Sweep ends the claims of ImageArchives that are not wanted, distinguished by UID, each by the policy that it recorded. Of
// wanted owners it ends the claims on names that their newest publishing no longer had, and records their policies.
// `agent import` stays an owner. A wanted owner without a UID is one that is still to import, perhaps the same as before: who
// has its name is skipped. Owners whose UID known does not say yes to are skipped, since nobody can say whether they are
// wanted; nil for none. It returns who lost names, and who was skipped by name.
func (o *Ownership) Sweep(ctx context.Context, wanted []Owner, known func(uid string) bool) ([]Released, error) {
	list, err := o.list(ctx)
	if err != nil {
		return nil, err
	}
	var ends []claim
	var skipped []Released
	var failures []error
	policies := map[string]Deletion{}
	for _, mine := range sorted(byOwner(list)) {
		owner := mine[0].owner()
		if owner.UID == "" || known != nil && !known(owner.UID) {
			continue
		}
		k := slices.IndexFunc(wanted, func(w Owner) bool { return w.UID == owner.UID })
		if k >= 0 {
			policies[owner.label()] = cmp.Or(wanted[k].Deletion, Unpin)
			going, stay := former(mine)
			ends = append(ends, going...)
			failures = append(failures, o.recordDeletion(ctx, stay, wanted[k].Deletion.recorded()))
			continue
		}
		expected := func(c claim) bool {
			return slices.ContainsFunc(wanted, func(w Owner) bool { return w.UID == "" && w.Name == c.record.Archive })
		}
		var names []string
		for _, c := range mine {
			if !expected(c) {
				ends = append(ends, c)
			} else if c.record.Kind != KindID {
				names = append(names, c.Name)
			}
		}
		if len(names) > 0 {
			slices.Sort(names)
			skipped = append(skipped, Released{Owner: owner, Skipped: names})
		}
	}
	released, err := o.release(ctx, ends, func(c claim) Deletion { return cmp.Or(policies[c.label], c.owner().Deletion) })
	return append(released, skipped...), errors.Join(append(failures, err)...)
}

// ReleaseFormer ends an archive's claims on names that its newest publishing no longer had. What `agent import` brought stays
// until somebody else says.
func (o *Ownership) ReleaseFormer(ctx context.Context, owner Owner) (Released, error) {
	if owner.UID == "" {
		return Released{}, nil
	}
	list, err := o.list(ctx)
	if err != nil {
		return Released{}, err
	}
	going, _ := former(byOwner(list)[owner.label()])
	all, err := o.release(ctx, going, func(claim) Deletion { return cmp.Or(owner.Deletion, Unpin) })
	if len(all) == 0 {
		return Released{}, err
	}
	return all[0], err
}

// former are an owner's claims from earlier publishings, once the newest one is complete: until then it may still want them.
func former(mine []claim) (going, stay []claim) {
	newest, earlier := split(mine)
	if len(newest) == 0 || len(newest) < newest[0].record.Names {
		return nil, mine
	}
	return earlier, newest
}

// recordDeletion writes a wanted owner's policy where another is recorded.
func (o *Ownership) recordDeletion(ctx context.Context, mine []claim, policy Deletion) error {
	for _, c := range mine {
		if c.record.Deletion == policy {
			continue
		}
		c.record.Deletion = policy
		img := images.Image{Name: c.Name, Labels: map[string]string{c.label: c.record.encode()}}
		err := o.rewrite(ctx, c.Image, []string{c.label}, func(images.Image) error { return o.update(ctx, img) })
		if err != nil {
			return fmt.Errorf("record the policy of %q: %w", c.Name, err)
		}
	}
	return nil
}
