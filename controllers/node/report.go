package node

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
	"github.com/tarlift/tarlift/internal/importer"
)

// status is what the node has to report now that the worker does running.
func (a *agenda) status(running []activity, now time.Time) *v1alpha1.NodeImageStateStatus {
	s := &v1alpha1.NodeImageStateStatus{Containerd: a.runtime.DeepCopy()}
	ready := 0
	for _, rec := range a.oldestFirst() {
		current := rec.importAmong(running)
		if current != nil {
			p := current.progress
			rec.entry.Bytes = &v1alpha1.ArchiveBytes{Total: p.Total, Done: p.Done, Skipped: p.Skipped}
		}
		if rec.done {
			ready++
		}
		rec.entry.LastError = nil
		if rec.failure != nil {
			rec.entry.LastError = rec.failure.DeepCopy()
		}
		rec.entry.Conditions = condition.Merge(rec.entry.Conditions, rec.archive.Generation, now, rec.conditions(current)...)
		s.Archives = append(s.Archives, *rec.entry.DeepCopy())
	}
	slices.SortFunc(s.Archives, func(x, y v1alpha1.ArchiveState) int { return strings.Compare(x.Name, y.Name) })
	s.Summary = fmt.Sprintf("%d/%d", ready, len(s.Archives))
	fitTexts(s)
	return s
}

// importAmong is the import that runs for a record as it is now, nil for none.
func (r *record) importAmong(running []activity) *activity {
	for i, j := range running {
		if j.kind == jobImport && j.uid == r.archive.UID && j.owner.SpecHash == r.owner.SpecHash {
			return &running[i]
		}
	}
	return nil
}

// conditions describe a record. While an attempt that follows a failed one runs, Ready keeps telling the failure:
// whether that is over only the attempt's end tells, and else each retry would cost two writes.
func (r *record) conditions(running *activity) []metav1.Condition {
	doing := r.doing(running)
	ready := func(reason, message string) metav1.Condition {
		return condition.New(v1alpha1.ConditionReady, metav1.ConditionFalse, reason, message)
	}
	stalled := func(reason, message string) metav1.Condition {
		return condition.New(v1alpha1.ConditionStalled, metav1.ConditionTrue, reason, message)
	}
	f := r.failure
	// Where a rollout let the node try again, the controller has to see that this attempt has failed, too.
	terminal := f != nil && f.terminal && (running == nil || r.archive.Spec.Rollout == nil)
	switch {
	case r.done:
		return []metav1.Condition{condition.New(v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonImported,
			condition.Count(int(r.entry.ImageCount), "image")+" complete")}
	case r.archive.Spec.Suspend && r.loss != "":
		return []metav1.Condition{ready(v1alpha1.ReasonSuspended, "spec.suspend is set; "+r.loss)}
	case r.archive.Spec.Suspend:
		return []metav1.Condition{ready(v1alpha1.ReasonSuspended, "spec.suspend is set")}
	case r.loss != "" && ignoresDrift(r.archive) && !r.stale:
		return []metav1.Condition{ready(v1alpha1.ReasonDrifted, r.loss), stalled(v1alpha1.ReasonDrifted, r.loss)}
	case r.loss != "" && terminal:
		return []metav1.Condition{ready(v1alpha1.ReasonDrifted, condition.Clip(r.loss+lossDetail+f.Message)), stalled(f.Reason, f.Message)}
	case r.loss != "" && f != nil:
		return []metav1.Condition{ready(v1alpha1.ReasonDrifted, condition.Clip(r.loss+lossDetail+f.Message)), doing}
	case r.loss != "":
		return []metav1.Condition{ready(v1alpha1.ReasonDrifted, r.loss), doing}
	case terminal:
		return []metav1.Condition{ready(f.Reason, f.Message), stalled(f.Reason, f.Message)}
	case f != nil && doing.Reason != v1alpha1.ReasonWaitingForRollout:
		return []metav1.Condition{ready(f.Reason, f.Message), doing}
	case running != nil:
		return []metav1.Condition{ready(v1alpha1.ReasonImporting, "the import is running"), doing}
	}
	return []metav1.Condition{ready(doing.Reason, doing.Message), doing}
}

// doing is the condition Reconciling of a record for which something is done, or is to be done.
func (r *record) doing(running *activity) metav1.Condition {
	reason, message := v1alpha1.ReasonPending, "waits for its turn"
	switch {
	case running != nil:
		reason, message = v1alpha1.ReasonImporting, phaseText(running.progress)
	case !r.mayBegin():
		reason, message = v1alpha1.ReasonWaitingForRollout, "waits until spec.rollout lets the node import"
		if r.failure != nil {
			message = condition.Clip(message + "; " + r.failure.Message)
		}
	case r.failure != nil:
		message = "will be tried again"
	case r.stale:
		message = "the source holds another archive"
	}
	return condition.New(v1alpha1.ConditionReconciling, metav1.ConditionTrue, reason, message)
}

// phaseText is what an import does, with the share that is unpacked when there is nothing else that grows.
func phaseText(p importer.Progress) string {
	if p.Phase != importer.PhaseUnpacking || p.Total == 0 {
		return string(p.Phase)
	}
	return fmt.Sprintf("%s, %d %%", p.Phase, p.Unpacked*100/p.Total)
}

