package ownership

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/importer/daemon"
)

// newest are the names that an owner's newest publishing has left, sorted. Of `agent import`, each run of which adds to the
// same label, it is all that are left of those of the latest run.
func newest(list map[string]images.Image, o Owner) (all []claim) {
	label, serial := o.label(), int64(0)
	for _, img := range list {
		for _, c := range claims(img) {
			if c.label == label {
				all = append(all, c)
				serial = max(serial, c.record.Serial)
			}
		}
	}
	all = slices.DeleteFunc(all, func(c claim) bool { return c.record.Serial != serial })
	slices.SortFunc(all, func(a, b claim) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// Published is what an owner's newest publishing has left.
type Published struct {
	Import Import
	Tags   []Name   // without digest references and ids, sorted, with the targets that they were published with
	Names  []string // all, sorted
	// Lost says in words what is missing: names, targets, content, pins or snapshots. It is empty while all is whole.
	Lost string
}

// maxLosses are told of one publishing, in a sentence for an Event.
const maxLosses = 3

// Published says what an owner has published, and what of it is lost since. No source is opened. It is nil when nothing of
// this owner and spec is there. Names that are gone are not in the result: nothing says any more which they were.
func (o *Ownership) Published(ctx context.Context, owner Owner) (*Published, error) {
	list, err := o.list(ctx)
	if err != nil {
		return nil, err
	}
	all := newest(list, owner)
	if len(all) == 0 || all[0].record.Spec != owner.SpecHash {
		return nil, nil
	}
	r := all[0].record
	p := &Published{Import: Import{r.Source, r.Validator, r.Digest, r.Index, r.Size, r.Snapshotter}}
	var losses []string
	if gone := r.Names - len(all); gone > 0 {
		losses = append(losses, fmt.Sprintf("%d of %d names missing", gone, r.Names))
	}
	checked := map[digest.Digest]string{}
	for _, c := range all {
		p.Names = append(p.Names, c.Name)
		if c.record.Kind == KindTag {
			target := c.Target
			target.Digest = c.record.Target
			p.Tags = append(p.Tags, Name{Name: c.Name, Target: target})
		}
		lost, again, err := o.lost(ctx, c, checked)
		if err != nil {
			return nil, err
		}
		if lost != "" && !again {
			losses = append(losses, c.Name+" "+lost)
		}
	}
	if more := len(losses) - maxLosses; more > 0 {
		losses = append(losses[:maxLosses], fmt.Sprintf("%d more", more))
	}
	p.Lost = strings.Join(losses, ", ")
	return p, nil
}

// lost says what a name, or the image behind it, lacks. Each image is looked at once: again says that its loss was told of
// another name.
func (o *Ownership) lost(ctx context.Context, c claim, checked map[digest.Digest]string) (lost string, again bool, err error) {
	if c.record.Kind == KindID && c.Target.Digest != c.record.Target && o.hasConfig(ctx, c.Target, c.Name) {
		c.record.Target = c.Target.Digest // an image that means the same
	}
	if lost := c.lost(); lost != "" {
		return lost, false, nil
	}
	if lost, again = checked[c.Target.Digest]; again {
		return lost, true, nil
	}
	lost, err = o.check.Lost(ctx, c.Target, c.record.Snapshotter)
	checked[c.Target.Digest] = lost
	return lost, false, err
}

// Repair gives names of an owner what they have lost and can get back without a source: the pin, the mark for the CRI,
// and the former target, if another of the owner's names has kept that whole. It returns how many names it wrote.
func (o *Ownership) Repair(ctx context.Context, owner Owner) (repaired int, err error) {
	list, err := o.list(ctx)
	if err != nil {
		return 0, err
	}
	all := newest(list, owner)
	if len(all) == 0 || all[0].record.Spec != owner.SpecHash {
		return 0, nil
	}
	whole := map[digest.Digest]ocispec.Descriptor{}
	checked := map[digest.Digest]string{}
	for _, c := range all {
		if c.Target.Digest != c.record.Target {
			continue
		}
		if _, ok := checked[c.Target.Digest]; !ok {
			if checked[c.Target.Digest], err = o.check.Lost(ctx, c.Target, c.record.Snapshotter); err != nil {
				return 0, err
			}
		}
		if checked[c.Target.Digest] == "" {
			whole[c.Target.Digest] = c.Target
		}
	}
	for _, c := range all {
		wrote, err := o.repair(ctx, owner, c, whole)
		if err != nil {
			return repaired, fmt.Errorf("repair %q: %w", c.Name, err)
		}
		if wrote {
			repaired++
		}
	}
	return repaired, nil
}

// repair writes what one name has lost. The targets in whole are held by other names.
func (o *Ownership) repair(ctx context.Context, owner Owner, c claim, whole map[digest.Digest]ocispec.Descriptor) (wrote bool, err error) {
	want := map[string]string{labelManaged: valueManaged}
	if c.record.Pinned {
		want[labelPinned] = valuePinned
	}
	err = o.rewrite(ctx, c.Image, []string{c.label}, func(now images.Image) error {
		back, paths := images.Image{Name: c.Name, Labels: want}, []string(nil)
		for _, k := range slices.Sorted(maps.Keys(want)) {
			if now.Labels[k] != want[k] {
				paths = append(paths, "labels."+k)
			}
		}
		if now.Target.Digest != c.record.Target && (c.record.Kind != KindID || !o.hasConfig(ctx, now.Target, c.Name)) {
			var ok bool
			if back.Target, ok = whole[c.record.Target]; !ok || c.record.Found != nil || wantedAsItIs(now, owner) {
				return nil
			}
			paths = append(paths, "target")
		}
		if len(paths) == 0 {
			return nil
		}
		_, err := o.images.Update(ctx, back, paths...)
		wrote = err == nil
		return err //nolint:wrapcheck // rewrite adds the context
	})
	return wrote, err
}

// wantedAsItIs says whether another owner wants a name with the target that it has.
func wantedAsItIs(img images.Image, o Owner) bool {
	return slices.ContainsFunc(others(img, o), func(c claim) bool { return c.record.Target == img.Target.Digest })
}

// rewrite looks at a name and changes it in one step among all that this process does, if it is still there and these labels
// are still what they were.
func (o *Ownership) rewrite(ctx context.Context, was images.Image, labels []string, write func(now images.Image) error) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	now, err := o.images.Get(ctx, was.Name)
	if err == nil {
		if slices.ContainsFunc(labels, func(label string) bool { return now.Labels[label] != was.Labels[label] }) {
			return nil // it is being published again
		}
		err = write(now)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return daemon.Error("change", err)
	}
	return nil
}

// Held is a name that was published, as its newest record says.
type Held struct {
	Name     string
	Kind     Kind
	Owner    string // the ImageArchive, empty for `agent import`
	Unpinned bool   // although it was to be pinned
	Lost     string // what else the name lacks, in words
	Target   ocispec.Descriptor

	snapshotter string
}

// Held lists the names that are there for anybody of us, sorted, and says how many more there were.
func (o *Ownership) Held(ctx context.Context) (held []Held, gone int, err error) {
	list, err := o.list(ctx)
	if err != nil {
		return nil, 0, err
	}
	owners := map[string]Owner{}
	for _, img := range list {
		for _, c := range claims(img) {
			owners[c.label] = c.owner()
		}
	}
	for _, owner := range owners {
		all := newest(list, owner)
		if owner.UID != "" {
			gone += max(all[0].record.Names-len(all), 0)
		}
		for _, c := range all {
			h := Held{Name: c.Name, Kind: c.record.Kind, Owner: c.record.Archive, Target: c.Target, snapshotter: c.record.Snapshotter}
			if h.Unpinned = c.record.Pinned && c.Labels[labelPinned] != valuePinned; !h.Unpinned {
				h.Lost = c.lost()
			}
			held = append(held, h)
		}
	}
	slices.SortFunc(held, func(a, b Held) int { return strings.Compare(a.Name+" "+a.Owner, b.Name+" "+b.Owner) })
	return held, gone, nil
}

// ContentLost says of those names that have lost content or snapshots what, each image once.
func (o *Ownership) ContentLost(ctx context.Context, held []Held) (losses []string, err error) {
	checked := map[digest.Digest]bool{}
	for _, h := range held {
		if checked[h.Target.Digest] {
			continue
		}
		checked[h.Target.Digest] = true
		lost, err := o.check.Lost(ctx, h.Target, h.snapshotter)
		if err != nil {
			return losses, err
		}
		if lost != "" {
			losses = append(losses, h.Name+" "+lost)
		}
	}
	return losses, nil
}
