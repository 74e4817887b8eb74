package importer

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/opencontainers/go-digest"
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
	Name        string        `json:"name,omitempty"` // see nameKey
	Archive     string        `json:"archive,omitempty"`
	Spec        string        `json:"spec,omitempty"`
	Names       int           `json:"names"` // that this import published
	Target      digest.Digest `json:"target"`
	Reference   bool          `json:"reference,omitempty"` // a name@digest reference beside another name
	Pinned      bool          `json:"pinned,omitempty"`
	Snapshotter string        `json:"snapshotter,omitempty"` // that it was unpacked into
	Source      string        `json:"source,omitempty"`
	Validator   string        `json:"validator,omitempty"` // of the source, at most source.MaxValidator bytes
	Digest      digest.Digest `json:"digest,omitempty"`
	Index       digest.Digest `json:"index"`
	Size        int64         `json:"size"`
	Lease       string        `json:"lease"`              // of the session that wrote it
	Serial      int64         `json:"serial,omitempty"`   // of the owner's publishings, ascending; 0: see publishing
	Deletion    Deletion      `json:"deletion,omitempty"` // empty for the default
}

func newRecord(req Request, src string, r Result, snapshotter string, names int) record {
	return record{
		Archive: req.Owner.Name, Spec: req.Owner.SpecHash, Names: names, Pinned: req.Pin, Snapshotter: snapshotter,
		Source: clip(src, maxRecordedSource), Validator: r.Validator, Digest: r.Digest, Index: r.IndexDigest, Size: r.Size,
		Deletion: req.Owner.Deletion.recorded(),
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

// readRecord reads a label of an image. Of one that cannot be read it is assumed what harms nobody.
func readRecord(img images.Image, label string) record {
	var r record
	if json.Unmarshal([]byte(img.Labels[label]), &r) != nil {
		return record{Pinned: true, Deletion: DeletionRetain, Target: img.Target.Digest}
	}
	return r
}

// publishing is an owner's newest, among the records that were seen. Versions that counted none left the records of former
// specs: there the newest is that of the spec that is wanted, if there is one.
type publishing struct {
	serial int64
	spec   string // empty for any
}

func (p *publishing) see(r record, wanted Owner) {
	if r.Serial == 0 && r.Spec == wanted.SpecHash {
		p.spec = r.Spec
	}
	p.serial = max(p.serial, r.Serial)
}

func (p *publishing) has(r record) bool {
	return r.Serial == p.serial && (p.serial > 0 || p.spec == "" || r.Spec == p.spec)
}

// recorded is the policy as it is recorded.
func (d Deletion) recorded() Deletion {
	if d == DeletionUnpin {
		return ""
	}
	return d
}

// nameKey stands for a name in its record, which has no room for long ones.
func nameKey(name string) string {
	return digest.FromString(name).Encoded()[:16]
}

// of says whether the record was written with a name. `ctr images tag` copies all labels to a name that is not ours.
func (r record) of(name string) bool {
	return r.Name == nameKey(name) || r.Name == ""
}

// otherOwners returns the labels of archives that an image is there for, apart from o: neither its own, nor that
// of an earlier object of the same name, which is gone, nor that of `agent import`. managed says whether anybody
// of us brought the image at all.
func otherOwners(img images.Image, o Owner) (others []string, managed bool) {
	for k := range img.Labels {
		if !isOwnerLabel(k) {
			continue
		}
		r := readRecord(img, k)
		if !r.of(img.Name) {
			continue
		}
		managed = true
		if k == importLabel || k == ownerLabel(o) || (r.Archive == o.Name && o.Name != "") {
			continue
		}
		others = append(others, k)
	}
	slices.Sort(others)
	return others, managed
}
