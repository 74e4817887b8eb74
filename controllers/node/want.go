package node

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/importer"
)

// want is an archive that is to be on this node: an ImageArchive that selects it, or a file in the drop-in directory.
type want struct {
	name       string // as reported
	uid        types.UID
	generation int64
	source     v1alpha1.Source
	request    importer.Request // with the owner

	requested   string // the value of AnnotationReconcileRequestedAt
	suspend     bool
	ignoreDrift bool
	interval    time.Duration // between probes of the source; 0: never
	fixed       bool          // a digest says which archive it has to be

	rollout   *v1alpha1.Rollout   // nil: none
	admission *v1alpha1.Admission // nil: the node is not admitted; of this generation or an earlier one
	selector  string              // spec.nodeSelector as JSON
}

// wantOf is what an ImageArchive asks of this node, which has these admissions.
func wantOf(a *v1alpha1.ImageArchive, admitted []v1alpha1.Admission) *want {
	w := &want{
		name: a.Name, uid: a.UID, generation: a.Generation, source: a.Spec.Source, request: requestFor(a),
		requested:   a.Annotations[v1alpha1.AnnotationReconcileRequestedAt],
		suspend:     a.Spec.Suspend,
		ignoreDrift: a.Spec.DriftPolicy == v1alpha1.DriftIgnore,
		interval:    ptr.Deref(a.Spec.Interval, metav1.Duration{}).Duration,
		fixed:       a.Spec.Digest != "" || a.Spec.IndexDigest != "",
		rollout:     a.Spec.Rollout,
		selector:    selectorText(a),
	}
	w.admission = admissionFor(a, admitted)
	return w
}

// admissionFor is the node's admission to an archive with a rollout, nil for none.
func admissionFor(a *v1alpha1.ImageArchive, admitted []v1alpha1.Admission) *v1alpha1.Admission {
	i := slices.IndexFunc(admitted, func(x v1alpha1.Admission) bool { return x.UID == a.UID })
	if i < 0 || a.Spec.Rollout == nil {
		return nil
	}
	return &admitted[i]
}

// selectorText identifies a nodeSelector.
func selectorText(a *v1alpha1.ImageArchive) string {
	b, err := json.Marshal(a.Spec.NodeSelector)
	if err != nil {
		panic(err) // strings always encode
	}
	return string(b)
}

func (w *want) owner() importer.Owner { return w.request.Owner }

// admitted says whether spec.rollout, if there is one, lets this generation be imported.
func (w *want) admitted() bool {
	return w.rollout == nil || w.admission != nil && w.admission.Generation == w.generation
}

// mayContinue says whether an import that runs may go on. After an edit that is no new import, the controller may not have
// renewed the admission yet.
func (w *want) mayContinue() bool {
	return !w.suspend && (w.rollout == nil || w.admission != nil)
}

// requestFor says to the importer what a spec wants.
func requestFor(a *v1alpha1.ImageArchive) importer.Request {
	spec := &a.Spec
	return importer.Request{
		Owner:       ownerOf(a),
		Digest:      digest.Digest(spec.Digest),
		IndexDigest: digest.Digest(spec.IndexDigest),
		Selection:   selectionOf(&spec.Images),
		Unpack:      ptr.Deref(spec.Unpack, true),
		Pin:         ptr.Deref(spec.Pin, true),
		Replace:     spec.ConflictPolicy == v1alpha1.ConflictReplace,
		Keep:        true,
	}
}

func selectionOf(images *v1alpha1.ImageSelection) archive.Selection {
	s := archive.Selection{
		BaseName:         images.BaseName,
		Include:          images.Include,
		Exclude:          images.Exclude,
		DigestReferences: ptr.Deref(images.DigestReferences, true),
	}
	for _, r := range images.Rename {
		s.Rename = append(s.Rename, archive.Rename{From: r.From, To: r.To})
	}
	return s
}

func ownerOf(a *v1alpha1.ImageArchive) importer.Owner {
	return importer.Owner{
		Name: a.Name, UID: string(a.UID), Created: a.CreationTimestamp.Time, SpecHash: specHash(&a.Spec),
		Deletion: importer.Deletion(a.Spec.DeletionPolicy),
	}
}

// specHash identifies what of a spec decides an import. It is recorded in
// containerd and must stay what it is for a spec of today in every later version, or each node would import
// everything again. So its members are listed here, with a field that is added later left out while it has its
// default value.
func specHash(spec *v1alpha1.ImageArchiveSpec) string {
	wanted := struct {
		Source      v1alpha1.Source
		Digest      string
		IndexDigest string
		Images      v1alpha1.ImageSelection
		Unpack, Pin bool
		Replace     bool
	}{
		spec.Source, spec.Digest, spec.IndexDigest, spec.Images,
		ptr.Deref(spec.Unpack, true), ptr.Deref(spec.Pin, true), spec.ConflictPolicy == v1alpha1.ConflictReplace,
	}
	wanted.Images.DigestReferences = ptr.To(ptr.Deref(spec.Images.DigestReferences, true))
	b, err := json.Marshal(wanted)
	if err != nil {
		panic(err) // strings and booleans always encode
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}
