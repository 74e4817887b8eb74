package importer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// publication is one name to be written, and what it points at.
type publication struct {
	Name      string
	Target    ocispec.Descriptor
	Reference bool // a name@digest reference beside another name
}

// names are all that the plan publishes, each once: the images' and, where wanted, their name@digest references.
func (p *Plan) names() []publication {
	var all []publication
	for _, img := range p.Images {
		all = append(all, publication{Name: img.Name, Target: img.target})
	}
	for _, img := range p.Images {
		ref := publication{Name: img.DigestReference, Target: img.target, Reference: true}
		if ref.Name != "" && !slices.ContainsFunc(all, func(n publication) bool { return n.Name == ref.Name }) {
			all = append(all, ref)
		}
	}
	return all
}

// refuseConflicts finds names that must not be taken before anything is moved. publish looks again.
func (s *session) refuseConflicts(ctx context.Context, names []publication, req Request) error {
	for _, n := range names {
		old, err := s.services.images.Get(ctx, n.Name)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return runtimeError("look up image "+n.Name, err)
		}
		if err := refuseConflict(old, n, req, s.ownedAll); err != nil {
			return err
		}
	}
	return nil
}

// ownsAll says whether what an archive publishes now is what its newest import published: then all of these names have been
// its own, also those that somebody has given another digest since and that have lost their labels so.
func (s *session) ownsAll(ctx context.Context, p *Plan, o Owner) (bool, error) {
	newest, err := s.importer.published(ctx, o)
	if err != nil || len(newest) == 0 || o.UID == "" {
		return false, err
	}
	r := newest[0].record
	return r.Spec == o.SpecHash && r.Index == p.IndexDigest && r.Names == len(p.names()), nil
}

// refuseConflict protects a name that points elsewhere, unless nobody but this owner stands behind it. owned says that it is
// known to have been this owner's, even though nothing on the name says so.
func refuseConflict(old images.Image, n publication, req Request, owned bool) error {
	others, managed := otherOwners(old, req.Owner)
	ours := managed || owned || slices.Contains(req.Owned, n.Name)
	if old.Target.Digest == n.Target.Digest || req.Replace || (ours && len(others) == 0) {
		return nil
	}
	whose := "is not Tarlift's"
	if len(others) > 0 {
		whose = "belongs to another ImageArchive (label " + others[0] + ")"
	}
	return fmt.Errorf("name %q stands for %s on this node and %s; the archive has %s. Rename the image, or allow it to be replaced: %w",
		n.Name, old.Target.Digest, whose, n.Target.Digest, ErrNameConflict)
}

// errRaced is a name that somebody else made or deleted after it was looked at.
var errRaced = errors.New("the name was changed at the same time")

// maxRaces bounds how often a publishing begins again because of others. Each time somebody has written a name within
// the milliseconds that it takes.
const maxRaces = 5

// publish writes the names, each complete, pinned and owned in one write. After an error it takes back what it
// wrote; what the names pointed at before is held by the session's lease meanwhile. What several names are to become is
// noted first, so that the next start can finish or undo what a kill interrupts.
func (s *session) publish(ctx context.Context, names []publication, req Request, r record) error {
	for try := 1; ; try++ {
		err := s.publishOnce(ctx, names, req, r)
		if try == maxRaces || !errors.Is(err, errRaced) {
			return err
		}
	}
}

