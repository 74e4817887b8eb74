package ownership

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/importer/daemon"
)

// ErrNameConflict is a name that exists with another digest and belongs to somebody else.
var ErrNameConflict = errors.New("name exists with another digest")

// Name is one name to be published, and what it stands for.
type Name struct {
	Name   string
	Target ocispec.Descriptor
}

// Claim is what is to be published for an owner.
type Claim struct {
	Owner  Owner
	Names  []Name // each once
	Import Import
	// Pin the images against the kubelet's garbage collection.
	Pin bool
	// Replace names that exist with another digest and belong to somebody else, instead of ErrNameConflict. Of two archives that
	// both do so, the older one keeps the name.
	Replace bool
	// Owned are names that are known to have been published for this owner: those that somebody has given another digest
	// since are taken back, whatever Replace says.
	Owned []string
}

// maxRaces bounds how often publishing begins again because of others. Each time somebody has written a name within the
// milliseconds that it takes.
const maxRaces = 5

// raceWait and the number of the try bound the random pause before the next one, so that two who race do not do so for ever. To
// publish 100 names takes less.
const raceWait = 200 * time.Millisecond

// Claim publishes names, each with its target, its pin and its owner in one write. Before the first write it finds names that
// must not be taken: ErrNameConflict. containerd's update is not conditional and other processes have locks of their own, so
// each name is read back after the last write, and where another process came in between, all is done again.
func (o *Ownership) Claim(ctx context.Context, c Claim) error {
	for try := 1; ; try++ {
		err := o.claimOnce(ctx, c)
		if try == maxRaces || !errors.Is(err, errRaced) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err() //nolint:wrapcheck // the caller's own
		case <-time.After(rand.N(time.Duration(try) * raceWait)): //nolint:gosec // no secret
		}
	}
}

func (o *Ownership) claimOnce(ctx context.Context, c Claim) error {
	p, _, err := o.prepare(ctx, c)
	if err != nil {
		return err
	}
	written := make([]string, len(c.Names))
	for k, n := range c.Names {
		if written[k], err = p.publish(ctx, n); err != nil {
			return fmt.Errorf("publish %q: %w", n.Name, err)
		}
	}
	for k, n := range c.Names {
		img, err := o.images.Get(ctx, n.Name)
		if errdefs.IsNotFound(err) || err == nil && p.mark(img.Target, img.Labels) != written[k] {
			err = errRaced
		}
		if err != nil {
			return fmt.Errorf("publish %q: %w", n.Name, daemon.Error("read back", err))
		}
	}
	return nil
}

// Change is what Claim would do to a name.
type Change struct {
	Name   string        `json:"name"`
	Change NameChange    `json:"change"`
	Now    digest.Digest `json:"now,omitempty"` // what it stands for, if anything
}

// NameChange says what would become of a name.
type NameChange string

// What may become of a name.
const (
	NameNew      NameChange = "new"      // nothing has it yet
	NameKept     NameChange = "kept"     // it stands for this image already
	NameMoved    NameChange = "moved"    // it stands for another image, and may be moved
	NameConflict NameChange = "conflict" // it stands for another image, and would not be taken
)

// Changes says for each name what Claim would do. Nothing is written. The error is also the first ErrNameConflict, if there
// is any; the changes are complete then.
func (o *Ownership) Changes(ctx context.Context, c Claim) ([]Change, error) {
	_, all, err := o.prepare(ctx, c)
	return all, err
}

// publishing is a claim in the light of what is there.
type publishing struct {
	*Ownership
	Claim
	record ownershipRecord // without what differs from name to name
	// ownsAll: what is published now is what the owner's newest import published. Then all of these names have been its own,
	// also those that somebody has given another digest since and that have lost their labels so.
	ownsAll bool
}

// maxRecordedSource in bytes keeps the whole record below containerd's bound, even if each byte is escaped in six.
const maxRecordedSource = 400

// prepare reads all names before the first write. Its error is also the first conflict.
func (o *Ownership) prepare(ctx context.Context, c Claim) (p *publishing, all []Change, conflict error) {
	names, owners, err := o.list(ctx)
	if err != nil {
		return nil, nil, err
	}
	if len(c.Import.Source) > maxRecordedSource {
		c.Import.Source = strings.ToValidUTF8(c.Import.Source[:maxRecordedSource], "")
	}
	p = &publishing{Ownership: o, Claim: c, record: ownershipRecord{
		Archive: c.Owner.Name, Created: max(0, c.Owner.Created.Unix()), Spec: c.Owner.SpecHash, Serial: 1, Names: len(c.Names),
		Pinned: c.Pin, Replace: c.Replace, Deletion: c.Owner.Deletion, Import: c.Import,
	}}
	if before := owners[c.Owner.label()]; before != nil {
		r := before.newest[0].record
		same := r.Spec == p.record.Spec && r.Index == p.record.Index && r.Names == p.record.Names
		p.record.Serial = r.Serial
		if !same { // a repetition that fails on its way, or two at a time, add to what is there
			p.record.Serial++
		}
		p.ownsAll = c.Owner.UID != "" && same
	}
	for _, n := range c.Names {
		change := Change{Name: n.Name, Change: NameNew}
		if now, ok := names[n.Name]; ok {
			change.Change, change.Now = NameKept, now.Target.Digest
			if change.Now != n.Target.Digest {
				change.Change = NameMoved
			}
			if err := p.conflict(now, n); err != nil {
				change.Change, conflict = NameConflict, cmp.Or(conflict, err)
			}
		}
		all = append(all, change)
	}
	return p, all, conflict
}

