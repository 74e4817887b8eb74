package controllers

import (
	"cmp"
	"maps"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/internal/importer"
)

// agenda is what one node's agent knows of its archives, and decides what is to be done next. It is arithmetic on
// plain values: it reads no clock, calls nobody, and what it knows can be built again from the node's own
// NodeImageState and containerd's labels.
type agenda struct {
	records  map[types.UID]*record
	recovery recovery
	releases map[types.UID]*attempt // archives whose leftovers of failed attempts are to go
	runtime  *v1alpha1.RuntimeInfo  // nil: not known yet
	limits   limits
	jitter   func() float64 // in [0, 1)
}

// recovery is dealing with what killed importers have left, this agent's earlier processes among them: once, after the
// start, as soon as it is known which archives there are.
type recovery struct {
	attempt
	done   bool
	passed bool // it failed though containerd answers: what else there is to do does not wait for it
}

// record is one archive that selects this node.
type record struct {
	attempt
	archive *v1alpha1.ImageArchive // as last seen, not to be changed
	owner   importer.Owner
	entry   v1alpha1.ArchiveState // as reported
	done    bool                  // the images are there: containerd or, until it has been asked, the last report says so
	checked bool                  // containerd was asked for this spec
	suspect bool                  // an attempt at it was not seen to end: it may have killed the agent
	failure *failure              // of the last attempt
	heeded  string                // the value of AnnotationReconcileRequestedAt that has been acted upon
}

type failure struct {
	v1alpha1.ImportError
	terminal bool
}

func newAgenda(jitter func() float64) *agenda {
	return &agenda{records: map[types.UID]*record{}, releases: map[types.UID]*attempt{}, limits: defaultLimits, jitter: jitter}
}

// restore takes over what an earlier process of this agent reported, before the first follow, which forgets the archives
// that are gone by now.
func (a *agenda) restore(status *v1alpha1.NodeImageStateStatus) {
	a.runtime = status.Containerd.DeepCopy()
	for i := range status.Archives {
		entry := status.Archives[i].DeepCopy()
		rec := &record{entry: *entry, done: isTrue(entry.Conditions, v1alpha1.ConditionReady)}
		if e := entry.LastError; e != nil {
			rec.failure = &failure{ImportError: *e, terminal: isTrue(entry.Conditions, v1alpha1.ConditionStalled)}
		}
		a.records[entry.UID] = rec
	}
}

// follow brings the records in line with the archives that select this node. What an earlier process has left of those
// that are gone is the recovery's.
func (a *agenda) follow(archives []*v1alpha1.ImageArchive, now time.Time) {
	gone := map[types.UID]bool{}
	for uid := range a.records {
		gone[uid] = true
	}
	for _, archive := range archives {
		delete(gone, archive.UID)
		rec := a.records[archive.UID]
		switch {
		case rec == nil:
			a.records[archive.UID] = newRecord(archive)
		case rec.archive == nil:
			a.adopt(rec, archive, now)
		default:
			a.update(rec, archive)
		}
	}
	for uid := range gone {
		if a.records[uid].archive != nil {
			a.release(uid)
		}
		delete(a.records, uid)
	}
}

func newRecord(archive *v1alpha1.ImageArchive) *record {
	return &record{
		archive: archive,
		owner:   ownerOf(archive),
		entry:   v1alpha1.ArchiveState{Name: archive.Name, UID: archive.UID, ObservedGeneration: archive.Generation},
		heeded:  archive.Annotations[v1alpha1.AnnotationReconcileRequestedAt],
	}
}

// adopt joins a restored record with its archive. Of an earlier generation only the conditions' times are of use.
// What failed is tried again after a wait, and alone, so that an archive that kills the agent does not keep the others
// from their turn.
func (a *agenda) adopt(rec *record, archive *v1alpha1.ImageArchive, now time.Time) {
	old := *rec
	*rec = *newRecord(archive)
	if old.entry.ObservedGeneration != archive.Generation {
		rec.entry.Conditions = old.entry.Conditions
		return
	}
	rec.entry, rec.done, rec.failure = old.entry, old.done, old.failure
	if !rec.done && rec.entry.Attempts > 0 {
		rec.tries = int(rec.entry.Attempts) - 1
		rec.failed(now, retryLimit, a.jitter)
		rec.suspect = true
	}
}

// update takes notice of a changed archive: another spec hash is another import.
func (a *agenda) update(rec *record, archive *v1alpha1.ImageArchive) {
	rec.archive = archive
	if hash := specHash(&archive.Spec); hash != rec.owner.SpecHash {
		if !rec.done && rec.entry.Attempts > 0 {
			a.release(archive.UID)
		}
		conditions := rec.entry.Conditions
		*rec = *newRecord(archive)
		rec.entry.Conditions = conditions
		return
	}
	if rec.entry.ObservedGeneration != archive.Generation {
		rec.entry.ObservedGeneration = archive.Generation
		rec.reset()
	}
}

