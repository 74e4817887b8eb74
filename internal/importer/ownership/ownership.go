// Package ownership says for whom an image's names are there, by labels on them: there is one a claim, so that archives may
// share an image, and what becomes of it is decided when the last one is released.
//
//	err := o.Claim(ctx, c)                   // publishes names
//	p, err := o.Published(ctx, owner)        // finds them again, and says what they have lost
//	n, err := o.Repair(ctx, owner)           // gives back what needs no source
//	all, err := o.Sweep(ctx, wanted, known)  // releases the claims of owners that are gone
//
// Each write of a name is one step under one lock ([Ownership.change]): read it, decide what it should be, write that. Each leaves
// the name complete, pinned and owned. There is no journal: a failure in between leaves names that are owned, and a repetition
// writes the rest.
package ownership

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/importer/check"
	"github.com/tarlift/tarlift/internal/importer/daemon"
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

// Ownership of the images in one namespace of one containerd. Its methods may be called concurrently.
type Ownership struct {
	images  images.Store
	check   check.Checker
	collect func(context.Context) error

	mu sync.Mutex // see change
}

// New makes one. It calls collect when names were deleted: what they held is to be gone then.
func New(store images.Store, c check.Checker, collect func(context.Context) error) *Ownership {
	return &Ownership{images: store, check: c, collect: collect}
}

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

// label is the key of an owner's label.
func (o Owner) label() string {
	if o.UID == "" {
		return labelImport
	}
	return labelPrefix + o.UID
}

// Deletion is what becomes of an image when its last owner goes.
type Deletion string

// What may become of an image; empty is Unpin.
const (
	Retain Deletion = "Retain" // it stays, pinned
	Unpin  Deletion = "Unpin"  // it stays until the kubelet's garbage collection wants its room
	Delete Deletion = "Delete" // it goes, unless a container uses it: then it is unpinned
)

// mildness orders policies by how much they leave.
func (d Deletion) mildness() int {
	switch d {
	case Delete:
		return 0
	case Unpin, "":
		return 1
	}
	return 2 // Retain, and what later versions may know
}

// Import is what is recorded of an import, so that it need not be repeated, nor its source be asked again.
type Import struct {
	Source      string        `json:"source,omitempty"`      // its name
	Validator   string        `json:"validator,omitempty"`   // of the source
	Digest      digest.Digest `json:"digest,omitempty"`      // of the whole archive, empty if it was not read in full
	Index       digest.Digest `json:"index"`                 // of index.json
	Size        int64         `json:"size"`                  // of the archive in bytes, -1 for unknown
	Snapshotter string        `json:"snapshotter,omitempty"` // that the images were unpacked into, empty for none
}

// ownershipRecord is the value of an ownership label. containerd bounds a label to 4096 bytes.
type ownershipRecord struct {
	Name     string        `json:"name"` // see nameKey
	Archive  string        `json:"archive,omitempty"`
	Created  int64         `json:"created,omitempty"` // of the archive, in seconds since 1970
	Spec     string        `json:"spec,omitempty"`
	Serial   int64         `json:"serial"` // of the owner's publishings, ascending
	Names    int           `json:"names"`  // of this publishing
	Target   digest.Digest `json:"target"`
	Pinned   bool          `json:"pinned,omitempty"`
	Replace  bool          `json:"replace,omitempty"` // the archive replaces names of others
	Deletion Deletion      `json:"deletion,omitempty"`
	Released bool          `json:"released,omitempty"` // the name goes once no container uses its image
	Found    *found        `json:"found,omitempty"`
	Import
}

// found is what a name was before the first claim on it, if it was there: somebody else's. It is handed on from owner to
// owner, and given back when the last claim is released.
type found struct {
	Pinned bool `json:"pinned,omitempty"`
}

// encode gives the text of the label.
func (r ownershipRecord) encode() string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // URLs would grow sixfold
	_ = e.Encode(r)        // texts and numbers can always be written to memory
	return strings.TrimSuffix(b.String(), "\n")
}

// isID says whether a name is an image's id, sha256:<config digest>, which the kubelet asks for to mount an image as a volume. A
// pull by the CRI leaves one beside the tag and the digest reference.
func isID(name string) bool { return digest.Digest(name).Validate() == nil }

// nameKey stands for a name in its record, which has no room for long ones.
func nameKey(name string) string { return digest.FromString(name).Encoded()[:16] }

func isLabel(key string) bool { return key == labelImport || strings.HasPrefix(key, labelPrefix) }

// claim is one claim on a name.
type claim struct {
	images.Image
	label  string
	record ownershipRecord
}

