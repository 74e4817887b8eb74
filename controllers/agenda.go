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
	releases map[types.UID]*attempt // archives whose leftovers of failed attempts are to go
	runtime  *v1alpha1.RuntimeInfo  // nil: not known yet
	probe    attempt                // at learning the runtime
	jitter   func() float64         // in [0, 1)
}

// record is one archive that selects this node.
type record struct {
	attempt
	archive *v1alpha1.ImageArchive // as last seen, not to be changed
	owner   importer.Owner
	entry   v1alpha1.ArchiveState // as reported
	done    bool                  // the images are there: containerd or, until it has been asked, the last report says so
	checked bool                  // containerd was asked for this spec
	failure *failure              // of the last attempt
	heeded  string                // the value of AnnotationReconcileRequestedAt that has been acted upon
}

type failure struct {
	v1alpha1.ImportError
	terminal bool
}

func newAgenda(jitter func() float64) *agenda {
	return &agenda{records: map[types.UID]*record{}, releases: map[types.UID]*attempt{}, jitter: jitter}
}

// restore takes over what an earlier process of this agent reported, before the first follow. Archives that are
// gone by now are found out by follow.
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

// follow brings the records in line with the archives that select this node.
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
		delete(a.records, uid)
		a.release(uid)
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
// What failed is tried again after a wait, so that an archive that kills the agent does not keep the others from
// their turn.
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

// next says what the worker is to do now that it runs running, or nothing: stop that, or start something. Otherwise
// wait is when to ask again, 0 for when something changes. Leftovers go first, since they take space; then what is
// there already is found out, then imports run, the oldest archive first.
func (a *agenda) next(running *job, now time.Time) (start *job, stop bool, wait time.Duration) {
	if running != nil {
		return nil, a.outdated(running), 0
	}
	due := func(t attempt) bool {
		d := t.notBefore.Sub(now)
		if d > 0 && (wait == 0 || d < wait) {
			wait = d
		}
		return d <= 0
	}
	for _, uid := range slices.Sorted(maps.Keys(a.releases)) {
		if due(*a.releases[uid]) {
			return &job{kind: jobRelease, uid: uid}, false, 0
		}
	}
	records := a.oldestFirst()
	for _, rec := range records {
		if rec.asked() || !rec.checked && due(rec.attempt) {
			return &job{kind: jobCheck, uid: rec.archive.UID, archive: rec.archive, owner: rec.owner}, false, 0
		}
	}
	for _, rec := range records {
		if rec.checked && !rec.done && !rec.archive.Spec.Suspend && due(rec.attempt) {
			return &job{kind: jobImport, uid: rec.archive.UID, archive: rec.archive, owner: rec.owner}, false, 0
		}
	}
	if a.runtime == nil && len(records) == 0 && due(a.probe) { // checks ask for it as well
		return &job{kind: jobProbe}, false, 0
	}
	return nil, false, wait
}

// outdated says whether a running job has lost its purpose.
func (a *agenda) outdated(running *job) bool {
	if running.kind == jobProbe || running.kind == jobRelease {
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
	switch {
	case o.job.kind == jobProbe:
		if o.err != nil {
			a.probe.failed(now, runtimeRetryLimit, a.jitter)
		}
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