// asked says whether somebody has asked to look at the archive since a look at it began. A job that runs meanwhile
// began before, so its outcome answers nothing.
func (r *record) asked() bool {
	return r.archive.Annotations[v1alpha1.AnnotationReconcileRequestedAt] != r.heeded
}

func (a *agenda) release(uid types.UID) {
	if a.releases[uid] == nil {
		a.releases[uid] = &attempt{}
	}
}

// next says what the worker is to do besides what it does: start a job, or stop one. After either it is to be asked
// again; when it says neither, wait is when to ask again, 0 for when something changes.
//
// What only asks containerd goes first, one at a time: first what killed importers have left, then leftovers, since they
// take space, then what is there already. Then imports run, the oldest archive's first.
func (a *agenda) next(running []activity, now time.Time) (start, stop *job, wait time.Duration) {
	for _, r := range running {
		if !r.stopping && a.outdated(r.job) {
			return nil, r.job, 0
		}
	}
	t := newTurn(running, now)
	if t.asking {
		return nil, nil, 0
	}
	records := a.oldestFirst()
	if rc := &a.recovery; !rc.done {
		if t.due(rc.attempt) {
			return &job{kind: jobRecover, wanted: owners(records)}, nil, 0
		}
		if !rc.passed {
			return nil, nil, t.wait
		}
	}
	if start = a.nextQuestion(records, t); start == nil {
		start = a.nextImport(records, t)
	}
	return start, nil, t.wait
}

// nextQuestion is the next release or check.
func (a *agenda) nextQuestion(records []*record, t *turn) *job {
	for _, uid := range slices.Sorted(maps.Keys(a.releases)) {
		if !t.busy[uid] && t.due(*a.releases[uid]) {
			return &job{kind: jobRelease, uid: uid}
		}
	}
	for _, rec := range records {
		if !t.busy[rec.archive.UID] && (rec.asked() || !rec.checked && t.due(rec.attempt)) {
			return rec.job(jobCheck)
		}
	}
	return nil
}

// nextImport is the oldest archive's for which there is a place. One that may have killed the agent begins only while no
// other import makes progress. Whatever begins beside it, and is killed with it, does so too from then on: so each of them
// runs without the other.
func (a *agenda) nextImport(records []*record, t *turn) *job {
	if t.imports >= a.limits.all {
		return nil
	}
	for _, rec := range records {
		if t.busy[rec.archive.UID] || !rec.checked || rec.done || rec.archive.Spec.Suspend || !t.due(rec.attempt) {
			continue
		}
		if t.moving == 0 || t.moving < a.limits.moving && !rec.suspect {
			return rec.job(jobImport)
		}
		t.wait = sooner(t.wait, t.stall)
	}
	return nil
}

func (r *record) job(kind jobKind) *job {
	return &job{kind: kind, uid: r.archive.UID, archive: r.archive, owner: r.owner}
}

func owners(records []*record) []importer.Owner {
	var list []importer.Owner
	for _, rec := range records {
		list = append(list, rec.owner)
	}
	return list
}

// outdated says whether a running job has lost its purpose.
func (a *agenda) outdated(running *job) bool {
	if running.kind == jobRecover || running.kind == jobRelease {
		return false
	}
	rec := a.records[running.uid]
	return rec == nil || rec.owner.SpecHash != running.owner.SpecHash ||
		running.kind == jobImport && rec.archive.Spec.Suspend
}

// started notes that the worker has begun a job.
func (a *agenda) started(j *job, now time.Time) {
	rec := a.records[j.uid]
	if j.kind == jobCheck && rec != nil && rec.asked() {
		rec.heeded = rec.archive.Annotations[v1alpha1.AnnotationReconcileRequestedAt]
		rec.checked = false
		rec.reset()
	}
	if j.kind != jobImport || rec == nil {
		return
	}
	// The attempt adopts what is left, or clears it away by itself.
	delete(a.releases, j.uid)
	rec.entry.Attempts++
	rec.entry.Bytes = &v1alpha1.ArchiveBytes{}
	if rec.entry.StartTime == nil {
		rec.entry.StartTime = timestamp(now)
	}
}

