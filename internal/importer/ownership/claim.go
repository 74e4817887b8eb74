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
	Kind   Kind
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

// errRaced is a name that somebody else has written at the same time.
var errRaced = errors.New("the name was changed at the same time")

// maxRaces bounds how often publishing begins again because of others. Each time somebody has written a name within the
// milliseconds that it takes.
const maxRaces = 5

// raceWait and the number of the try bound the random pause before the next one, so that two who race do not do so for ever. To
// publish 100 names takes less.
const raceWait = 200 * time.Millisecond

// writeTimeout bounds a write that must not be cancelled, which takes containerd milliseconds.
const writeTimeout = 20 * time.Second

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
	record record
	// ownsAll: what is published now is what the owner's newest import published. Then all of these names have been its own,
	// also those that somebody has given another digest since and that have lost their labels so.
	ownsAll bool
}

// prepare reads all names before the first write. Its error is also the first conflict.
func (o *Ownership) prepare(ctx context.Context, c Claim) (p *publishing, all []Change, conflict error) {
	list, err := o.list(ctx)
	if err != nil {
		return nil, nil, err
	}
	p = &publishing{Ownership: o, Claim: c, record: newRecord(c.Owner, c.Import)}
	p.record.Names, p.record.Pinned, p.record.Replace, p.record.Serial = len(c.Names), c.Pin, c.Replace, 1
	if newest, _ := split(byOwner(list)[c.Owner.label()]); len(newest) > 0 {
		r := newest[0].record
		same := r.Spec == p.record.Spec && r.Index == p.record.Index && r.Names == p.record.Names
		p.record.Serial = r.Serial
		if !same { // a repetition that fails on its way, or two at a time, add to what is there
			p.record.Serial++
		}
		p.ownsAll = c.Owner.UID != "" && same
	}
	for _, n := range c.Names {
		change := Change{Name: n.Name, Change: NameNew}
		if old, ok := list[n.Name]; ok {
			refused := p.conflict(old, n)
			if conflict == nil {
				conflict = refused
			}
			switch change.Now = old.Target.Digest; {
			case refused != nil:
				change.Change = NameConflict
			case change.Now != n.Target.Digest:
				change.Change = NameMoved
			default:
				change.Change = NameKept
			}
		}
		all = append(all, change)
	}
	return p, all, conflict
}

func (o *Ownership) list(ctx context.Context) (map[string]images.Image, error) {
	list, err := o.images.List(ctx)
	if err != nil {
		return nil, daemon.Error("list images", err)
	}
	all := make(map[string]images.Image, len(list))
	for _, img := range list {
		all[img.Name] = img
	}
	return all, nil
}

func (o *Ownership) claimOnce(ctx context.Context, c Claim) error {
	p, _, err := o.prepare(ctx, c)
	if err != nil {
		return err
	}
	label := c.Owner.label()
	mark := func(img images.Image) string { return img.Target.Digest.String() + img.Labels[label] }
	written := make([]string, len(c.Names))
	for k, n := range c.Names {
		if err := ctx.Err(); err != nil {
			return err //nolint:wrapcheck // the caller's own
		}
		img, err := p.write(ctx, n)
		if err != nil {
			return fmt.Errorf("publish %q: %w", n.Name, err)
		}
		written[k] = mark(img)
	}
	for k, n := range c.Names {
		img, err := o.images.Get(ctx, n.Name)
		if err == nil && mark(img) != written[k] || errdefs.IsNotFound(err) {
			err = errRaced
		}
		if err != nil {
			return fmt.Errorf("publish %q: %w", n.Name, daemon.Error("read back", err))
		}
	}
	return nil
}

// conflict protects a name that stands for something else, unless nobody but this owner stands behind it. The id of an image
// is no conflict: it means its config, which several manifests may share.
func (p *publishing) conflict(old images.Image, n Name) error {
	if old.Target.Digest == n.Target.Digest || n.Kind == KindID {
		return nil
	}
	rest := others(old, p.Owner)
	if p.Replace {
		return p.contested(n.Name, rest)
	}
	all := claims(old)
	foreign := slices.ContainsFunc(all, func(c claim) bool { return c.record.Found != nil })
	ours := len(all) > 0 || p.ownsAll || slices.Contains(p.Owned, n.Name)
	if ours && !foreign && len(rest) == 0 {
		return nil
	}
	whose := "was not published by Tarlift"
	switch {
	case len(rest) > 0:
		whose = "belongs to " + rest[0].holder()
	case foreign:
		whose = "was there before"
	}
	return fmt.Errorf("name %q stands for %s on this node and %s; the archive has %s: "+
		"rename the image (spec.images.rename) or let it be replaced (spec.conflictPolicy: Replace): %w",
		n.Name, old.Target.Digest, whose, n.Target.Digest, ErrNameConflict)
}

