package importer

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
)

const (
	// ownerLabelPrefix and an ImageArchive's UID make the label that says an image is there for it. There is one
	// such label an archive, so that archives may share an image.
	ownerLabelPrefix = "tarlift.dev/archive."
	// importLabel says that `agent import` brought the image. The first ImageArchive that wants it takes it over.
	importLabel = "tarlift.dev/import"

	// labelPinned keeps the kubelet's garbage collection away, labelManaged tells the CRI that the image is
	// complete in its eyes: without it the CRI answers each image event with a write of its own.
	// Both are constants of containerd's internal/cri/labels.
	labelPinned  = "io.cri-containerd.pinned"
	valuePinned  = "pinned"
	labelManaged = "io.cri-containerd.image"
	valueManaged = "managed"

	defaultSnapshotterLabel = defaults.DefaultSnapshotterNSLabel
	defaultSnapshotter      = defaults.DefaultSnapshotter
)

// record is the value of an ownership label: what there is to know about an import that was published, so that
// it need not be repeated, nor its source be asked again. containerd bounds a label to 4096 bytes.
type record struct {
	Archive     string        `json:"archive,omitempty"`
	Spec        string        `json:"spec,omitempty"`
	Names       int           `json:"names"` // that this import published
	Target      digest.Digest `json:"target"`
	Reference   bool          `json:"reference,omitempty"` // a name@digest reference beside another name
	Pinned      bool          `json:"pinned,omitempty"`
	Snapshotter string        `json:"snapshotter,omitempty"` // that it was unpacked into
	Source      string        `json:"source,omitempty"`
	Digest      digest.Digest `json:"digest,omitempty"`
	Index       digest.Digest `json:"index"`
	Size        int64         `json:"size"`
	Lease       string        `json:"lease"` // of the session that wrote it
}

func newRecord(req Request, src string, r Result, snapshotter string, names int) record {
	return record{
		Archive: req.Owner.Name, Spec: req.Owner.SpecHash, Names: names, Pinned: req.Pin, Snapshotter: snapshotter,
		Source: clip(src, maxRecordedSource), Digest: r.Digest, Index: r.IndexDigest, Size: r.Size,
	}
}

// encode gives the text of the label.
func (r record) encode() (string, error) {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // URLs would grow sixfold
	if err := e.Encode(r); err != nil {
		return "", fmt.Errorf("encode ownership: %w", err)
	}
	return strings.TrimSuffix(b.String(), "\n"), nil
}

// maxRecordedSource in bytes keeps the whole record below containerd's bound, even if each byte is escaped in six.
const maxRecordedSource = 400

func clip(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "")
	}
	return s
}

// ownerLabel is the key of an owner's label.
func ownerLabel(o Owner) string {
	if o.UID == "" {
		return importLabel
	}
	return ownerLabelPrefix + o.UID
}

func isOwnerLabel(key string) bool {
	return key == importLabel || strings.HasPrefix(key, ownerLabelPrefix)
}

// otherOwners returns the labels of archives that an image is there for, apart from o: neither its own, nor that
// of an earlier object of the same name, which is gone, nor that of `agent import`. managed says whether anybody
// of us brought the image at all.
func otherOwners(labels map[string]string, o Owner) (others []string, managed bool) {
	for k, v := range labels {
		if !isOwnerLabel(k) {
			continue
		}
		managed = true
		if k == importLabel || k == ownerLabel(o) {
			continue
		}
		var r record
		if json.Unmarshal([]byte(v), &r) == nil && r.Archive == o.Name && o.Name != "" {
			continue
		}
		others = append(others, k)
	}
	slices.Sort(others)
	return others, managed
}

// Imported says whether an owner's import was published and is still whole: every name there, with its target,
// its content, its pin and its snapshots. No source is opened.
func (i *Importer) Imported(ctx context.Context, o Owner) (Result, bool, error) {
	ctx = i.in(ctx)
	label := ownerLabel(o)
	list, err := i.services.images.List(ctx, fmt.Sprintf("labels.%q", label))
	if err != nil {
		return Result{}, false, runtimeError("list images", err)
	}
	var result Result
	names := 0
	for _, img := range list {
		var r record
		if err := json.Unmarshal([]byte(img.Labels[label]), &r); err != nil || r.Spec != o.SpecHash {
			continue
		}
		whole, err := i.whole(ctx, img, r)
		if err != nil || !whole {
			return Result{}, false, err
		}
		names++
		if names == 1 {
			result.Digest, result.IndexDigest, result.Size = r.Digest, r.Index, r.Size
		}
		if !r.Reference {
			result.Images = append(result.Images, Image{Name: img.Name, Digest: img.Target.Digest})
		}
		if names > r.Names {
			return Result{}, false, nil
		}
		if names == r.Names {
			slices.SortFunc(result.Images, func(a, b Image) int { return strings.Compare(a.Name, b.Name) })
			return result, true, nil
		}
	}
	return Result{}, false, nil
}

// whole says whether one published image is as its record says.
func (i *Importer) whole(ctx context.Context, img images.Image, r record) (bool, error) {
	if img.Target.Digest != r.Target || (r.Pinned && img.Labels[labelPinned] != valuePinned) {
		return false, nil
	}
	missing, err := i.missing(ctx, img.Target)
	if err != nil || len(missing) > 0 {
		return false, err
	}
	if r.Snapshotter == "" {
		return true, nil
	}
	diffIDs, err := client.NewImageWithPlatform(i.client, img, platforms.Only(i.platform)).RootFS(ctx)
	if err != nil {
		return false, runtimeError("read config of "+img.Target.Digest.String(), err)
	}
	if len(diffIDs) == 0 {
		return true, nil
	}
	_, err = i.client.SnapshotService(r.Snapshotter).Stat(ctx, identity.ChainID(diffIDs).String())
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, runtimeError("look up snapshot", err)
	}
	return true, nil
}