// learn takes in what became of a job. news says that it is worth an Event: an import, a failure that was not known
// already, or that images were lost.
func (a *agenda) learn(o *outcome, now time.Time) (news bool) {
	if o.runtime != nil {
		a.runtime = &v1alpha1.RuntimeInfo{Version: o.runtime.Version, Snapshotter: o.runtime.Snapshotter, Platform: o.runtime.Platform}
	}
	rec := a.records[o.job.uid]
	news = true
	if rec != nil && o.job.kind == jobImport && !o.stopped {
		rec.suspect = false
	}
	switch {
	case o.job.kind == jobRecover:
		a.learnRecovery(o, now)
	case o.job.kind == jobRelease:
		if t := a.releases[o.job.uid]; t != nil && o.err != nil {
			t.failed(now, retryLimit, a.jitter)
		} else {
			delete(a.releases, o.job.uid)
		}
	case o.stopped, rec == nil, rec.owner.SpecHash != o.job.owner.SpecHash:
		// Neither a success nor a failure of what is wanted now.
	case o.err != nil:
		news = a.learnFailure(rec, o, now)
	case o.job.kind == jobCheck:
		news = rec.learnCheck(o, now)
	default:
		rec.complete(o.result, now)
		rec.entry.Bytes = &v1alpha1.ArchiveBytes{
			Total: o.result.Bytes.Written + o.result.Bytes.Skipped, Done: o.result.Bytes.Written, Skipped: o.result.Bytes.Skipped,
		}
	}
	return news
}

// learnRecovery notes how a recovery ended. Of a containerd that does not answer all archives tell, since they wait.
func (a *agenda) learnRecovery(o *outcome, now time.Time) {
	rc := &a.recovery
	if rc.done = o.err == nil; rc.done {
		return
	}
	reason, _ := Classify(o.err)
	if rc.passed = reason != v1alpha1.ReasonRuntimeUnavailable; rc.passed {
		rc.failed(now, retryLimit, a.jitter)
		return
	}
	rc.failed(now, runtimeRetryLimit, a.jitter)
	for _, rec := range a.records {
		if !rec.done {
			rec.failure = &failure{ImportError: v1alpha1.ImportError{Reason: reason, Message: errorText(o.err)}}
		}
	}
}

// learnFailure notes a failed attempt. A containerd that does not answer says nothing against images that were
// there before; once it answers again, it is asked for them first.
func (a *agenda) learnFailure(rec *record, o *outcome, now time.Time) (news bool) {
	reason, terminal := Classify(o.err)
	switch {
	case terminal:
		rec.stalled(now, a.jitter)
		a.release(rec.archive.UID)
	case reason == v1alpha1.ReasonInsufficientDisk:
		rec.stalled(now, a.jitter) // each attempt may transfer, and drop, all that fits
	case reason == v1alpha1.ReasonRuntimeUnavailable && o.job.kind == jobCheck:
		rec.unanswered(now, runtimeRetryLimit, a.jitter)
		rec.checked = false
	case reason == v1alpha1.ReasonRuntimeUnavailable:
		rec.failed(now, runtimeRetryLimit, a.jitter)
		rec.checked = false
	default:
		rec.failed(now, retryLimit, a.jitter)
	}
	if rec.done {
		return false
	}
	failed := failure{v1alpha1.ImportError{Reason: reason, Message: errorText(o.err)}, terminal}
	news = rec.failure == nil || *rec.failure != failed
	rec.failure = &failed
	return news
}

// learnCheck notes whether containerd has all of an archive's images. A report that says so already stays as it is.
// It returns whether images were lost.
func (r *record) learnCheck(o *outcome, now time.Time) (lost bool) {
	r.checked = true
	r.answered()
	if r.failure != nil && r.failure.Reason == v1alpha1.ReasonRuntimeUnavailable {
		r.failure = nil
	}
	lost = r.done && !o.whole
	switch {
	case lost:
		heeded, conditions := r.heeded, r.entry.Conditions
		*r = *newRecord(r.archive)
		r.checked, r.heeded, r.entry.Conditions = true, heeded, conditions
	case o.whole && (!r.done || r.entry.IndexDigest != string(o.result.IndexDigest)):
		r.complete(o.result, now)
	case o.whole:
		r.reset()
	}
	return lost
}

// complete notes that the images are there.
func (r *record) complete(result importer.Result, now time.Time) {
	r.done, r.checked, r.failure = true, true, nil
	r.reset()
	e := &r.entry
	e.Digest, e.IndexDigest, e.Size = string(result.Digest), string(result.IndexDigest), max(result.Size, 0)
	e.ImageCount = int32(len(result.Images)) //nolint:gosec // bounded by the archive package
	e.CompletionTime = timestamp(now)
}

func (a *agenda) oldestFirst() []*record {
	records := make([]*record, 0, len(a.records))
	for _, rec := range a.records {
		if rec.archive != nil {
			records = append(records, rec)
		}
	}
	slices.SortFunc(records, func(x, y *record) int {
		return cmp.Or(x.archive.CreationTimestamp.Compare(y.archive.CreationTimestamp.Time), cmp.Compare(x.archive.Name, y.archive.Name))
	})
	return records
}

// timestamp cuts a time to what the API keeps of it.
func timestamp(now time.Time) *metav1.Time {
	t := metav1.NewTime(now).Rfc3339Copy()
	return &t
}