// claims are those on an image's name, in the order of their labels. A label that was copied from another name, as `ctr
// images tag` does, is none. Of a record that cannot be read it is assumed what harms nobody.
func claims(img images.Image) (all []claim) {
	for _, k := range slices.Sorted(maps.Keys(img.Labels)) {
		if !isLabel(k) {
			continue
		}
		var r ownershipRecord
		if json.Unmarshal([]byte(img.Labels[k]), &r) != nil {
			r = ownershipRecord{Name: nameKey(img.Name), Pinned: true, Deletion: Retain, Target: img.Target.Digest}
		}
		if r.Name == nameKey(img.Name) {
			all = append(all, claim{img, k, r})
		}
	}
	return all
}

// owner is whose claim it is, as recorded.
func (c claim) owner() Owner {
	uid, ok := strings.CutPrefix(c.label, labelPrefix)
	if !ok {
		uid = ""
	}
	return Owner{Name: c.record.Archive, UID: uid, SpecHash: c.record.Spec, Deletion: c.record.Deletion}
}

// succeededBy says whether a claim is the owner's own, or one that it succeeds: that of an earlier object of its name, which
// is gone, or that of `agent import`.
func (c claim) succeededBy(o Owner) bool {
	return c.label == labelImport || c.label == o.label() || o.Name != "" && c.record.Archive == o.Name
}

// pinned says whether a claim wants its name pinned.
func (c claim) pinned() bool { return c.record.Pinned }

// unpins says whether the pin of a name goes with some of its claims: it was set for these, those that stay do not want it, and it
// was not there before.
func unpins(released, staying []claim, before bool) bool {
	return !before && slices.ContainsFunc(released, claim.pinned) && !slices.ContainsFunc(staying, claim.pinned)
}

// publishings are an owner's claims, in the order of the names: those of its newest publishing that are left, and of earlier ones. Of
// `agent import`, each run of which adds to the same label, the newest publishing is the latest run.
type publishings struct{ newest, earlier []claim }

// list returns all names, and the claims on them by their labels.
func (o *Ownership) list(ctx context.Context) (names map[string]images.Image, owners map[string]*publishings, err error) {
	list, err := o.images.List(ctx)
	if err != nil {
		return nil, nil, daemon.Error("list images", err)
	}
	names, owners = map[string]images.Image{}, map[string]*publishings{}
	for _, img := range list {
		names[img.Name] = img
	}
	for _, img := range sorted(names) {
		for _, c := range claims(img) {
			p := owners[c.label]
			switch {
			case p == nil:
				owners[c.label] = &publishings{newest: []claim{c}}
			case c.record.Serial > p.newest[0].record.Serial:
				p.newest, p.earlier = []claim{c}, append(p.earlier, p.newest...)
			case c.record.Serial < p.newest[0].record.Serial:
				p.earlier = append(p.earlier, c)
			default:
				p.newest = append(p.newest, c)
			}
		}
	}
	return names, owners, nil
}

// sorted returns the values in the order of their keys.
func sorted[V any](m map[string]V) (list []V) {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		list = append(list, m[k])
	}
	return list
}

// edit is what is to be written of a name.
type edit struct {
	target ocispec.Descriptor // none: it stays
	labels map[string]string  // only these change, "" for one that goes
	remove bool               // all of the name
}

// errRaced is a name that another process has written at the same time.
var errRaced = errors.New("the name was changed at the same time")

// writeTimeout bounds a write, which takes containerd milliseconds.
const writeTimeout = 20 * time.Second

// change reads a name, decides and writes it, as one step among all that this process does. decide gets nil for a name that is
// not there, and returns nil to leave it as it is. A write that has started is not cancelled, since nobody would know whether it
// was done.
func (o *Ownership) change(ctx context.Context, name string, decide func(now *images.Image) (*edit, error)) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err //nolint:wrapcheck // the caller's own
	}
	img, err := o.images.Get(ctx, name)
	now := &img
	if errdefs.IsNotFound(err) {
		now = nil
	} else if err != nil {
		return daemon.Error("look up", err)
	}
	e, err := decide(now)
	if err != nil || e == nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	img = images.Image{Name: name, Target: e.target, Labels: e.labels}
	switch {
	case now == nil:
		_, err = o.images.Create(ctx, img)
	case e.remove:
		err = o.images.Delete(ctx, name, images.DeleteTarget(&now.Target))
	default:
		var paths []string
		for _, k := range slices.Sorted(maps.Keys(e.labels)) {
			paths = append(paths, "labels."+k)
		}
		if e.target.Digest != "" {
			paths = append(paths, "target")
		}
		_, err = o.images.Update(ctx, img, paths...)
	}
	if errdefs.IsAlreadyExists(err) || errdefs.IsNotFound(err) {
		return errRaced
	}
	return daemon.Error("write", err)
}
