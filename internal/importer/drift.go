package importer

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive"
)

// published is a name with the record of an owner's publishing.
type published struct {
	images.Image
	record record
}

// published returns the names that an owner's newest publishing has left, sorted.
func (i *Importer) published(ctx context.Context, o Owner) (newest []published, err error) {
	label := ownerLabel(o)
	list, err := i.services.images.List(ctx, fmt.Sprintf("labels.%q", label))
	if err != nil {
		return nil, runtimeError("list images", err)
	}
	var last publishing
	for _, img := range list {
		var r record
		if json.Unmarshal([]byte(img.Labels[label]), &r) == nil && r.of(img.Name) {
			newest = append(newest, published{img, r})
			last.see(r, o)
		}
	}
	newest = slices.DeleteFunc(newest, func(p published) bool { return !last.has(p.record) })
	slices.SortFunc(newest, func(a, b published) int { return cmp.Compare(a.Name, b.Name) })
	return newest, nil
}

// maxLosses are told of one import, in a sentence for an Event.
const maxLosses = 3

// Imported says whether an owner's import was published, and what it has lost since: every name with its target, its
// content, its pin and its snapshots. No source is opened. The loss is empty while all is whole; found is false when
// nothing of this owner and spec is there. Names that are gone are not in the result: nothing says any more which they were.
func (i *Importer) Imported(ctx context.Context, o Owner) (result Result, loss string, found bool, err error) {
	ctx = i.in(ctx)
	newest, err := i.published(ctx, o)
	if err != nil || len(newest) == 0 || newest[0].record.Spec != o.SpecHash {
		return Result{}, "", false, err
	}
	r := newest[0].record
	result = Result{Digest: r.Digest, IndexDigest: r.Index, Size: r.Size, Validator: r.Validator}
	var losses []string
	if gone := r.Names - len(newest); gone > 0 {
		losses = append(losses, fmt.Sprintf("%d of %d names missing", gone, r.Names))
	}
	checked := map[digest.Digest]string{}
	for _, p := range newest {
		result.Names = append(result.Names, p.Name)
		if !p.record.Reference {
			result.Images = append(result.Images, Image{Name: p.Name, Digest: p.record.Target})
		}
		lost := p.lost()
		if lost == "" {
			known := false
			if lost, known = checked[p.Target.Digest]; !known {
				if lost, err = i.contentLost(ctx, p); err != nil {
					return Result{}, "", false, err
				}
				checked[p.Target.Digest] = lost
			} else if lost != "" {
				continue // said of another name
			}
		}
		if lost != "" {
			losses = append(losses, p.Name+" "+lost)
		}
	}
	if more := len(losses) - maxLosses; more > 0 {
		losses = append(losses[:maxLosses], fmt.Sprintf("%d more", more))
	}
	return result, strings.Join(losses, ", "), true, nil
}

// lost says what the name itself lacks.
func (p published) lost() string {
	switch {
	case p.Target.Digest != p.record.Target:
		return fmt.Sprintf("stands for %s instead of %s", p.Target.Digest, p.record.Target)
	case p.record.Pinned && p.Labels[labelPinned] != valuePinned:
		return "is not pinned"
	case p.Labels[labelManaged] != valueManaged:
		return "is not marked as complete for the CRI"
	}
	return ""
}

// contentLost says what is missing of an image's content and snapshots.
func (i *Importer) contentLost(ctx context.Context, p published) (string, error) {
	missing, err := i.missing(ctx, p.Target)
	if err != nil {
		return "", err
	}
	m, manifest, err := i.manifest(ctx, p.Target)
	if errdefs.IsNotFound(err) && len(missing) == 0 { // it has gone since
		return "lacks " + p.Target.Digest.String(), nil
	}
	if errdefs.IsNotFound(err) || slices.ContainsFunc(missing, func(d ocispec.Descriptor) bool { return d.Digest == m.Config.Digest }) {
		return "lacks " + missing[0].Digest.String(), nil
	}
	if err != nil {
		return "", err
	}
	unpacked := false
	if p.record.Snapshotter != "" {
		if unpacked, err = i.unpacked(ctx, p); err != nil || !unpacked {
			return "is not unpacked", err
		}
	}
	for _, d := range missing {
		held, err := i.holds(ctx, manifest, d.Digest)
		if err != nil || held || !unpacked {
			return "lacks " + d.Digest.String(), err
		}
	}
	return "", nil
}

