package importer

import (
	"context"
	"encoding/json"
	"errors"
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
	var undo []func(context.Context) error
	for _, n := range names {
		back, err := s.publishOne(ctx, n, req, r)
		if err == nil {
			undo = append(undo, back)
			continue
		}
		err = fmt.Errorf("publish %q: %w", n.Name, err)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		for _, back := range slices.Backward(undo) {
			if undoErr := back(ctx); undoErr != nil {
				err = errors.Join(err, undoErr)
			}
		}
		return err
	}
	return nil
}

// publishOne creates or updates one name, and returns how to take that back.
func (s *session) publishOne(ctx context.Context, n publication, req Request, r record) (undo func(context.Context) error, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err //nolint:wrapcheck // publish adds the context
	}
	r.Target, r.Reference = n.Target.Digest, n.Reference
	value, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode ownership: %w", err)
	}
	store := s.services.images
	img := images.Image{Name: n.Name, Target: n.Target, Labels: map[string]string{
		ownerLabel(req.Owner): string(value),
		labelManaged:          valueManaged,
	}}
	if req.Pin {
		img.Labels[labelPinned] = valuePinned
	}
	_, err = store.Create(ctx, img)
	if err == nil {
		return func(ctx context.Context) error { return s.unpublish(ctx, img, ownerLabel(req.Owner)) }, nil
	}
	if !errdefs.IsAlreadyExists(err) {
		return nil, runtimeError("create", err)
	}
	old, err := store.Get(ctx, n.Name)
	if err != nil {
		return nil, runtimeError("look up", err)
	}
	if err := refuseConflict(old, n, req); err != nil {
		return nil, err
	}
	return s.update(ctx, old, img, req)
}

// unpublish takes back a name that this session created. Another import may have come to share it meanwhile: then
// only the session's own label goes.
func (s *session) unpublish(ctx context.Context, img images.Image, label string) error {
	now, err := s.services.images.Get(ctx, img.Name)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err == nil {
		delete(now.Labels, label)
		if _, shared := otherOwners(now.Labels, Owner{}); shared {
			img.Labels = map[string]string{label: ""}
			_, err = s.services.images.Update(ctx, img, "labels."+label)
		} else {
			err = s.services.images.Delete(ctx, img.Name, images.DeleteTarget(&img.Target))
		}
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return runtimeError("take back "+img.Name, err)
	}
	return nil
}

// update changes only the keys that are ours: foreign labels stay. A name that moves to another target loses the
// labels of those who wanted the former one, in the same write.
func (s *session) update(ctx context.Context, old, img images.Image, req Request) (undo func(context.Context) error, err error) {
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
		case k == labelPinned && !req.Pin && len(others) == 0 && old.Labels[ownerLabel(req.Owner)] != "":
			img.Labels[k] = ""
		}
	}
	var paths []string
	for _, k := range slices.Sorted(maps.Keys(img.Labels)) {
		paths = append(paths, "labels."+k)
	}
	if old.Target.Digest != img.Target.Digest {
		paths = append([]string{"target"}, paths...)
		held := leases.Resource{ID: old.Target.Digest.String(), Type: "content"}
		if err := s.services.leases.AddResource(ctx, s.lease, held); err != nil && !errdefs.IsNotFound(err) {
			return nil, runtimeError("hold the former image", err)
		}
	}
	if _, err := s.services.images.Update(ctx, img, paths...); err != nil {
		return nil, runtimeError("update", err)
	}
	back := images.Image{Name: old.Name, Target: old.Target, Labels: map[string]string{}}
	for k := range img.Labels {
		back.Labels[k] = old.Labels[k]
	}
	return func(ctx context.Context) error {
		if _, err := s.services.images.Update(ctx, back, paths...); err != nil {
			return runtimeError("take back "+old.Name, err)
		}
		return nil
	}, nil
}