func (s *session) publishOnce(ctx context.Context, names []publication, req Request, r record) error {
	i, in := s.importer, &intent{Label: ownerLabel(req.Owner)}
	newest, err := i.published(ctx, req.Owner)
	if err != nil {
		return err
	}
	r.Serial = 1
	if len(newest) > 0 {
		r.Serial += newest[0].record.Serial
	}
	for _, n := range names {
		w, err := s.intend(ctx, n, req, r)
		if err != nil {
			return fmt.Errorf("publish %q: %w", n.Name, err)
		}
		in.Writes = append(in.Writes, w)
	}
	note, err := s.note(ctx, in)
	if err != nil {
		return err
	}
	if err := s.stillHeld(ctx); err != nil {
		return err
	}
	for k, w := range in.Writes {
		err := ctx.Err()
		if err == nil {
			err = i.write(ctx, s.lease, w)
		}
		if err == nil {
			continue
		}
		err = fmt.Errorf("publish %q: %w", w.Image.Name, err)
		undo := &intent{in.Label, in.Writes[:k+1]} // the answer to the last may have got lost
		if undoErr := clearUp(ctx, func(ctx context.Context) error { return s.undo(ctx, undo, note) }); undoErr != nil {
			err = fmt.Errorf("%w (%v)", err, undoErr) //nolint:errorlint // the first error is the reason
		}
		return err
	}
	for _, w := range in.Writes {
		if w.Old != nil && w.retargets(w.Old.Target) {
			s.replaced = append(s.replaced, *w.Old)
		}
	}
	return nil
}

// stillHeld makes sure that what is about to get names is still held: that nobody has taken this session for dead and dropped
// its lease, and that this has not expired.
func (s *session) stillHeld(ctx context.Context) error {
	if _, err := s.life.renew(ctx); err != nil {
		return err
	}
	left, err := s.importer.services.leases.List(ctx, fmt.Sprintf("id==%q", s.lease.ID))
	if err != nil {
		return runtimeError("look for the lease", err)
	}
	if len(left) == 0 {
		return errors.New("the lease of this import is gone")
	}
	return nil
}

// undo takes back what this session wrote, unless somebody has taken it for dead and dealt with its note already.
func (s *session) undo(ctx context.Context, in *intent, note digest.Digest) error {
	broken, err := s.life.renew(ctx)
	if err != nil && note != "" {
		return err
	}
	if broken && note != "" {
		_, err := s.importer.services.content.Info(ctx, note)
		if errdefs.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return runtimeError("look for what was to be published", err)
		}
	}
	return s.importer.undo(ctx, in, note)
}

// intent is what a publishing is about to do. It lies in the content store, held by the session's lease, until that ends.
type intent struct {
	Label  string       `json:"label"` // the key of the ownership that it writes
	Writes []*nameWrite `json:"writes"`
}

// nameWrite is the creation or the change of one name.
type nameWrite struct {
	Image images.Image  `json:"image"`           // what is written
	Old   *images.Image `json:"old,omitempty"`   // what was there before, nil for nothing
	Paths []string      `json:"paths,omitempty"` // what of it changes
}

// intend decides how a name is to be written, in the light of what is there.
func (s *session) intend(ctx context.Context, n publication, req Request, r record) (*nameWrite, error) {
	r.Name, r.Target, r.Reference, r.Lease = nameKey(n.Name), n.Target.Digest, n.Reference, s.lease.ID
	value, err := r.encode()
	if err != nil {
		return nil, err
	}
	w := &nameWrite{Image: images.Image{
		Name: n.Name, Target: n.Target, Labels: map[string]string{ownerLabel(req.Owner): value, labelManaged: valueManaged},
	}}
	if req.Pin {
		w.Image.Labels[labelPinned] = valuePinned
	}
	old, err := s.services.images.Get(ctx, n.Name)
	switch {
	case errdefs.IsNotFound(err):
		return w, nil
	case err != nil:
		return nil, runtimeError("look up", err)
	}
	if err := refuseConflict(old, n, req, s.ownedAll); err != nil {
		return nil, err
	}
	w.change(old, req)
	return w, nil
}

// change alters only the keys that are ours: foreign labels stay. A name that moves to another target loses the
// labels of those who wanted the former one, in the same write.
func (w *nameWrite) change(old images.Image, req Request) {
	img := w.Image
	others, _ := otherOwners(old, req.Owner)
	for k := range old.Labels {
		_, set := img.Labels[k]
		switch {
		case set:
		case isOwnerLabel(k):
			// Earlier objects of this name and `agent import` are succeeded by this owner, other owners are not.
			if old.Target.Digest != img.Target.Digest || !slices.Contains(others, k) {
				img.Labels[k] = ""
			}
		case k == labelPinned && !req.Pin && len(others) == 0 && old.Labels[ownerLabel(req.Owner)] != "":
			img.Labels[k] = ""
		}
	}
	for _, k := range slices.Sorted(maps.Keys(img.Labels)) {
		w.Paths = append(w.Paths, "labels."+k)
	}
	if w.retargets(old.Target) {
		w.Paths = append(w.Paths, "target")
	}
	w.Old = &old
}