// conflict protects a name that stands for something else, unless nobody but this owner stands behind it. The id of an image
// is no conflict: it means its config, which several manifests may share.
func (p *publishing) conflict(now images.Image, n Name) error {
	if now.Target.Digest == n.Target.Digest || isID(n.Name) {
		return nil
	}
	all := claims(now)
	rival := slices.IndexFunc(all, func(c claim) bool {
		return !c.succeededBy(p.Owner) && c.record.Target != n.Target.Digest && (!p.Replace || c.record.Replace && c.record.older(p.record))
	})
	whose, remedy := "", "rename the image (spec.images.rename) or let it be replaced (spec.conflictPolicy: Replace)"
	switch {
	case rival >= 0 && p.Replace:
		whose = "belongs to " + all[rival].holder() + ", which is older and replaces names as well"
		remedy = "rename one of the images (spec.images.rename)"
	case p.Replace:
		return nil
	case rival >= 0:
		whose = "belongs to " + all[rival].holder()
	case slices.ContainsFunc(all, claim.wasFound):
		whose = "was there before"
	case len(all) == 0 && !p.ownsAll && !slices.Contains(p.Owned, n.Name):
		whose = "was not published by Tarlift"
	default:
		return nil
	}
	return fmt.Errorf("name %q stands for %s on this node and %s; the archive has %s: %s: %w",
		n.Name, now.Target.Digest, whose, n.Target.Digest, remedy, ErrNameConflict)
}

// holder names the owner of a claim.
func (c claim) holder() string {
	return fmt.Sprintf("ImageArchive %q", cmp.Or(c.record.Archive, c.owner().UID))
}

// wasFound says whether a name was there, and somebody else's, before the first claim on it.
func (c claim) wasFound() bool { return c.record.Found != nil }

// older orders archives by when they were made, those of the same second by name.
func (r ownershipRecord) older(than ownershipRecord) bool {
	return cmp.Or(cmp.Compare(r.Created, than.Created), cmp.Compare(r.Archive, than.Archive)) < 0
}

// publish writes one name, and returns the mark of what it has written.
func (p *publishing) publish(ctx context.Context, n Name) (mark string, err error) {
	err = p.change(ctx, n.Name, func(now *images.Image) (*edit, error) {
		if now != nil {
			keeps, err := p.keepsID(ctx, n, *now)
			if err != nil {
				return nil, err
			}
			if keeps || now.Target.Digest == n.Target.Digest {
				n.Target = now.Target // written all the same: another process may have moved it since, and the record names this one
			}
			if err := p.conflict(*now, n); err != nil {
				return nil, err
			}
		}
		e := p.edit(n, now)
		mark = p.mark(e.target, e.labels)
		return e, nil
	})
	return mark, err
}

// mark tells apart what this owner and others have written to a name.
func (p *publishing) mark(target ocispec.Descriptor, labels map[string]string) string {
	return target.Digest.String() + labels[p.Owner.label()]
}

// keepsID says whether an id stays with the image that it stands for, which somebody else has brought: it means the same and is
// whole. One that has lost content would count as our loss, and each import would leave it so. An id that only this owner has
// brought follows the archive: it would else keep a former version of the image, of which no other name is left.
func (p *publishing) keepsID(ctx context.Context, n Name, now images.Image) (bool, error) {
	if !isID(n.Name) || now.Target.Digest == n.Target.Digest || !p.hasConfig(ctx, now.Target, n.Name) {
		return false, nil
	}
	all := claims(now)
	others := slices.ContainsFunc(all, func(c claim) bool {
		return !c.succeededBy(p.Owner) || c.record.Target != now.Target.Digest || c.wasFound()
	})
	if len(all) > 0 && !others {
		return false, nil
	}
	lost, err := p.check.Lost(ctx, now.Target, p.record.Snapshotter)
	return err == nil && lost == "", err
}

// edit is how a name is to be written that is now so, nil for none. Claims of others end where the name moves away from their
// targets. What was replaced is not restored.
func (p *publishing) edit(n Name, now *images.Image) *edit {
	r := p.record
	r.Name, r.Target, r.Found = nameKey(n.Name), n.Target.Digest, nil
	e := &edit{target: n.Target, labels: map[string]string{labelManaged: valueManaged}}
	if now != nil {
		moved, ours := now.Target.Digest != r.Target, false
		for k := range now.Labels {
			if isLabel(k) {
				e.labels[k] = ""
			}
		}
		all := claims(*now)
		staying := []claim{{record: r}}
		for _, c := range all {
			if !c.succeededBy(p.Owner) && !c.record.Released && (!moved || c.record.Target == r.Target) {
				delete(e.labels, c.label)
				staying = append(staying, c)
			}
			if !moved && c.record.Target == r.Target {
				ours = true
				r.Found = cmp.Or(r.Found, c.record.Found)
			}
		}
		if !moved && !ours { // nobody of us has published what is there
			r.Found = &found{Pinned: now.Labels[labelPinned] == valuePinned && !slices.ContainsFunc(all, claim.pinned)}
		}
		if unpins(all, staying, r.Found != nil && r.Found.Pinned) {
			e.labels[labelPinned] = ""
		}
	}
	if r.Pinned {
		e.labels[labelPinned] = valuePinned
	}
	e.labels[p.Owner.label()] = r.encode()
	return e
}

// hasConfig says whether an image has this config.
func (o *Ownership) hasConfig(ctx context.Context, target ocispec.Descriptor, id string) bool {
	m, _, err := o.check.Manifest(ctx, target)
	return err == nil && strings.EqualFold(m.Config.Digest.String(), id)
}
