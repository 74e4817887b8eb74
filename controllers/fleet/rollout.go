package fleet

import (
	"cmp"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
)

const (
	// expiryGrace is how long an agent may take to stop an import when it sees that its time ran out, or does not hear from
	// the API server any more.
	expiryGrace = 10 * time.Second
	// speakTime is how long all nodes are given to be heard after this process was not able to hear them: thousands of
	// agents come back to an API server spread over more than a minute.
	speakTime = 2 * time.Minute
)

// standing is how a rollout stands, for the status.
type standing struct {
	failed    int  // nodes whose failures count
	maxFailed int  // how many may
	stopped   bool // more have
}

// decision is one change of a node's admissions.
type decision struct {
	verdict verdict
	node    string
	// admission takes the place of the archive's entry, except with remove.
	admission v1alpha1.Admission
}

type verdict int

const (
	remove verdict = iota // it has ended, or must not be
	expire                // no progress for too long
	renew                 // another generation
	admit
	verdicts = iota
)

func (v verdict) String() string { return [...]string{"ended", "expired", "renewed", "admitted"}[v] }

// apply returns a node's admissions as they shall be.
func (d *decision) apply(admitted []v1alpha1.Admission) []v1alpha1.Admission {
	list := slices.DeleteFunc(slices.Clone(admitted), func(x v1alpha1.Admission) bool { return x.Archive == d.admission.Archive })
	if d.verdict != remove {
		list = append(list, d.admission)
	}
	slices.SortFunc(list, func(x, y v1alpha1.Admission) int { return strings.Compare(x.Archive, y.Archive) })
	return list
}

// rollout decides who of an archive's nodes may import. How many do is counted from the admissions that the API server
// has, and from nothing else. What is remembered here is only since when a node is silent and which failures are
// known: a process that begins anew is a little later with its decisions, never too early.
type rollout struct {
	uid        types.UID
	generation int64
	requested  string    // the value of AnnotationReconcileRequestedAt that has been heeded
	since      time.Time // when this process began, or last found the API server away
	traces     map[string]*trace
}

// follow begins with an archive, or goes on with another generation of it.
func (r *rollout) follow(a *v1alpha1.ImageArchive, now time.Time) {
	requested := a.Annotations[v1alpha1.AnnotationReconcileRequestedAt]
	switch {
	case r.uid != a.UID, r.traces == nil:
		*r = rollout{uid: a.UID, requested: requested, since: now, traces: map[string]*trace{}}
	case r.generation != a.Generation:
		r.requested = requested
		clear(r.traces)
	}
	r.generation = a.Generation
}

// tidy decides about the admissions that there are. It also returns when it will have to be asked again, 0 for unknown.
func (r *rollout) tidy(a *v1alpha1.ImageArchive, members []member, strays []string, now time.Time) ([]decision, time.Duration) {
	var list []decision
	var wait time.Duration
	left := a.Spec.Rollout.Places(len(members))
	gone := v1alpha1.Admission{Archive: a.Name}
	for _, name := range strays {
		list = append(list, decision{remove, name, gone})
	}
	var renewable []decision
	for i := range members {
		m := &members[i]
		x := m.admission
		if x == nil {
			continue
		}
		switch v, keep, later := r.judge(a, m, now); {
		case keep:
			wait = sooner(wait, later)
			if !x.Expired {
				left--
			}
		case v == renew:
			renewable = append(renewable, decision{renew, m.name, newAdmission(a, now)})
		case v == expire:
			expired := *x
			expired.Expired, expired.Time = true, *condition.Timestamp(now)
			list = append(list, decision{expire, m.name, expired})
		default:
			list = append(list, decision{remove, m.name, gone})
		}
	}
	for i, d := range renewable {
		if i >= left { // the new spec has fewer places
			d = decision{remove, d.node, gone}
		}
		list = append(list, d)
	}
	return list, wait
}

// judge decides about one admission: that it be kept, until it is worth another look, or what else becomes of it.
func (r *rollout) judge(a *v1alpha1.ImageArchive, m *member, now time.Time) (v verdict, keep bool, wait time.Duration) {
	x := m.admission
	t := r.trace(m, now)
	switch {
	case a.Spec.Rollout == nil, x.UID != a.UID:
		return remove, false, 0
	case x.Generation > a.Generation:
		return 0, true, 0 // the archive that was looked at is an old one
	case m.ready(), x.Generation != a.Generation && x.Expired:
		return remove, false, 0
	case x.Expired:
		return 0, true, 0
	case a.Spec.Suspend:
		t.moved = now
		return 0, true, 0
	case x.Generation != a.Generation:
		return renew, false, 0
	case t.ended(m):
		return remove, false, 0
	}
	limit := a.Spec.Rollout.Deadline()
	if left := max(t.moved.Add(limit).Sub(now), r.since.Add(min(limit, speakTime)).Sub(now)); left > 0 {
		return 0, true, left
	}
	return expire, false, 0
}

