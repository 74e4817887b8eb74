package fleet

import (
	"cmp"
	"hash/fnv"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
)

// retryAfter is how long a node that failed is not admitted again.
const retryAfter = 10 * time.Minute

// maxAdmitted is how many admissions a NodeImageState may have.
const maxAdmitted = 256

// decision is one change of a node's admissions.
type decision struct {
	verdict   verdict
	node      string
	admission v1alpha1.Admission // the new one with admitted and renewed; else only its archive is given
}

type verdict string

const (
	ended    verdict = "ended"   // the slot is free
	expired  verdict = "expired" // so it is, after no progress for progressDeadline
	renewed  verdict = "renewed" // for another generation
	admitted verdict = "admitted"
)

func (d *decision) frees() bool { return d.verdict == ended || d.verdict == expired }

// apply returns a node's admissions as they shall be.
func (d *decision) apply(list []v1alpha1.Admission) []v1alpha1.Admission {
	list = slices.DeleteFunc(slices.Clone(list), func(x v1alpha1.Admission) bool { return x.Archive == d.admission.Archive })
	if d.frees() {
		return list
	}
	return append(list, d.admission)
}

// rollout decides which nodes may import one generation of an archive. A slot is taken while a NodeImageState has an
// admission; what is remembered here is what the API server does not hold. A process that begins anew gives every node
// its whole progressDeadline.
type rollout struct {
	requested string              // the value of AnnotationReconcileRequestedAt that was observed
	progress  map[string]progress // of admitted nodes
	failures  map[string]failure  // of nodes that are not ready
}

// progress is how far a node has come under an admission.
type progress struct {
	admitted int64                  // time of the admission
	entry    *v1alpha1.ArchiveState // the latest report
	bytes    int64                  // the most so far
	since    time.Time              // when progress was seen, by this process' own clock
}

// next compares a report with the former one. A node that has failed makes progress only by more bytes than before. No time
// before started counts as time without progress.
func (p progress) next(n *selectedNode, started, now time.Time) progress {
	if at := n.admission.Time.Unix(); p.admitted != at {
		p = progress{admitted: at, since: now}
	}
	var bytes int64
	if n.entry != nil && n.entry.Bytes != nil {
		bytes = n.entry.Bytes.Done + n.entry.Bytes.Skipped
	}
	if bytes > p.bytes || n.entry != nil && n.entry.LastError == nil && !equality.Semantic.DeepEqual(n.entry, p.entry) {
		p.since = now
	}
	if p.since.Before(started) {
		p.since = started
	}
	p.entry, p.bytes = n.entry, max(bytes, p.bytes)
	return p
}

// failure is the latest one of a node.
type failure struct {
	admitted int64                  // time of the admission under which it failed
	timedOut bool                   // it made no progress for progressDeadline; else it reports an error
	entry    *v1alpha1.ArchiveState // the report at that time
	since    time.Time              // by this process' own clock; zero: somebody has asked to go on in spite of it
}

// observe notes progress and failures. An error before any attempt speaks against the node, not the archive; one that is
// reported after the admission was removed is the former one.
func (r *rollout) observe(a *v1alpha1.ImageArchive, nodes []selectedNode, started, now time.Time) {
	requested := a.Annotations[v1alpha1.AnnotationReconcileRequestedAt]
	goOn := requested != "" && requested != r.requested
	moves, failures := map[string]progress{}, map[string]failure{}
	for i := range nodes {
		n := &nodes[i]
		if n.admission != nil {
			moves[n.name] = r.progress[n.name].next(n, started, now)
		}
		f, failed := r.failures[n.name]
		switch reports := n.entry != nil && n.entry.LastError != nil && n.entry.Attempts > 0; {
		case reports && (!failed || n.admittedTime() != 0 && n.admittedTime() != f.admitted):
			f, failed = failure{admitted: n.admittedTime(), since: now}, true
		case !reports && !f.timedOut:
			failed = false
		}
		if !failed || n.ready() {
			continue
		}
		if goOn {
			f.since = time.Time{}
		}
		failures[n.name] = f
	}
	r.requested, r.progress, r.failures = requested, moves, failures
}

// failed is how many nodes count against maxFailed.
func (r *rollout) failed() (n int) {
	for _, f := range r.failures {
		if !f.since.IsZero() {
			n++
		}
	}
	return n
}

