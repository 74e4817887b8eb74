package importer

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
)

// fate is what becomes of a name.
type fate int

const (
	fateNone     fate = iota // somebody else has changed it meanwhile
	fateUnknown              // whether it is used could not be told: it keeps its labels
	fateRetained             //
	fateUnpinned
	fateInUse
	fateDeleted
)

// parting is the end of one or more claims on one name.
type parting struct {
	images.Image
	ends []ending
}

// labels are those of the claims that end.
func (p *parting) labels() (all []string) {
	for _, e := range p.ends {
		all = append(all, e.label)
	}
	return all
}

// policy is the mildest of those whose claims end at the same time.
func (p *parting) policy() Deletion {
	policy := DeletionDelete
	for _, e := range p.ends {
		if d := e.owner.Deletion; d == DeletionRetain || (d == DeletionUnpin && policy == DeletionDelete) {
			policy = d
		} else if d != DeletionDelete && d != DeletionUnpin {
			policy = DeletionRetain // of a later version
		}
	}
	return policy
}

// remaining returns the records of owners who still want the name.
func (p *parting) remaining() (all []record) {
	for label := range p.Labels {
		r := readRecord(p.Image, label)
		if isOwnerLabel(label) && r.of(p.Name) && !slices.Contains(p.labels(), label) {
			all = append(all, r)
		}
	}
	return all
}

// deletes says whether the name is to go: nobody else wants it, and it stands for what was published. A record of a version
// that did not write the name into it may be a copy.
func (p *parting) deletes() bool {
	return p.policy() == DeletionDelete && len(p.remaining()) == 0 &&
		!slices.ContainsFunc(p.ends, func(e ending) bool { return e.record.Target != p.Target.Digest || e.record.Name == "" })
}

// unpins says whether the pin goes: it was set for those who go, and nobody else wants it.
func (p *parting) unpins() bool {
	return p.policy() != DeletionRetain &&
		slices.ContainsFunc(p.ends, func(e ending) bool { return e.record.Pinned }) &&
		!slices.ContainsFunc(p.remaining(), func(r record) bool { return r.Pinned })
}

// endClaims does what the policies say with names, and tells it for each owner. Any step may be the last: what is not done
// still has its labels, so that the next call finds it.
func (i *Importer) endClaims(ctx context.Context, list []images.Image, ends []ending) ([]Swept, error) {
	byName := map[string]*parting{}
	for _, e := range ends {
		if byName[e.Name] == nil {
			byName[e.Name] = &parting{Image: e.Image}
		}
		byName[e.Name].ends = append(byName[e.Name].ends, e)
	}
	partings := sorted(byName)
	deletions := map[string][]*parting{}
	for _, p := range partings {
		if p.deletes() {
			d := p.Target.Digest.String()
			deletions[d] = append(deletions[d], p)
		}
	}
	plan, failures := i.unused(ctx, list, deletions)
	var last string // to be deleted
	for _, p := range partings {
		if plan[p.Name] == fateDeleted {
			last = p.Name
		}
	}
	fates := map[string]fate{}
	for _, p := range partings {
		if hopeless(ctx, failures) {
			break
		}
		var f fate
		var err error
		switch plan[p.Name] {
		case fateUnknown:
			continue
		case fateDeleted:
			f, err = i.deleteName(ctx, p, p.Name == last)
		case fateInUse:
			if f, err = i.release(ctx, p); f != fateNone {
				f = fateInUse
			}
		default:
			f, err = i.release(ctx, p)
		}
		if err != nil {
			failures = append(failures, fmt.Errorf("end the claim on %q: %w", p.Name, err))
			continue
		}
		fates[p.Name] = f
	}
	return tell(partings, fates), errors.Join(failures...)
}

// tell sums up what became of names, for each owner in the order of their labels.
func tell(partings []*parting, fates map[string]fate) []Swept {
	byLabel := map[string]*Swept{}
	for _, p := range partings {
		for _, e := range p.ends {
			if fates[p.Name] == fateNone {
				continue
			}
			if byLabel[e.label] == nil {
				byLabel[e.label] = &Swept{Owner: e.owner}
			}
			s := byLabel[e.label]
			list := map[fate]*[]string{fateRetained: &s.Retained, fateUnpinned: &s.Unpinned, fateInUse: &s.InUse, fateDeleted: &s.Deleted}[fates[p.Name]]
			*list = append(*list, p.Name)
		}
	}
	var all []Swept
	for _, s := range sorted(byLabel) {
		all = append(all, *s)
	}
	return all
}

// rewrite looks at a name and changes it in one step among all that this process does, if it is still there and these labels
// are still what they were.
func (i *Importer) rewrite(ctx context.Context, was images.Image, labels []string, write func(now images.Image) error) error {
	i.naming.Lock()
	defer i.naming.Unlock()
	now, err := i.services.images.Get(ctx, was.Name)
	if err == nil {
		if slices.ContainsFunc(labels, func(label string) bool { return now.Labels[label] != was.Labels[label] }) {
			return nil // it is being published again
		}
		err = write(now)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return runtimeError("change", err)
	}
	return nil
}

// release takes labels from a name, and the pin if nobody wants it any more.
func (i *Importer) release(ctx context.Context, p *parting) (f fate, err error) {
	err = i.rewrite(ctx, p.Image, p.labels(), func(now images.Image) error {
		f = fateRetained
		img, paths := images.Image{Name: p.Name, Labels: map[string]string{}}, []string(nil)
		for _, label := range p.labels() {
			paths = append(paths, "labels."+label)
		}
		if (&parting{now, p.ends}).unpins() {
			f = fateUnpinned
			paths = append(paths, "labels."+labelPinned)
		}
		_, err := i.services.images.Update(ctx, img, paths...)
		return err //nolint:wrapcheck // rewrite adds the context
	})
	return f, err
}

// deleteName deletes a name, if nobody has come to want it or given it another target. The last of several waits until
// containerd has collected what they held.
func (i *Importer) deleteName(ctx context.Context, p *parting, last bool) (f fate, err error) {
	stays := false
	err = i.rewrite(ctx, p.Image, p.labels(), func(now images.Image) error {
		if stays = !(&parting{now, p.ends}).deletes(); stays {
			return nil
		}
		opts := []images.DeleteOpt{images.DeleteTarget(&now.Target)}
		if last {
			opts = append(opts, images.SynchronousDelete())
		}
		err := i.services.images.Delete(ctx, p.Name, opts...)
		if err == nil {
			f = fateDeleted
		}
		return err //nolint:wrapcheck // rewrite adds the context
	})
	if err == nil && stays {
		return i.release(ctx, p)
	}
	return f, err
}