// trace looks after a node that is admitted or has failed. One that this process sees for the first time has made its
// latest progress when it last reported anything, or was admitted.
func (r *rollout) trace(m *member, now time.Time) *trace {
	t := r.traces[m.name]
	s := signOf(m.entry)
	var moved int64
	if m.entry != nil && m.entry.Bytes != nil {
		moved = m.entry.Bytes.Done + m.entry.Bytes.Skipped
	}
	reported := reportTime(m.state)
	switch {
	case t == nil:
		t = &trace{sign: s, still: s, most: moved, moved: reported}
		if m.admission != nil && m.admission.Time.After(t.moved) {
			t.moved = m.admission.Time.Time
		}
		if m.waits() {
			t.still = sign{} // it seems to know that its time ran out, so it lives
		}
		if f := m.flaw(r.generation); f.wrong() && f.since.Before(requestTime(r.requested)) {
			t.excused = &f // somebody has asked to go on in spite of it, if only an earlier process
		}
		r.traces[m.name] = t
	case s != t.sign || moved > t.most:
		if reported.Before(t.moved) {
			reported = now // clocks differ
		}
		t.sign, t.most, t.moved = s, max(t.most, moved), reported
	}
	if t.moved.After(now) {
		t.moved = now
	}
	return t
}

// reportTime is when a node's agent last wrote its report, by the API server's clock.
func reportTime(state *v1alpha1.NodeImageState) time.Time {
	var last time.Time
	if state == nil {
		return last
	}
	for i := range state.ManagedFields {
		if f := &state.ManagedFields[i]; f.Subresource == "status" && f.Time != nil && f.Time.After(last) {
			last = f.Time.Time
		}
	}
	return last
}

// ended says whether a node's admitted attempt has failed for good. A report that it had stalled already before it was
// let in does not say so; in doubt the place stays taken until the deadline.
func (t *trace) ended(m *member) bool {
	f := m.flaw(m.admission.Generation)
	if f.stalled.IsZero() {
		return false
	}
	if t.before == nil {
		return !f.stalled.Before(m.admission.Time.Time)
	}
	return f.reason != t.before.reason || f.message != t.before.message || !f.stalled.Equal(t.before.stalled)
}

// count brings the known failures up to date and says how many nodes' failures count.
func (r *rollout) count(a *v1alpha1.ImageArchive, members []member, now time.Time) standing {
	s := standing{maxFailed: int(ptr.Deref(a.Spec.Rollout.MaxFailed, 1))}
	requested := a.Annotations[v1alpha1.AnnotationReconcileRequestedAt]
	goOn := requested != "" && requested != r.requested
	r.requested = requested
	known := make(map[string]*trace, len(r.traces))
	for i := range members {
		m := &members[i]
		f := m.flaw(a.Generation)
		if m.ready() || !f.wrong() && m.admission == nil {
			continue
		}
		t := r.trace(m, now)
		known[m.name] = t
		switch {
		case !f.wrong():
			t.failed = time.Time{}
		case t.failed.IsZero():
			t.failed = now
		}
		if f.wrong() && goOn {
			t.excused = &f
		}
		if f.counts() && f.again(t.before) && f.again(t.excused) {
			s.failed++
		}
	}
	r.traces = known
	s.stopped = s.failed > s.maxFailed
	return s
}

