package node

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
	"github.com/tarlift/tarlift/internal/importer"
)

// agenda is what one node's agent knows of its archives, and decides what is to be done next. It is arithmetic on
// plain values: it reads no clock, calls nobody, and what it knows can be built again from the node's own
// NodeImageState and containerd's labels.
type agenda struct {
	records  map[types.UID]*record
	unclear  []importer.Owner // archives of which nobody can say whether they select this node: what is there stays
	unknown  unknown          // archives of which nobody can say whether they are there, likewise
	sweep    sweep
	releases map[types.UID]*attempt // archives whose leftovers of failed attempts are to go
	runtime  *v1alpha1.RuntimeInfo  // nil: not known yet
	limits   limits
	// checkInterval is how often all that is complete is looked at, and claims are swept, though nothing tells of a
	// change; 0: never.
	checkInterval time.Duration
	silence       time.Duration  // for how long the API server has not been heard
	jitter        func() float64 // in [0, 1)
}

// sweep is ending the claims on images of archives that want nothing of this node any more, and dropping what failed and
// killed imports of theirs have left: at the start, since some may have gone before it, when one goes, and now and then.
type sweep struct {
	attempt
	needless bool      // there is nothing to sweep that is known of
	next     time.Time // when to look nevertheless; zero for never
	skipped  []string  // names of archives for whom the last one kept what earlier archives of the same name brought
}

func newAgenda(jitter func() float64) *agenda {
	return &agenda{records: map[types.UID]*record{}, releases: map[types.UID]*attempt{}, limits: defaultLimits, jitter: jitter}
}

// restore takes over what an earlier process of this agent reported, before the first follow of what the API server tells,
// which forgets the archives that are gone by now.
func (a *agenda) restore(status *v1alpha1.NodeImageStateStatus) {
	a.runtime = status.Containerd.DeepCopy()
	for i := range status.Archives {
		entry := status.Archives[i].DeepCopy()
		if known := a.records[entry.UID]; known != nil && known.entry.Attempts > 0 {
			continue // a drop-in that this process has imported
		}
		rec := &record{entry: *entry, done: condition.IsTrue(entry.Conditions, v1alpha1.ConditionReady), loss: lossIn(entry.Conditions)}
		if e := entry.LastError; e != nil {
			terminal := condition.IsTrue(entry.Conditions, v1alpha1.ConditionStalled) && condition.HasReason(entry.Conditions, v1alpha1.ConditionStalled, e.Reason)
			rec.failure = &failure{ImportError: *e, terminal: terminal}
		}
		a.records[entry.UID] = rec
	}
}

// follow brings the records in line with the archives that select this node. What an earlier process has left of those
// that are gone is the first sweep's.
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
			a.update(rec, archive, now)
		}
	}
	for uid := range gone {
		if a.records[uid].archive != nil {
			a.sweep.need()
		}
		delete(a.records, uid)
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
	rec.entry, rec.done, rec.failure, rec.loss = old.entry, old.done, old.failure, old.loss
	if !rec.done && rec.entry.Attempts > 0 {
		rec.tries = int(rec.entry.Attempts) - 1
		rec.failed(now, retryLimit, a.jitter)
		rec.suspect = true
	}
}

// update takes notice of a changed archive: another spec hash is another import.
func (a *agenda) update(rec *record, archive *v1alpha1.ImageArchive, now time.Time) {
	before := intervalOf(rec.archive)
	rec.archive = archive
	owner := ownerOf(archive)
	if owner.SpecHash != rec.owner.SpecHash {
		if !rec.done && rec.entry.Attempts > 0 {
			a.release(archive.UID)
		}
		conditions := rec.entry.Conditions
		*rec = *newRecord(archive)
		rec.entry.Conditions = conditions
		return
	}
	if owner.Deletion != rec.owner.Deletion {
		a.sweep.need()
	}
	rec.owner = owner
	if intervalOf(archive) != before {
		rec.scheduleProbe(now, a.jitter)
	}
	if rec.entry.ObservedGeneration != archive.Generation {
		rec.entry.ObservedGeneration = archive.Generation
		rec.reset()
	}
}

// admit takes in which archives the controller lets this node import, of those with a rollout, and whether it has been
// silent for too long. A place that is given is used at once.
func (a *agenda) admit(admitted []v1alpha1.Admission) {
	for uid, rec := range a.records {
		before := rec.mayGoOn()
		rec.admission, rec.fenced = nil, rec.archive.Spec.Rollout != nil && a.silence >= fenceTime(rec.archive.Spec.Rollout)
		for i := range admitted {
			if admitted[i].UID == uid && !admitted[i].Expired {
				rec.admission = &admitted[i]
			}
		}
		if !before && rec.mayGoOn() && !rec.done && !rec.suspect {
			rec.notBefore = time.Time{}
		}
	}
}

// disturb takes in what has changed in containerd. What was looked at after the change, or was imported by it, is known.
func (a *agenda) disturb(d disturbance, now time.Time) {
	for _, rec := range a.records {
		at := d.all
		if unpacks(rec.archive) {
			at = later(at, d.names[""])
		}
		for _, name := range rec.names {
			at = later(at, d.names[name])
		}
		if at.After(rec.seen) {
			rec.disturbed, rec.checked = later(rec.disturbed, at), false
		}
		if rec.inTheWay(d.names) {
			rec.notBefore = now
		}
	}
}

func (a *agenda) release(uid types.UID) {
	if a.releases[uid] == nil {
		a.releases[uid] = &attempt{}
	}
}