func (w *nameWrite) retargets(old ocispec.Descriptor) bool {
	return old.Digest != w.Image.Target.Digest
}

// written says whether the name is as it was to be.
func (w *nameWrite) written(now images.Image, label string) bool {
	return now.Labels[label] == w.Image.Labels[label] && !w.retargets(now.Target)
}

// write writes a name, in one call. One that has begun is not cancelled, since nobody would know whether it was done.
func (i *Importer) write(ctx context.Context, lease leases.Lease, w *nameWrite) error {
	i.naming.Lock()
	defer i.naming.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	if w.Old == nil {
		_, err := i.services.images.Create(ctx, w.Image)
		if errdefs.IsAlreadyExists(err) {
			return errRaced
		}
		if err != nil {
			return runtimeError("create", err)
		}
		return nil
	}
	if w.retargets(w.Old.Target) {
		held := leases.Resource{ID: w.Old.Target.Digest.String(), Type: "content"}
		if err := i.services.leases.AddResource(ctx, lease, held); err != nil && !errdefs.IsNotFound(err) {
			return runtimeError("hold the former image", err)
		}
	}
	_, err := i.services.images.Update(ctx, w.Image, w.Paths...)
	if errdefs.IsNotFound(err) {
		return errRaced
	}
	if err != nil {
		return runtimeError("update", err)
	}
	return nil
}

// undo takes back what was written of an intent, the last first, and forgets the note of it.
func (i *Importer) undo(ctx context.Context, in *intent, note digest.Digest) error {
	for _, w := range slices.Backward(in.Writes) {
		if err := i.takeBack(ctx, in.Label, w); err != nil && !errdefs.IsNotFound(err) {
			return runtimeError("take back "+w.Image.Name, err)
		}
	}
	return i.forget(ctx, note)
}

// takeBack undoes a write, if it took place. When others have come to share the name meanwhile, only the ownership goes,
// and when somebody has moved it to another target, that stays.
func (i *Importer) takeBack(ctx context.Context, label string, w *nameWrite) error {
	now, err := i.services.images.Get(ctx, w.Image.Name)
	if err != nil {
		return err //nolint:wrapcheck // undo adds the context
	}
	if now.Labels[label] != w.Image.Labels[label] {
		return nil
	}
	var old images.Image
	if w.Old != nil {
		old = *w.Old
	}
	moved, shared := w.retargets(now.Target), w.sharedSince(now, label)
	if w.Old == nil && !moved && !shared {
		return i.services.images.Delete(ctx, w.Image.Name, images.DeleteTarget(&w.Image.Target)) //nolint:wrapcheck // as above
	}
	back, paths := images.Image{Name: w.Image.Name, Target: old.Target, Labels: map[string]string{}}, w.Paths
	for k := range w.Image.Labels {
		back.Labels[k] = old.Labels[k]
	}
	if moved || shared {
		paths = []string{"labels." + label}
		if now.Target.Digest != old.Target.Digest {
			back.Labels[label] = "" // what it said was about the old target
		}
	}
	if moved && !shared {
		paths = append(paths, "labels."+labelPinned)
	}
	_, err = i.services.images.Update(ctx, back, paths...)
	return err //nolint:wrapcheck // as above
}

// sharedSince says whether others than label's owner have written the name since it was looked at.
func (w *nameWrite) sharedSince(now images.Image, label string) bool {
	for k, v := range now.Labels {
		if k != label && isOwnerLabel(k) && (w.Old == nil || w.Old.Labels[k] != v) {
			return true
		}
	}
	return false
}
