package importer

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
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
		if err := refuseConflict(old, n, req); err != nil {
			return err
		}
	}
	return nil
}

// refuseConflict protects a name that points elsewhere, unless nobody but this owner stands behind it.
func refuseConflict(old images.Image, n publication, req Request) error {
	others, managed := otherOwners(old.Labels, req.Owner)
	if old.Target.Digest == n.Target.Digest || req.Replace || (managed && len(others) == 0) {
		return nil
	}
	whose := "is not Tarlift's"
	if len(others) > 0 {
		whose = "belongs to another ImageArchive (label " + others[0] + ")"
	}
	return fmt.Errorf("name %q stands for %s on this node and %s; the archive has %s. Rename the image, or allow it to be replaced: %w",
		n.Name, old.Target.Digest, whose, n.Target.Digest, ErrNameConflict)
}

// publish writes the names, each complete, pinned and owned in one write. After an error it takes back what it
// wrote; what the names pointed at before is held by the session's lease meanwhile.
func (s *session) publish(ctx context.Context, names []publication, req Request, r record) error {
	var writes []*nameWrite
	for _, n := range names {
		w := &nameWrite{session: s, label: ownerLabel(req.Owner)}
		writes = append(writes, w) // before it is made: its answer may get lost
		err := ctx.Err()
		if err == nil {
			err = w.make(ctx, n, req, r)
		}
		if err == nil {
			continue
		}
		err = fmt.Errorf("publish %q: %w", n.Name, err)
		for _, w := range slices.Backward(writes) {
			if undoErr := clearUp(ctx, w.takeBack); undoErr != nil {
				err = fmt.Errorf("%w (%v)", err, undoErr) //nolint:errorlint // the first error is the reason
			}
		}
		return err
	}
	return nil
}

// nameWrite is the creation or the change of one name.
type nameWrite struct {
	*session
	label string        // the key of the ownership that it writes
	img   images.Image  // what is written; its Name is empty while nothing is
	old   *images.Image // what was there before, nil for nothing
	paths []string      // what of it changes
}

// make writes a name. A write that has begun is not cancelled, since nobody would know whether it was done.
func (w *nameWrite) make(ctx context.Context, n publication, req Request, r record) error {
	r.Target, r.Reference, r.Lease = n.Target.Digest, n.Reference, w.lease.ID
	value, err := r.encode()
	if err != nil {
		return err
	}
	img := images.Image{Name: n.Name, Target: n.Target, Labels: map[string]string{w.label: value, labelManaged: valueManaged}}
	if req.Pin {
		img.Labels[labelPinned] = valuePinned
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	w.img = img
	_, err = w.services.images.Create(ctx, img)
	if err == nil {
		return nil
	}
	if !errdefs.IsAlreadyExists(err) {
		return runtimeError("create", err)
	}
	w.img = images.Image{}
	old, err := w.services.images.Get(ctx, n.Name)
	if err != nil {
		return runtimeError("look up", err)
	}
	if err := refuseConflict(old, n, req); err != nil {
		return err
	}
	return w.change(ctx, old, img, req)
}

// change alters only the keys that are ours: foreign labels stay. A name that moves to another target loses the
// labels of those who wanted the former one, in the same write.
func (w *nameWrite) change(ctx context.Context, old, img images.Image, req Request) error {
	others, _ := otherOwners(old.Labels, req.Owner)
	for k := range old.Labels {
		_, set := img.Labels[k]
		switch {
		case set:
		case k == importLabel, strings.HasPrefix(k, ownerLabelPrefix):
			// Earlier objects of this name and `agent import` are succeeded by this owner, other owners are not.
			if old.Target.Digest != img.Target.Digest || !slices.Contains(others, k) {
				img.Labels[k] = ""
			}
		case k == labelPinned && !req.Pin && len(others) == 0 && old.Labels[w.label] != "":
			img.Labels[k] = ""
		}
	}
	for _, k := range slices.Sorted(maps.Keys(img.Labels)) {
		w.paths = append(w.paths, "labels."+k)
	}
	if old.Target.Digest != img.Target.Digest {
		w.paths = append(w.paths, "target")
		held := leases.Resource{ID: old.Target.Digest.String(), Type: "content"}
		if err := w.services.leases.AddResource(ctx, w.lease, held); err != nil && !errdefs.IsNotFound(err) {
			return runtimeError("hold the former image", err)
		}
	}
	w.img, w.old = img, &old
	if _, err := w.services.images.Update(ctx, img, w.paths...); err != nil {
		return runtimeError("update", err)
	}
	return nil
}

// takeBack undoes the write, if it took place and nobody has written the name since. Another import may have come to
// share a name that this one created: then only the ownership goes.
func (w *nameWrite) takeBack(ctx context.Context) error {
	if w.img.Name == "" {
		return nil
	}
	err := w.undo(ctx)
	if err != nil && !errdefs.IsNotFound(err) {
		return runtimeError("take back "+w.img.Name, err)
	}
	return nil
}

func (w *nameWrite) undo(ctx context.Context) error {
	now, err := w.services.images.Get(ctx, w.img.Name)
	if err != nil {
		return err //nolint:wrapcheck // takeBack adds the context
	}
	if now.Labels[w.label] != w.img.Labels[w.label] {
		return nil
	}
	back := images.Image{Name: w.img.Name, Target: w.img.Target, Labels: map[string]string{w.label: ""}}
	paths := []string{"labels." + w.label}
	delete(now.Labels, w.label)
	_, shared := otherOwners(now.Labels, Owner{})
	switch {
	case w.old != nil:
		back.Target, paths = w.old.Target, w.paths
		for k := range w.img.Labels {
			back.Labels[k] = w.old.Labels[k]
		}
	case !shared:
		return w.services.images.Delete(ctx, w.img.Name, images.DeleteTarget(&w.img.Target)) //nolint:wrapcheck // as above
	}
	_, err = w.services.images.Update(ctx, back, paths...)
	return err //nolint:wrapcheck // as above
}