// admit decides who is let in: as many as there are places left, first of those with which nothing is wrong, in an order
// that is another for each archive, so that not the same nodes always go first. It also returns when there will be more to
// decide, 0 for unknown.
func (r *rollout) admit(a *v1alpha1.ImageArchive, members []member, now time.Time) ([]decision, time.Duration) {
	if a.Spec.Suspend {
		return nil, 0
	}
	var wait time.Duration
	left := a.Spec.Rollout.Places(len(members))
	candidates := make([]candidate, 0, len(members))
	for i := range members {
		m := &members[i]
		if m.admission != nil {
			if held, later := r.holds(a, m, now); held {
				wait = sooner(wait, later)
				left--
				continue
			}
		}
		if m.state == nil || m.entry == nil || m.ready() || a.Spec.DriftPolicy == v1alpha1.DriftIgnore && !m.waits() &&
			condition.HasReason(m.entry.Conditions, v1alpha1.ConditionReady, v1alpha1.ReasonDrifted) {
			continue
		}
		c := candidate{member: m, hash: orderOf(a.UID, m.name)}
		if t := r.traces[m.name]; t != nil && !t.failed.IsZero() {
			c.failed = t.failed
			at, lives := t.retry(m, a.Generation)
			if later := at.Sub(now); lives && later > 0 {
				wait = sooner(wait, later)
			}
			if !lives || at.After(now) {
				continue
			}
		}
		candidates = append(candidates, c)
	}
	if left <= 0 {
		return nil, wait
	}
	slices.SortFunc(candidates, candidate.compare)
	var list []decision
	for _, c := range candidates[:min(left, len(candidates))] {
		list = append(list, decision{admit, c.name, newAdmission(a, now)})
	}
	return list, wait
}

// holds says whether an admission takes a place, and for how long at least if that will end by itself. One of an earlier
// archive or generation does until it is removed.
func (r *rollout) holds(a *v1alpha1.ImageArchive, m *member, now time.Time) (bool, time.Duration) {
	if !m.admission.Expired {
		return true, 0
	}
	t := r.traces[m.name]
	if t == nil || t.failed.IsZero() || m.waits() && t.sign != t.still { // it may have said so before it was let in
		return false, 0
	}
	left := t.failed.Add(graceOf(a.Spec.Rollout)).Sub(now)
	return left > 0, left
}

// graceOf is how long an admission that has expired keeps its place if the node does not say that it has stopped: so long it
// may not have heard of it.
func graceOf(r *v1alpha1.Rollout) time.Duration { return fenceTime(r) + min(expiryGrace, r.Deadline()) }

// retry is when a node with which something is wrong may be let in again: as often as what stalls is tried elsewhere, and at
// once when somebody asks for it or a silent node speaks again. One that still says that it is at work, though it must not
// be, has not heard of that, so it would not hear of another admission either.
func (t *trace) retry(m *member, generation int64) (at time.Time, lives bool) {
	f := m.flaw(generation)
	switch {
	case !f.again(t.excused), f.expired && t.sign != t.still:
		return t.failed, true
	case f.expired && m.entry != nil && condition.IsTrue(m.entry.Conditions, v1alpha1.ConditionReconciling) && !m.waits():
		return time.Time{}, false
	}
	return t.failed.Add(stalledInterval), true
}

type candidate struct {
	*member
	failed time.Time // zero: nothing is wrong with it
	hash   uint64
}

func (c candidate) compare(o candidate) int {
	return cmp.Or(c.failed.Compare(o.failed), cmp.Compare(c.hash, o.hash), strings.Compare(c.name, o.name))
}

func orderOf(archive types.UID, node string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(archive))
	_, _ = h.Write([]byte(node))
	return h.Sum64()
}

// done takes in that a decision has been written.
func (r *rollout) done(d *decision, m *member, now time.Time) {
	switch d.verdict {
	case remove:
		if t := r.traces[d.node]; t != nil {
			t.before = nil
		}
	case expire:
		t := r.trace(m, now)
		t.before, t.failed, t.still = nil, now, t.sign
	case renew, admit:
		f := m.flaw(d.admission.Generation)
		f.expired = false
		delete(r.traces, d.node)
		t := r.trace(m, now)
		t.moved, t.before, t.excused = now, &f, nil
	}
}

func newAdmission(a *v1alpha1.ImageArchive, now time.Time) v1alpha1.Admission {
	return v1alpha1.Admission{Archive: a.Name, UID: a.UID, Generation: a.Generation, Time: *condition.Timestamp(now)}
}

// requestTime is the time that is the value of AnnotationReconcileRequestedAt, as is customary; zero for another value.
func requestTime(value string) time.Time {
	if at, err := time.Parse(time.RFC3339, value); err == nil {
		return at
	}
	if seconds, err := strconv.ParseInt(value, 10, 64); err == nil {
		return time.Unix(seconds, 0)
	}
	return time.Time{}
}

// minFence keeps a short progressDeadline from stopping imports for an API server that is only slow.
const minFence = 6 * time.Second

// fenceTime is how long an agent that does not hear from the API server holds its place in a rollout.
func fenceTime(r *v1alpha1.Rollout) time.Duration { return max(r.Deadline()/3, minFence) }
