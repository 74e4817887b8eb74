package node

import (
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
	"github.com/tarlift/tarlift/internal/importer"
)

// record is one archive that selects this node.
type record struct {
	attempt
	archive *v1alpha1.ImageArchive // as last seen, not to be changed
	owner   importer.Owner
	entry   v1alpha1.ArchiveState // as reported
	done    bool                  // the images are there: containerd or, until it has been asked, the last report says so
	suspect bool                  // an attempt at it was not seen to end: it may have killed the agent
	failure *failure              // of the last attempt
	heeded  string                // the value of AnnotationReconcileRequestedAt that has been acted upon

	checked   bool      // containerd was asked for this spec, and nothing has told of a change since
	seen      time.Time // as of when it was asked
	disturbed time.Time // when something told of a change last
	recheck   time.Time // when to ask nevertheless; zero for never
	names     []string  // that are published, as far as they are known

	loss     string    // what is missing of images that were complete, in words; empty for nothing
	repaired bool      // what needs no source was tried against the loss
	anew     bool      // the next import begins another count of attempts
	healed   time.Time // when the last loss was mended
	relapses int       // how often images were lost again soon after that

	admission *v1alpha1.Admission // nil: spec.rollout has not let the node in
	fenced    bool                // that may be over, but nobody hears the API server
	validator string              // of the source that the last attempt read
	stale     bool                // the source holds another archive than what was imported
	probe     attempt             // at finding that out
}

type failure struct {
	v1alpha1.ImportError
	terminal bool
}

func newRecord(archive *v1alpha1.ImageArchive) *record {
	return &record{
		archive: archive,
		owner:   ownerOf(archive),
		entry:   v1alpha1.ArchiveState{Name: archive.Name, UID: archive.UID, ObservedGeneration: archive.Generation},
		heeded:  archive.Annotations[v1alpha1.AnnotationReconcileRequestedAt],
	}
}

func (r *record) job(kind jobKind) *job {
	return &job{kind: kind, uid: r.archive.UID, archive: r.archive, owner: r.owner, names: r.names, validator: r.validator}
}

// asked says whether somebody has asked to look at the archive since a look at it began. A job that runs meanwhile
// began before, so its outcome answers nothing.
func (r *record) asked() bool {
	return r.archive.Annotations[v1alpha1.AnnotationReconcileRequestedAt] != r.heeded
}

// wantsImport says whether an attempt at an import is to be made as soon as it is due.
func (r *record) wantsImport() bool {
	heals := r.loss == "" || r.stale || r.repaired && !ignoresDrift(r.archive)
	return r.checked && !r.done && heals && !r.archive.Spec.Suspend
}

// expected says whether the images are still to come. What failed for good, or has no room, may not.
func (r *record) expected() bool {
	return !r.done && (r.failure == nil || !r.failure.terminal && r.failure.Reason != v1alpha1.ReasonInsufficientDisk)
}

// wantsRepair says whether to try what needs no source against a loss. spec.rollout does not limit that.
func (r *record) wantsRepair() bool {
	return r.checked && r.loss != "" && !r.repaired && !ignoresDrift(r.archive) && !r.archive.Spec.Suspend
}

// wantsProbe says whether to ask the source now and then for another archive: in place of one that is complete, unless
// a digest says which one it has to be, or of one that stalls.
func (r *record) wantsProbe() bool {
	spec := &r.archive.Spec
	if intervalOf(r.archive) == 0 || spec.Suspend || !r.checked {
		return false
	}
	if r.done {
		return spec.Digest == "" && spec.IndexDigest == ""
	}
	return r.failure != nil && r.failure.terminal
}

// mayBegin says whether spec.rollout, if there is one, lets an import begin.
func (r *record) mayBegin() bool {
	return r.mayGoOn() && (r.archive.Spec.Rollout == nil || r.admission.Generation == r.archive.Generation)
}

// mayGoOn says whether it lets an import go on that has begun: as long as the node holds a place, which the controller
// may not have renewed yet after an edit that is no new import.
func (r *record) mayGoOn() bool {
	return r.archive.Spec.Rollout == nil || r.admission != nil && !r.fenced
}

// inTheWay says whether what stalls the archive is a name that has changed now. That the failure names it, also one that
// an earlier process has reported, is all that is known of it.
func (r *record) inTheWay(changed map[string]time.Time) bool {
	if r.failure == nil || !r.failure.terminal || r.failure.Reason != v1alpha1.ReasonNameConflict {
		return false
	}
	for name := range changed {
		if name != "" && strings.Contains(r.failure.Message, strconv.Quote(name)) {
			return true
		}
	}
	return false
}

// looked notes that containerd was asked, and that the answer is as of then.
func (r *record) looked(at, now time.Time, interval time.Duration, jitter func() float64) {
	r.seen = at
	r.checked = !r.disturbed.After(at)
	if interval > 0 {
		r.recheck = now.Add(about(interval, jitter))
	}
}

// scheduleProbe makes the next look at the source due in about an interval.
func (r *record) scheduleProbe(now time.Time, jitter func() float64) {
	r.probe = attempt{notBefore: now.Add(about(intervalOf(r.archive), jitter))}
}

// complete notes that the images are there.
func (r *record) complete(result importer.Result, now time.Time) {
	r.done, r.failure, r.stale, r.anew = true, nil, false, false
	r.reset()
	e := &r.entry
	if r.loss == "" || e.CompletionTime == nil || e.IndexDigest != string(result.IndexDigest) {
		e.CompletionTime = condition.Timestamp(now)
	}
	if r.loss != "" {
		r.loss, r.repaired, r.healed = "", false, now
	}
	e.Digest, e.IndexDigest, e.Size = string(result.Digest), string(result.IndexDigest), max(result.Size, 0)
	e.ImageCount = int32(len(result.Images)) //nolint:gosec // bounded by the archive package
	r.names, r.validator = result.Names, result.Validator
}

func intervalOf(a *v1alpha1.ImageArchive) time.Duration {
	return ptr.Deref(a.Spec.Interval, metav1.Duration{}).Duration
}

func unpacks(a *v1alpha1.ImageArchive) bool { return ptr.Deref(a.Spec.Unpack, true) }

func ignoresDrift(a *v1alpha1.ImageArchive) bool { return a.Spec.DriftPolicy == v1alpha1.DriftIgnore }

// lossDetail stands in a condition's message between what is lost and what keeps it from being mended.
const lossDetail = "; not mended yet: "

// lossIn is what conditions of an earlier process say that is lost.
func lossIn(conditions []metav1.Condition) string {
	if !condition.HasReason(conditions, v1alpha1.ConditionReady, v1alpha1.ReasonDrifted) {
		return ""
	}
	loss, _, _ := strings.Cut(condition.Find(conditions, v1alpha1.ConditionReady).Message, lossDetail)
	return loss
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