// holder names the owner of a claim.
func (c claim) holder() string {
	if c.record.Archive == "" {
		return "the owner of label " + c.label
	}
	return fmt.Sprintf("ImageArchive %q", c.record.Archive)
}

// contested refuses a name that an older archive has, which replaces others' names too: they would take it from each other for ever.
func (p *publishing) contested(name string, rest []claim) error {
	for _, c := range rest {
		if c.record.Replace && c.record.older(p.record) {
			return fmt.Errorf("name %q: this archive and %s, which is older, have different images of that name, "+
				"and both replace the other's (spec.conflictPolicy: Replace): rename one (spec.images.rename): %w",
				name, c.holder(), ErrNameConflict)
		}
	}
	return nil
}

// older orders archives by when they were made, those of the same second by name.
func (r record) older(than record) bool {
	return cmp.Or(cmp.Compare(r.Created, than.Created), cmp.Compare(r.Archive, than.Archive)) < 0
}

// write reads a name, decides, and writes it, as one step. A write that has started is not cancelled, since nobody would
// know whether it was done.
func (p *publishing) write(ctx context.Context, n Name) (images.Image, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	old, err := p.images.Get(ctx, n.Name)
	switch {
	case errdefs.IsNotFound(err):
		img := p.image(n, nil)
		if _, err = p.images.Create(ctx, img); errdefs.IsAlreadyExists(err) {
			return img, errRaced
		}
		return img, daemon.Error("create", err)
	case err != nil:
		return images.Image{}, daemon.Error("look up", err)
	}
	if n.Kind == KindID && old.Target.Digest != n.Target.Digest && !p.broughtAlone(old) && p.hasConfig(ctx, old.Target, n.Name) {
		lost, err := p.check.Lost(ctx, old.Target, p.Import.Snapshotter)
		if err != nil {
			return images.Image{}, err
		}
		if lost == "" { // else it would count as our loss, and each import would leave it so
			n.Target = old.Target // as good as ours
		}
	}
	if err := p.conflict(old, n); err != nil {
		return images.Image{}, err
	}
	img := p.image(n, &old)
	if old.Target.Digest == img.Target.Digest { // written all the same: another process may have moved it since, and the record names this one
		img.Target = old.Target
	}
	switch err := p.update(ctx, img); {
	case errdefs.IsNotFound(err):
		return img, errRaced
	case err != nil:
		return img, daemon.Error("update", err)
	}
	return img, nil
}

// broughtAlone says whether nobody but this owner has brought a name with the target that it has: an id would else keep a
// former version of the image, of which no other name is left.
func (p *publishing) broughtAlone(old images.Image) bool {
	all := claims(old)
	return len(all) > 0 && !slices.ContainsFunc(all, func(c claim) bool {
		return !c.succeededBy(p.Owner) || c.record.Target != old.Target.Digest || c.record.Found != nil
	})
}

// image is how a name is to be written. Of the labels that are there only ours change: each of those in the result, to "" for
// one that goes.
func (p *publishing) image(n Name, old *images.Image) images.Image {
	r := p.record
	r.Name, r.Target, r.Kind = nameKey(n.Name), n.Target.Digest, n.Kind
	img := images.Image{Name: n.Name, Target: n.Target, Labels: map[string]string{labelManaged: valueManaged}}
	if p.Pin {
		img.Labels[labelPinned] = valuePinned
	}
	if old != nil {
		p.succeed(&img, &r, *old)
	}
	img.Labels[p.Owner.label()] = r.encode()
	return img
}

// succeed takes over what is there of a name.
func (p *publishing) succeed(img *images.Image, r *record, old images.Image) {
	moved := old.Target.Digest != img.Target.Digest
	stays := map[string]bool{} // labels of claims that go on
	pinnedByUs, pinWanted := false, p.Pin
	ours := false // somebody of us has published what is there
	for _, c := range claims(old) {
		pinnedByUs = pinnedByUs || c.record.Pinned
		if !moved && !c.succeededBy(p.Owner) {
			stays[c.label] = true
			pinWanted = pinWanted || c.record.Pinned
		}
		if c.record.Target == old.Target.Digest {
			ours = true
			if r.Found == nil {
				r.Found = c.record.Found
			}
		}
	}
	pinned := old.Labels[labelPinned] == valuePinned
	switch {
	case moved:
		r.Found = nil // what was replaced is not restored
	case !ours:
		r.Found = &found{Pinned: pinned && !pinnedByUs}
	}
	for k := range old.Labels {
		if isLabel(k) && !stays[k] {
			img.Labels[k] = ""
		}
	}
	if pinned && pinnedByUs && !pinWanted && (r.Found == nil || !r.Found.Pinned) {
		img.Labels[labelPinned] = ""
	}
}

// hasConfig says whether an image has this config.
func (o *Ownership) hasConfig(ctx context.Context, target ocispec.Descriptor, id string) bool {
	m, _, err := o.check.Manifest(ctx, target)
	return err == nil && strings.EqualFold(m.Config.Digest.String(), id)
}