// need makes a sweep due, at once.
func (s *sweep) need() { s.attempt, s.needless = attempt{}, false }

// next says what the worker is to do besides what it does: start a job, or stop one. After either it is to be asked
// again; when it says neither, wait is when to ask again, 0 for when something changes.
//
// What only asks containerd goes first, one at a time: leftovers and what nobody wants any more, since they take space,
// then what is there already. Then imports run, the oldest archive's first, and beside them sources are asked whether they
// have changed.
func (a *agenda) next(running []activity, now time.Time) (start, stop *job, wait time.Duration) {
	for _, r := range running {
		if !r.stopping && a.outdated(r.job) {
			return nil, r.job, 0
		}
	}
	t := newTurn(running, now)
	if t.asking || a.unknown.archives && a.unknown.dropIns {
		return nil, nil, 0
	}
	records := a.oldestFirst()
	for _, look := range []func([]*record, *turn) *job{a.nextClearing, a.nextQuestion, a.nextImport, a.nextProbe} {
		if start = look(records, t); start != nil {
			return start, nil, t.wait
		}
	}
	return nil, nil, t.wait
}

// nextClearing is the next release or sweep. A sweep waits for the jobs of archives that are gone: one may be publishing.
func (a *agenda) nextClearing(records []*record, t *turn) *job {
	for _, uid := range slices.Sorted(maps.Keys(a.releases)) {
		if !t.busy[uid] && t.due(*a.releases[uid]) {
			return &job{kind: jobRelease, uid: uid}
		}
	}
	for uid := range t.busy {
		if a.records[uid] == nil {
			return nil
		}
	}
	if s := &a.sweep; s.needless && slices.ContainsFunc(s.skipped, func(name string) bool { return !slices.Contains(a.expected(), name) }) {
		s.need()
	}
	if !a.sweep.needless && t.due(a.sweep.attempt) || t.reached(a.sweep.next) {
		wanted := a.wanted(records)
		for _, name := range a.expected() {
			wanted = append(wanted, importer.Owner{Name: name})
		}
		return &job{kind: jobSweep, wanted: wanted, unknown: a.unknown}
	}
	return nil
}

// expected are the names of archives that may want what earlier ones of the same name have brought, since they are still
// to be imported.
func (a *agenda) expected() (names []string) {
	for _, o := range a.unclear {
		names = append(names, o.Name)
	}
	for _, rec := range a.oldestFirst() {
		if rec.expected() {
			names = append(names, rec.archive.Name)
		}
	}
	return names
}

// nextQuestion is the next check: of what nobody has looked at since it may have changed, with a repair of what is known
// to be lost, or because it is time.
func (a *agenda) nextQuestion(records []*record, t *turn) *job {
	for _, rec := range records {
		if t.busy[rec.archive.UID] {
			continue
		}
		switch {
		case rec.asked(), !rec.checked && t.due(rec.attempt):
			return rec.job(jobCheck)
		case rec.wantsRepair() && t.due(rec.attempt):
			j := rec.job(jobCheck)
			j.repair = true
			return j
		case (rec.done || rec.loss != "") && t.reached(rec.recheck) && t.due(rec.attempt):
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
		if t.busy[rec.archive.UID] || !rec.wantsImport() || !rec.mayBegin() || !t.due(rec.attempt) {
			continue
		}
		if t.moving == 0 || t.moving < a.limits.moving && !rec.suspect {
			return rec.job(jobImport)
		}
		t.wait = sooner(t.wait, t.stall)
	}
	return nil
}

// nextProbe is the next look at a source.
func (a *agenda) nextProbe(records []*record, t *turn) *job {
	for _, rec := range records {
		if t.probes < a.limits.probes && !t.busy[rec.archive.UID] && rec.wantsProbe() && t.due(rec.probe) {
			return rec.job(jobProbe)
		}
	}
	return nil
}

// wanted are the owners whose images are to stay.
func (a *agenda) wanted(records []*record) []importer.Owner {
	list := slices.Clone(a.unclear)
	for _, rec := range records {
		list = append(list, rec.owner)
	}
	return list
}

// outdated says whether a running job has lost its purpose.
func (a *agenda) outdated(running *job) bool {
	rec := a.records[running.uid]
	switch running.kind {
	case jobRelease, jobSweep:
		return false
	case jobImport:
		if rec != nil && (rec.archive.Spec.Suspend || !rec.mayGoOn()) {
			return true
		}
	case jobProbe: // which may wait for a server for long
		if rec != nil && !rec.wantsProbe() {
			return true
		}
	}
	return rec == nil || rec.owner.SpecHash != running.owner.SpecHash
}

// started notes that the worker has begun a job.
func (a *agenda) started(j *job, now time.Time) {
	rec := a.records[j.uid]
	if j.kind == jobCheck && rec != nil && rec.asked() {
		rec.heeded = rec.archive.Annotations[v1alpha1.AnnotationReconcileRequestedAt]
		rec.checked, rec.repaired = false, false
		rec.reset()
	}
	if j.kind != jobImport || rec == nil {
		return
	}
	// The attempt adopts what is left, or clears it away by itself.
	delete(a.releases, j.uid)
	if rec.anew {
		conditions := rec.entry.Conditions
		rec.entry, rec.anew = newRecord(rec.archive).entry, false
		rec.entry.Conditions = conditions
	}
	rec.entry.Attempts++
	rec.entry.Bytes = &v1alpha1.ArchiveBytes{}
	if rec.entry.StartTime == nil {
		rec.entry.StartTime = condition.Timestamp(now)
	}
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
