package importer

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
)

// unused says of names to be deleted, in groups by their images, whether they may be, or are in use. What failed is told: the
// fate of those names is unknown.
func (i *Importer) unused(ctx context.Context, list []images.Image, deletions map[string][]*parting) (plan map[string]fate, failures []error) {
	plan = map[string]fate{}
	if len(deletions) == 0 {
		return plan, nil
	}
	used, err := i.usage(ctx, unpackedInto(deletions))
	if err != nil {
		failures = append(failures, err)
	}
	for _, group := range sorted(deletions) {
		f := fateUnknown
		if err == nil && !hopeless(ctx, failures) {
			var failure error
			if f, failure = i.unusedImage(ctx, list, group, used); failure != nil {
				failures = append(failures, failure)
			}
		}
		for _, p := range group {
			plan[p.Name] = f
		}
	}
	return plan, failures
}

// unusedImage is unused for the names of one image. With the last of them goes the one that CRI made for it.
func (i *Importer) unusedImage(ctx context.Context, list []images.Image, group []*parting, used usage) (fate, error) {
	img, err := i.identify(ctx, group[0].Image)
	if err != nil {
		return fateUnknown, err
	}
	for _, other := range list {
		if other.Target.Digest == img.target {
			img.names = append(img.names, other.Name)
		}
	}
	if used.has(img) {
		return fateInUse, nil
	}
	if err := i.deleteCRIName(ctx, list, img, group); err != nil {
		return fateUnknown, err
	}
	return fateDeleted, nil
}

// identified is all that a container may know an image by.
type identified struct {
	target digest.Digest
	config digest.Digest // and top snapshot: empty when the config is not there any more
	chain  digest.Digest
	names  []string
}

func (i *Importer) identify(ctx context.Context, img images.Image) (identified, error) {
	id := identified{target: img.Target.Digest}
	m, _, err := i.manifest(ctx, img.Target)
	if err == nil {
		id.config = m.Config.Digest
		var diffIDs []digest.Digest
		if diffIDs, err = i.diffIDs(ctx, img); len(diffIDs) > 0 {
			id.chain = identity.ChainID(diffIDs)
		}
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return id, err
	}
	return id, nil
}

// criName is the name that CRI makes for an image that it pulls, or meets without a mark of its own.
func (id identified) criName() string { return id.config.String() }

// deleteCRIName deletes CRI's own name of an image all of whose other names go. Before these: then nothing would lead to
// it any more.
func (i *Importer) deleteCRIName(ctx context.Context, list []images.Image, id identified, going []*parting) error {
	k := slices.IndexFunc(list, func(img images.Image) bool { return img.Name == id.criName() })
	if k < 0 {
		return nil
	}
	cri := list[k]
	for _, img := range list {
		goes := slices.ContainsFunc(going, func(p *parting) bool { return p.Name == img.Name })
		if img.Target.Digest == cri.Target.Digest && img.Name != cri.Name && !goes {
			return nil
		}
	}
	if slices.ContainsFunc(slices.Collect(maps.Keys(cri.Labels)), isOwnerLabel) || cri.Labels[labelPinned] != "" {
		return nil
	}
	err := i.services.images.Delete(ctx, cri.Name, images.DeleteTarget(&cri.Target))
	if err != nil && !errdefs.IsNotFound(err) {
		return runtimeError("delete CRI's name "+cri.Name, err)
	}
	return nil
}

// endReplaced deletes the names that CRI made for images whose last other name now stands for another image: they would hold
// the former content until the kubelet's garbage collection. The session's lease holds it still, so that it can be read.
func (s *session) endReplaced(ctx context.Context) error {
	if len(s.replaced) == 0 {
		return nil
	}
	i := s.importer
	list, err := i.services.images.List(ctx)
	if err != nil {
		return runtimeError("list images", err)
	}
	used, err := i.usage(ctx, map[string]bool{})
	if err != nil {
		return err
	}
	for _, old := range s.replaced {
		id, err := i.identify(ctx, old)
		if err != nil {
			return err
		}
		if !used.has(id) {
			if err := i.deleteCRIName(ctx, list, id, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// usage is what of images is in use in this namespace.
type usage struct {
	images    map[string]bool // by the names that containers were made with
	snapshots map[string]bool // that theirs, and those of CRI's volumes, stand on
}

// usage looks into those snapshotters that containers use, and into these.
func (i *Importer) usage(ctx context.Context, snapshotters map[string]bool) (usage, error) {
	u := usage{map[string]bool{}, map[string]bool{}}
	list, err := i.services.containers.List(ctx)
	if err != nil {
		return u, runtimeError("list containers", err)
	}
	for _, c := range list {
		u.images[c.Image] = true
		if c.SnapshotKey != "" {
			snapshotters[c.Snapshotter] = true
		}
	}
	for name := range snapshotters {
		err := i.client.SnapshotService(name).Walk(ctx, func(_ context.Context, info snapshots.Info) error {
			if info.Kind != snapshots.KindCommitted && !strings.HasPrefix(info.Name, snapshots.UnpackKeyPrefix+"-") {
				// With a user namespace it stands on a copy of the image's, <chain>-<uid>-<gid>.
				chain, _, _ := strings.Cut(info.Parent, "-")
				u.snapshots[chain] = true
			}
			return nil
		})
		if err != nil && !errdefs.IsInvalidArgument(err) { // the snapshotter is not there any more
			return u, runtimeError("list snapshots of "+name, err)
		}
	}
	return u, nil
}

// unpackedInto lists the snapshotters that names were unpacked into.
func unpackedInto(groups map[string][]*parting) map[string]bool {
	all := map[string]bool{}
	for _, group := range groups {
		for _, p := range group {
			for _, e := range p.ends {
				if e.record.Snapshotter != "" {
					all[e.record.Snapshotter] = true
				}
			}
		}
	}
	return all
}

// has says whether a container uses an image, by whatever name.
func (u usage) has(id identified) bool {
	for name := range u.images {
		if strings.HasSuffix(name, "@"+id.target.String()) || (id.config != "" && name == id.criName()) || slices.Contains(id.names, name) {
			return true
		}
	}
	return id.chain != "" && u.snapshots[id.chain.String()]
}
