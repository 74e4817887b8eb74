// Package ownership says for whom an image's names are there, by labels on them: there is one a claim, so that archives may
// share an image, and what becomes of it is decided when the last one ends.
//
// The methods follow a claim: [Ownership.Claim] publishes names, [Ownership.Published] finds them again and says what they have
// lost, [Ownership.Repair] gives back what needs no source, and [Ownership.Sweep] ends the claims of owners that are gone.
// A name is looked at and written under one lock, and each write leaves it complete, pinned and owned. There is no journal:
// what comes in between leaves names that are owned, and a repetition writes the rest.
package ownership

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"

	"github.com/tarlift/tarlift/internal/importer/check"
)

const (
	// labelPrefix and an ImageArchive's UID make the label that says an image is there for it.
	labelPrefix = "tarlift.dev/archive."
	// labelImport says that `agent import` brought the image. The first ImageArchive that wants it takes it over.
	labelImport = "tarlift.dev/import"

	// labelPinned keeps the kubelet's garbage collection away, labelManaged tells the CRI that the image is
	// complete in its eyes: without it the CRI answers each image event with a write of its own.
	// Both are constants of containerd's internal/cri/labels.
	labelPinned  = "io.cri-containerd.pinned"
	valuePinned  = "pinned"
	labelManaged = "io.cri-containerd.image"
	valueManaged = "managed"
)

// Owner is the ImageArchive that an import is made for. The zero Owner is `agent import`.
type Owner struct {
	Name string
	UID  string
	// Created is when the ImageArchive was made. Of two that both replace the other's name, the older one keeps it.
	Created time.Time
	// SpecHash identifies the part of the spec that decides what an import does.
	SpecHash string
	// Deletion is what becomes of the images when nobody wants them any more. It is recorded with each name, and no part
	// of who the owner is.
	Deletion Deletion
}

// Deletion is what becomes of an image when its last owner goes.
type Deletion string

// What may become of an image; empty is Unpin.
const (
	Retain Deletion = "Retain" // it stays, pinned
	Unpin  Deletion = "Unpin"  // it stays until the kubelet's garbage collection wants its room
	Delete Deletion = "Delete" // it goes, unless a container uses it: then it is unpinned
)

// recorded is the policy as it is recorded.
func (d Deletion) recorded() Deletion {
	if d == Unpin {
		return ""
	}
	return d
}

// Ownership of the images in one namespace of one containerd. Its methods may be called concurrently.
type Ownership struct {
	images  images.Store
	check   check.Checker
	collect func(context.Context) error

	mu sync.Mutex // makes the look at a name and its change one step among all that this process does
}

// New makes one. It calls collect when names were deleted: what they held is to be gone then.
func New(store images.Store, c check.Checker, collect func(context.Context) error) *Ownership {
	return &Ownership{images: store, check: c, collect: collect}
}

// Kind is what a name is beside others of its image. A pull by the CRI leaves one of each.
type Kind string

// The kinds of names.
const (
	KindTag    Kind = ""       // what people call it
	KindDigest Kind = "digest" // name@digest, for pods that are pinned by digest
	KindID     Kind = "id"     // sha256:<config digest>, which the kubelet asks for to mount an image as a volume
)

// Import is what is recorded of an import, so that it need not be repeated, nor its source be asked again.
type Import struct {
	Source      string        `json:"source,omitempty"`      // its name
	Validator   string        `json:"validator,omitempty"`   // of the source
	Digest      digest.Digest `json:"digest,omitempty"`      // of the whole archive, empty if it was not read in full
	Index       digest.Digest `json:"index"`                 // of index.json
	Size        int64         `json:"size"`                  // of the archive in bytes, -1 for unknown
	Snapshotter string        `json:"snapshotter,omitempty"` // that the images were unpacked into, empty for none
}

// record is the value of an ownership label. containerd bounds a label to 4096 bytes.
type record struct {
	Name     string        `json:"name"` // see nameKey
	Archive  string        `json:"archive,omitempty"`
	Created  int64         `json:"created,omitempty"` // of the archive, in seconds since 1970
	Spec     string        `json:"spec,omitempty"`
	Serial   int64         `json:"serial"` // of the owner's publishings, ascending
	Names    int           `json:"names"`  // of this publishing
	Kind     Kind          `json:"kind,omitempty"`
	Target   digest.Digest `json:"target"`
	Pinned   bool          `json:"pinned,omitempty"`
	Replace  bool          `json:"replace,omitempty"`  // the archive replaces names of others
	Deletion Deletion      `json:"deletion,omitempty"` // empty for the default
	Found    *found        `json:"found,omitempty"`
	Import
}