// manifest is the one that the CRI would choose of an image, and its digest.
func (i *Importer) manifest(ctx context.Context, target ocispec.Descriptor) (ocispec.Manifest, digest.Digest, error) {
	seen := &manifestProvider{fetch: func(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
		return i.readBlob(ctx, d.Digest, archive.MaxConfigBytes)
	}}
	m, err := images.Manifest(ctx, seen, target, platforms.Only(i.platform))
	if err != nil {
		return m, "", runtimeError("read manifest of "+target.Digest.String(), err)
	}
	return m, seen.manifest, nil
}

// holds says whether a manifest keeps a layer from being collected. Nodes that discard unpacked layers take that away
// before the layer goes; a layer that is gone although it was held was lost.
func (i *Importer) holds(ctx context.Context, manifest, layer digest.Digest) (bool, error) {
	info, err := i.services.content.Info(ctx, manifest)
	if err != nil {
		return false, runtimeError("look up manifest "+manifest.String(), err)
	}
	for k, v := range info.Labels {
		if strings.HasPrefix(k, gcContentLabel) && v == layer.String() {
			return true, nil
		}
	}
	return false, nil
}

// unpacked says whether an image's snapshots are where its record says. Its config is there.
func (i *Importer) unpacked(ctx context.Context, p published) (bool, error) {
	diffIDs, err := i.diffIDs(ctx, p.Image)
	if err != nil || len(diffIDs) == 0 {
		return true, err
	}
	_, err = i.client.SnapshotService(p.record.Snapshotter).Stat(ctx, identity.ChainID(diffIDs).String())
	if errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) { // the snapshotter is not there any more
		return false, nil
	}
	if err != nil {
		return false, runtimeError("look up snapshot", err)
	}
	return true, nil
}

func (i *Importer) diffIDs(ctx context.Context, img images.Image) ([]digest.Digest, error) {
	diffIDs, err := client.NewImageWithPlatform(i.client, img, platforms.Only(i.platform)).RootFS(ctx)
	if err != nil {
		return nil, runtimeError("read config of "+img.Target.Digest.String(), err)
	}
	return diffIDs, nil
}

// Repair gives names of an owner what they have lost and can get back without a source: the pin, the mark for the CRI,
// and the former target, if another of the owner's names has kept that whole. It returns how many names it wrote.
func (i *Importer) Repair(ctx context.Context, o Owner) (repaired int, err error) {
	ctx = i.in(ctx)
	newest, err := i.published(ctx, o)
	if err != nil || len(newest) == 0 || newest[0].record.Spec != o.SpecHash {
		return 0, err
	}
	targets := map[digest.Digest]ocispec.Descriptor{}
	for _, p := range newest {
		if p.Target.Digest != p.record.Target {
			continue
		}
		lost, err := i.contentLost(ctx, p)
		if err != nil {
			return 0, err
		}
		if lost == "" {
			targets[p.Target.Digest] = p.Target
		}
	}
	for _, p := range newest {
		wrote, err := i.repair(ctx, o, p, targets)
		if err != nil {
			return repaired, fmt.Errorf("repair %q: %w", p.Name, err)
		}
		if wrote {
			repaired++
		}
	}
	return repaired, nil
}

// repair writes what one name has lost. targets are whole, and held by other names.
func (i *Importer) repair(ctx context.Context, o Owner, p published, targets map[digest.Digest]ocispec.Descriptor) (wrote bool, err error) {
	want := map[string]string{labelManaged: valueManaged}
	if p.record.Pinned {
		want[labelPinned] = valuePinned
	}
	err = i.rewrite(ctx, p.Image, []string{ownerLabel(o)}, func(now images.Image) error {
		back, paths := images.Image{Name: p.Name, Labels: want}, []string(nil)
		for k, v := range want {
			if now.Labels[k] != v {
				paths = append(paths, "labels."+k)
			}
		}
		if now.Target.Digest != p.record.Target {
			var whole bool
			if back.Target, whole = targets[p.record.Target]; !whole || claimed(now, o) {
				return nil
			}
			paths = append(paths, "target")
		}
		if len(paths) == 0 {
			return nil
		}
		_, err := i.services.images.Update(ctx, back, paths...)
		wrote = err == nil
		return err //nolint:wrapcheck // rewrite adds the context
	})
	return wrote, err
}

// claimed says whether another owner wants a name as it is now.
func claimed(img images.Image, o Owner) bool {
	others, _ := otherOwners(img, o)
	return slices.ContainsFunc(others, func(label string) bool {
		return readRecord(img, label).Target == img.Target.Digest
	})
}