// decide returns what to write, admissions last, since they count on the slots that the others free; and when there will be
// more to decide, 0 for unknown.
func (r *rollout) decide(a *v1alpha1.ImageArchive, nodes []selectedNode, now time.Time) (list []decision, wait time.Duration) {
	var outdated []*selectedNode
	end := func(v verdict, n *selectedNode) {
		list = append(list, decision{v, n.name, v1alpha1.Admission{Archive: a.Name}})
	}
	kept, failed, slots := 0, r.failed(), a.Spec.Rollout.Slots(len(nodes))
	for i := range nodes {
		n := &nodes[i]
		x := n.admission
		if x == nil {
			continue
		}
		left := r.timeLeft(a, n, now)
		switch {
		case x.UID != a.UID, n.ready(), x.Generation == a.Generation && n.stopped() && n.admittedTime() == x.Time.Unix():
			end(ended, n)
		case x.Generation < a.Generation:
			outdated = append(outdated, n)
		case x.Generation == a.Generation && left <= 0:
			failed++
			end(expired, n)
		default:
			kept, wait = kept+1, sooner(wait, left)
		}
	}
	for _, n := range outdated {
		switch left := r.timeLeft(a, n, now); {
		case !a.Spec.Suspend && kept < slots:
			kept++
			list = append(list, decision{renewed, n.name, newAdmission(a, n, now)})
		case n.stopped() || left <= 0:
			end(ended, n)
		default: // its slot is taken until it reports that it has stopped
			kept, wait = kept+1, sooner(wait, left)
		}
	}
	if a.Spec.Suspend || failed > maxFailed(a) {
		return list, wait
	}
	candidates, later := r.candidates(a, nodes, now)
	for _, n := range candidates[:max(0, min(slots-kept, len(candidates)))] {
		list = append(list, decision{admitted, n.name, newAdmission(a, n, now)})
	}
	return list, sooner(wait, later)
}

func (r *rollout) timeLeft(a *v1alpha1.ImageArchive, n *selectedNode, now time.Time) time.Duration {
	return r.progress[n.name].since.Add(a.Spec.Rollout.Deadline()).Sub(now)
}

func maxFailed(a *v1alpha1.ImageArchive) int { return int(ptr.Deref(a.Spec.Rollout.MaxFailed, 1)) }

// candidates are the nodes that may be admitted, those that failed last, in an order that is another for each archive, so
// that not always the same nodes go first. It also returns when there will be more, 0 for unknown.
func (r *rollout) candidates(a *v1alpha1.ImageArchive, nodes []selectedNode, now time.Time) (list []*selectedNode, wait time.Duration) {
	for i := range nodes {
		n := &nodes[i]
		f, failed := r.failures[n.name]
		if n.admission != nil || n.entry == nil || n.ready() || len(n.state.Spec.Admitted) >= maxAdmitted ||
			!failed && (!n.waits() || n.entry.LastError != nil) {
			continue
		}
		// One that timed out and reports since then that it waits has been silent, and is not any more.
		back := f.timedOut && n.waits() && !equality.Semantic.DeepEqual(n.entry, f.entry)
		if left := f.since.Add(retryAfter).Sub(now); failed && !back && left > 0 {
			wait = sooner(wait, left)
			continue
		}
		list = append(list, n)
	}
	slices.SortFunc(list, func(x, y *selectedNode) int {
		return cmp.Or(r.failures[x.name].since.Compare(r.failures[y.name].since), cmp.Compare(orderOf(a.UID, x.name), orderOf(a.UID, y.name)),
			strings.Compare(x.name, y.name))
	})
	return list, wait
}

func orderOf(archive types.UID, node string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(archive))
	_, _ = h.Write([]byte(node))
	return h.Sum64()
}

// newAdmission has another time than the one under which the node reports, so that none of its reports so far is taken
// for one about this admission.
func newAdmission(a *v1alpha1.ImageArchive, n *selectedNode, now time.Time) v1alpha1.Admission {
	at := condition.Timestamp(now)
	if at.Unix() == n.admittedTime() {
		at = condition.Timestamp(now.Add(time.Second))
	}
	return v1alpha1.Admission{Archive: a.Name, UID: a.UID, Generation: a.Generation, Time: *at}
}

// sooner is the smaller of two waits, of which 0 means none.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}