// withoutShare takes that share out of conditions, in percent.
func withoutShare(conditions []metav1.Condition) (rest []metav1.Condition, share int) {
	rest = slices.Clone(conditions)
	for i := range rest {
		c := &rest[i]
		phase, percent, ok := strings.Cut(c.Message, ", ")
		if ok && c.Type == v1alpha1.ConditionReconciling && c.Reason == v1alpha1.ReasonImporting {
			c.Message = phase
			share, _ = strconv.Atoi(strings.TrimSuffix(percent, " %")) // ours
		}
	}
	return rest, share
}

// change says how much a status differs from the one that was written.
type change int

const (
	noChange change = iota
	// progressChange is what may wait: bytes, attempts, and what exactly is being done.
	progressChange
	// stateChange is what people and the roll-up wait for.
	stateChange
)

// progressStep is the part of an archive that is worth a write, in percent.
const progressStep = 10

// compare says what kind of write a new status is worth.
func compare(written, current *v1alpha1.NodeImageStateStatus) change {
	if !equality.Semantic.DeepEqual(stateOf(written), stateOf(current)) {
		return stateChange
	}
	for i := range current.Archives {
		if progressed(&written.Archives[i], &current.Archives[i]) {
			return progressChange
		}
	}
	return noChange
}

// stateOf is a status without what changes in the course of an attempt.
func stateOf(s *v1alpha1.NodeImageStateStatus) *v1alpha1.NodeImageStateStatus {
	s = s.DeepCopy()
	for i := range s.Archives {
		e := &s.Archives[i]
		e.Bytes, e.Attempts, e.StartTime = nil, 0, nil
		e.Conditions = slices.DeleteFunc(e.Conditions, func(c metav1.Condition) bool { return c.Type == v1alpha1.ConditionReconciling })
	}
	return s
}

func progressed(written, current *v1alpha1.ArchiveState) bool {
	x, y := *written, *current
	x.Bytes, y.Bytes = nil, nil
	var had, has int
	x.Conditions, had = withoutShare(x.Conditions)
	y.Conditions, has = withoutShare(y.Conditions)
	if !equality.Semantic.DeepEqual(&x, &y) || has-had >= progressStep {
		return true
	}
	before, after := written.Bytes, current.Bytes
	switch {
	case before == nil || after == nil:
		return before != after
	case before.Total != after.Total:
		return true
	}
	moved := after.Done + after.Skipped - before.Done - before.Skipped
	return moved != 0 && moved*100 >= after.Total*progressStep
}

// moved says whether a running import has got further at all.
func moved(written, current *v1alpha1.NodeImageStateStatus) bool {
	return !equality.Semantic.DeepEqual(written.Archives, current.Archives)
}

const (
	// settleTime lets changes that follow each other at once become one write.
	settleTime = 200 * time.Millisecond
	// progressInterval is the least time between two writes that tell progress only.
	progressInterval = 10 * time.Second
	// clusterWriteRate is how many status writes a second all agents together may ask of an API server, an Event beside
	// each: what the largest fleet has to tell of one archive then takes it little more than a minute.
	clusterWriteRate = 70
	// heavyReport is with how many further archives a report costs an API server twice what one with a single archive does:
	// 29 ms with 20 archives, and 11 ms. Such reports are made accordingly more rarely, unless the largest fleet would not
	// have told within heavyWindow what all of it has imported: a new archive shall be Ready within two minutes.
	heavyReport = 12
	heavyWindow = 100 * time.Second
)

// pacer rations the writes of one node's status.
type pacer struct {
	last   time.Time     // of the last write
	due    time.Time     // when the change of state is to be written that waits for that; zero for none
	since  time.Time     // when that change appeared
	place  float64       // in [0, 1): its place among the writes of all agents
	window time.Duration // that those were spread over when due was settled
}

// wait is how long a write has to wait, 0 for not at all. All agents that have the same to tell about the same time spread
// their writes over the window. It may grow while a write waits: of a new archive, agents learn a moment after it how many
// nodes it selects. When it shrinks, all learn that at once, and those whose places have gone by spread anew.
func (p *pacer) wait(c change, now time.Time, window time.Duration, jitter func() float64) time.Duration {
	if c != stateChange {
		p.settled()
		return max(0, p.last.Add(max(progressInterval, window)).Sub(now))
	}
	at := func(begin time.Time) time.Time {
		return later(begin.Add(settleTime+time.Duration(p.place*float64(window))), p.last.Add(window))
	}
	switch {
	case p.due.IsZero():
		p.since, p.place = now, jitter()
		p.due = at(now)
	case window > p.window:
		p.due = later(p.due, at(p.since)) // it may have been spread anew since then
	case window < p.window:
		if anew := at(now); anew.Before(p.due) {
			p.due = anew
		}
	}
	p.window = window
	return max(0, p.due.Sub(now))
}

// writeWindow is what this many agents spread their writes over, of reports with so many archives.
func writeWindow(nodes int32, archives int) time.Duration {
	window := time.Duration(nodes) * time.Second / clusterWriteRate
	heavy := window + window*time.Duration(max(archives-1, 0))/heavyReport
	return max(window, min(heavy, heavyWindow))
}

// settled notes that no change of state waits.
func (p *pacer) settled() { p.due = time.Time{} }

func (p *pacer) wrote(now time.Time) { *p = pacer{last: now} }
