package fleet

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
)

// member is one selected node.
type member struct {
	name      string
	state     *v1alpha1.NodeImageState // nil: its agent has not reported yet
	entry     *v1alpha1.ArchiveState   // about this generation; nil: none
	admission *v1alpha1.Admission      // of an archive of this name; nil: none
}

func (m *member) ready() bool {
	return m.entry != nil && condition.IsTrue(m.entry.Conditions, v1alpha1.ConditionReady)
}

// waits says whether a node reports that the rollout has not let it in.
func (m *member) waits() bool { return m.entry != nil && waits(m.entry) }

func waits(e *v1alpha1.ArchiveState) bool {
	const reason = v1alpha1.ReasonWaitingForRollout
	return condition.HasReason(e.Conditions, v1alpha1.ConditionReady, reason) || condition.HasReason(e.Conditions, v1alpha1.ConditionReconciling, reason)
}

// admissionFor is what a node is told about archives of a name, nil for nothing.
func admissionFor(name string, state *v1alpha1.NodeImageState) *v1alpha1.Admission {
	if state == nil {
		return nil
	}
	for i := range state.Spec.Admitted {
		if x := &state.Spec.Admitted[i]; x.Archive == name {
			return x
		}
	}
	return nil
}

// trace is what is remembered of a node that is admitted or has failed.
type trace struct {
	sign    sign
	still   sign      // as it was when the node's time ran out, or it was first seen
	most    int64     // bytes that were there at most
	moved   time.Time // when progress was made last
	before  *flaw     // what was wrong with the node already when it was let in; nil: it is not in, or that is unknown
	excused *flaw     // and when somebody asked to go on; nil: nobody has
	failed  time.Time // since when something is wrong; zero for nothing
}

// sign is what changes in a node's report while its import goes on.
type sign struct {
	attempts      int32
	failed        bool
	reason, phase string
}

func signOf(e *v1alpha1.ArchiveState) sign {
	if e == nil {
		return sign{}
	}
	s := sign{failed: e.LastError != nil}
	if s.failed {
		return s // one that fails again and again makes no progress by trying
	}
	s.attempts = e.Attempts
	if c := condition.Find(e.Conditions, v1alpha1.ConditionReady); c != nil {
		s.reason = c.Reason
	}
	if c := condition.Find(e.Conditions, v1alpha1.ConditionReconciling); c != nil {
		s.phase = c.Reason + c.Message
	}
	return s
}

// flaw is what is wrong with a node. The zero value is nothing.
type flaw struct {
	expired         bool
	reason, message string
	attempts        int32
	stalled         time.Time // since when; zero: it is not
	since           time.Time // not later than this it has been so
}

func (m *member) flaw(generation int64) flaw {
	var f flaw
	if e := m.entry; e != nil && e.LastError != nil {
		f.reason, f.message, f.attempts = e.LastError.Reason, e.LastError.Message, e.Attempts
		f.stalled, f.since = stalledSince(e), reportTime(m.state)
		if !f.stalled.IsZero() {
			f.since = f.stalled
		}
	}
	if x := m.admission; x != nil && x.Expired && x.Generation == generation {
		f.expired, f.since = true, x.Time.Time
	}
	return f
}

// stalledSince is zero for what does not stall.
func stalledSince(e *v1alpha1.ArchiveState) time.Time {
	if c := condition.Find(e.Conditions, v1alpha1.ConditionStalled); c != nil && c.Status == metav1.ConditionTrue {
		return c.LastTransitionTime.Time
	}
	return time.Time{}
}

func (f flaw) wrong() bool { return f.expired || f.reason != "" }

// counts says whether a flaw speaks against the archive. What keeps a node from even trying does not.
func (f flaw) counts() bool { return f.expired || f.reason != "" && f.attempts > 0 }

// again says whether this is more than what was wrong before, nil for nothing. An attempt that is under way is counted
// already.
func (f flaw) again(before *flaw) bool {
	return before == nil || f.expired && !before.expired || f.reason != before.reason || f.message != before.message ||
		f.attempts > before.attempts+1 || !before.stalled.IsZero() && f.stalled.After(before.stalled)
}
