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

	"github.com/tarlift/tarlift/internal/importer/check"
	"github.com/tarlift/tarlift/internal/importer/daemon"
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
	content := o.newContentCheck()
	for _, c := range all {
		p.Names = append(p.Names, c.Name)
		if c.record.Kind == KindTag {
			target := c.Target
			target.Digest = c.record.Target
			p.Tags = append(p.Tags, Name{Name: c.Name, Target: target})
		}
		c = o.sameID(ctx, c)
		lost, again := c.lost(), false
		if lost == "" {
			if lost, again, err = content.lost(ctx, c); err != nil {
				return nil, err
			}
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

// sameID is a claim on an id as if it had been made with the image that the id stands for, where that means the same.
func (o *Ownership) sameID(ctx context.Context, c claim) claim {
	if c.record.Kind == KindID && c.Target.Digest != c.record.Target && o.hasConfig(ctx, c.Target, c.Name) {
		c.record.Target = c.Target.Digest
	}
	return c
}

// newest are the claims of an owner's newest publishing, none if that was of another spec.
func (o *Ownership) newest(ctx context.Context, owner Owner) ([]claim, error) {
	list, err := o.list(ctx)
	if err != nil {
		return nil, err
	}
	newest, _ := split(byOwner(list)[owner.label()])
	if len(newest) > 0 && newest[0].record.Spec != owner.SpecHash {
		return nil, nil
	}
	return newest, nil
}

// contentCheck examines the content and the snapshots of each image once.
type contentCheck struct {
	checker check.Checker
	checked map[digest.Digest]string
}

func (o *Ownership) newContentCheck() contentCheck {
	return contentCheck{o.check, map[digest.Digest]string{}}
}

// lost says what the image behind a name lacks; again, that another name had the same image.
func (k contentCheck) lost(ctx context.Context, c claim) (lost string, again bool, err error) {
	if lost, again = k.checked[c.Target.Digest]; !again {
		lost, err = k.checker.Lost(ctx, c.Target, c.record.Snapshotter)
		k.checked[c.Target.Digest] = lost
	}
	return lost, again, err
}

// Repair gives names of an owner what they have lost and can get back without a source: the pin, the mark for the CRI,
// and the former target, if another of the owner's names has kept that whole. It returns how many names it wrote.
func (o *Ownership) Repair(ctx context.Context, owner Owner) (repaired int, err error) {
	all, err := o.newest(ctx, owner)
	if err != nil {
		return 0, err
	}
	whole := map[digest.Digest]ocispec.Descriptor{}
	content := o.newContentCheck()
	for _, c := range all {
		if c.Target.Digest != c.record.Target {
			continue
		}
		lost, _, err := content.lost(ctx, c)
		if err != nil {
			return 0, err
		}
		if lost == "" {
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
	err = o.rewrite(ctx, c.Image, []string{c.label}, func(now images.Image) error {
		back := images.Image{Name: c.Name, Labels: map[string]string{}}
		if c.record.Pinned && now.Labels[labelPinned] != valuePinned {
			back.Labels[labelPinned] = valuePinned
		}
		if now.Labels[labelManaged] != valueManaged {
			back.Labels[labelManaged] = valueManaged
		}
		if now.Target.Digest != c.record.Target && (c.record.Kind != KindID || !o.hasConfig(ctx, now.Target, c.Name)) {
			var ok bool
			if back.Target, ok = whole[c.record.Target]; !ok || c.record.Found != nil || wantedAsItIs(now, owner) {
				return nil
			}
		} else if len(back.Labels) == 0 {
			return nil
		}
		err := o.update(ctx, back)
		wrote = err == nil
		return err
	})
	return wrote, err
}

// wantedAsItIs says whether another owner wants a name with the target that it has.
func wantedAsItIs(img images.Image, o Owner) bool {
	return slices.ContainsFunc(others(img, o), func(c claim) bool { return c.record.Target == img.Target.Digest })
}

// rewrite reads a name and changes it in one step among all that this process does, if it is still there and these labels
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

// update writes those labels of a name that are given, "" for one that goes, and its target if that is given.
func (o *Ownership) update(ctx context.Context, img images.Image) error {
	var paths []string
	for _, k := range slices.Sorted(maps.Keys(img.Labels)) {
		paths = append(paths, "labels."+k)
	}
	if img.Target.Digest != "" {
		paths = append(paths, "target")
	}
	_, err := o.images.Update(ctx, img, paths...)
	return err //nolint:wrapcheck // the caller adds the context
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
	list, err := o.list(ctx)
	if err != nil {
		return nil, 0, err
	}
	for _, mine := range byOwner(list) {
		all, _ := split(mine)
		if all[0].label != labelImport {
			gone += max(all[0].record.Names-len(all), 0)
		}
		for _, c := range all {
			c = o.sameID(ctx, c)
			h := Held{Name: c.Name, Target: c.Target, claim: c}
			if h.Unpinned = c.record.Pinned && c.Labels[labelPinned] != valuePinned; !h.Unpinned {
				h.Lost = c.lost()
			}
			held = append(held, h)
		}
	}
	slices.SortFunc(held, func(a, b Held) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.claim.label, b.claim.label))
	})
	return held, gone, nil
}

// ContentLost says of those names that have lost content or snapshots what, each image once.
func (o *Ownership) ContentLost(ctx context.Context, held []Held) (losses []string, err error) {
	content := o.newContentCheck()
	for _, h := range held {
		lost, again, err := content.lost(ctx, h.claim)
		if err != nil {
			return losses, err
		}
		if lost != "" && !again {
			losses = append(losses, h.Name+" "+lost)
		}
	}
	return losses, nil
}