// found is what a name was before the first claim on it, if it was there: somebody else's. It is handed on from owner to
// owner, and given back when the last claim ends.
type found struct {
	Pinned bool `json:"pinned,omitempty"`
}

// maxRecordedSource in bytes keeps the whole record below containerd's bound, even if each byte is escaped in six.
const maxRecordedSource = 400

func newRecord(o Owner, i Import) record {
	r := record{Archive: o.Name, Spec: o.SpecHash, Deletion: o.Deletion.recorded(), Import: i}
	if !o.Created.IsZero() {
		r.Created = o.Created.Unix()
	}
	if len(r.Source) > maxRecordedSource {
		r.Source = strings.ToValidUTF8(r.Source[:maxRecordedSource], "")
	}
	return r
}

// encode gives the text of the label.
func (r record) encode() string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // URLs would grow sixfold
	_ = e.Encode(r)        // texts and numbers can always be written to memory
	return strings.TrimSuffix(b.String(), "\n")
}

// nameKey stands for a name in its record, which has no room for long ones.
func nameKey(name string) string { return digest.FromString(name).Encoded()[:16] }

// label is the key of an owner's label.
func (o Owner) label() string {
	if o.UID == "" {
		return labelImport
	}
	return labelPrefix + o.UID
}

func isLabel(key string) bool { return key == labelImport || strings.HasPrefix(key, labelPrefix) }

// claim is one claim on a name.
type claim struct {
	images.Image
	label  string
	record record
}

// claims are those on an image's name, in the order of their labels. A label that was copied from another name, as `ctr
// images tag` does, is none. Of a record that cannot be read it is assumed what harms nobody.
func claims(img images.Image) (all []claim) {
	for _, k := range slices.Sorted(maps.Keys(img.Labels)) {
		if !isLabel(k) {
			continue
		}
		var r record
		if json.Unmarshal([]byte(img.Labels[k]), &r) != nil {
			r = record{Name: nameKey(img.Name), Pinned: true, Deletion: Retain, Target: img.Target.Digest}
		}
		if r.Name == nameKey(img.Name) {
			all = append(all, claim{img, k, r})
		}
	}
	return all
}

// owner is whose claim it is, as recorded.
func (c claim) owner() Owner {
	o := Owner{Name: c.record.Archive, SpecHash: c.record.Spec, Deletion: cmp.Or(c.record.Deletion, Unpin)}
	if uid, ok := strings.CutPrefix(c.label, labelPrefix); ok {
		o.UID = uid
	}
	return o
}

// succeededBy says whether a claim is the owner's own, or one that it succeeds: that of an earlier object of its name, which
// is gone, or that of `agent import`.
func (c claim) succeededBy(o Owner) bool {
	return c.label == labelImport || c.label == o.label() || o.Name != "" && c.record.Archive == o.Name
}

// byOwner sorts the claims on all names by their labels, those of each owner by name.
func byOwner(list map[string]images.Image) map[string][]claim {
	all := map[string][]claim{}
	for _, img := range sorted(list) {
		for _, c := range claims(img) {
			all[c.label] = append(all[c.label], c)
		}
	}
	return all
}

// sorted returns the values in the order of their keys.
func sorted[V any](m map[string]V) (list []V) {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		list = append(list, m[k])
	}
	return list
}

// split finds what an owner's newest publishing has left, and what is left of earlier ones. Of `agent import`, each run of
// which adds to the same label, the newest publishing is the latest run.
func split(mine []claim) (newest, earlier []claim) {
	serial := int64(0)
	for _, c := range mine {
		serial = max(serial, c.record.Serial)
	}
	for _, c := range mine {
		if c.record.Serial == serial {
			newest = append(newest, c)
		} else {
			earlier = append(earlier, c)
		}
	}
	return newest, earlier
}

// others are the claims of other owners.
func others(img images.Image, o Owner) []claim {
	return slices.DeleteFunc(claims(img), func(c claim) bool { return c.succeededBy(o) })
}

// lost says what the name itself lacks.
func (c claim) lost() string {
	switch {
	case c.Target.Digest != c.record.Target:
		return fmt.Sprintf("stands for %s instead of %s", c.Target.Digest, c.record.Target)
	case c.record.Pinned && c.Labels[labelPinned] != valuePinned:
		return "is not pinned"
	case c.Labels[labelManaged] != valueManaged:
		return "is not marked as complete for the CRI"
	}
	return ""
}
