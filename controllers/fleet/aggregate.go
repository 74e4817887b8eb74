package fleet

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
	"github.com/tarlift/tarlift/internal/reason"
)

const (
	// maxFailures is how many failing nodes an archive's status shows: enough to see what is wrong, while the status
	// stays small however many nodes there are.
	maxFailures = 10
)

// failureReasons are those that a node may report; any other is shown as Unknown.
var failureReasons = sets.New(
	v1alpha1.ReasonDrifted, v1alpha1.ReasonDigestMismatch, v1alpha1.ReasonArchiveInvalid, v1alpha1.ReasonTruncated,
	v1alpha1.ReasonLimitExceeded, v1alpha1.ReasonContentIncomplete, v1alpha1.ReasonNoMatchingPlatform, v1alpha1.ReasonInvalidName,
	v1alpha1.ReasonNameConflict, v1alpha1.ReasonInsufficientDisk, v1alpha1.ReasonSourceNotFound, v1alpha1.ReasonSourceDenied,
	v1alpha1.ReasonSourceUnavailable, v1alpha1.ReasonRuntimeUnavailable, v1alpha1.ReasonNotVisible, v1alpha1.ReasonImportFailed,
)

var (
	digestPattern = regexp.MustCompile(`^sha256:[a-f0-9]{64}$`)
	imageDigest   = regexp.MustCompile(`^(sha256:[a-f0-9]{64}|sha384:[a-f0-9]{96}|sha512:[a-f0-9]{128})$`)
)

// aggregate returns the status of an archive from what its nodes report, which is not trusted: the status is valid whatever
// that is. A node that has not reported on this generation is pending. invalid is what is wrong with the selector.
func aggregate(a *v1alpha1.ImageArchive, nodes []selectedNode, invalid error, ro *rollout, now time.Time) *v1alpha1.ImageArchiveStatus {
	var t totals
	for i := range nodes {
		t.add(a, &nodes[i], ro)
	}
	t.sampleFailures()
	t.counts.Summary = fmt.Sprintf("%d/%d", t.counts.Ready, t.counts.Desired)
	s := &v1alpha1.ImageArchiveStatus{ObservedGeneration: a.Generation, Nodes: &t.counts, Progress: t.progress()}
	if len(t.ready) > 0 {
		t.countVotes(a, s)
	} else if len(nodes) > 0 {
		s.Images = a.Status.Images // those of before; what a node then reports as the same need not be repeated
	}
	for _, f := range t.failures {
		s.Failures = append(s.Failures, f.NodeFailure)
	}
	conditions := t.conditions(a, ro.failed())
	if invalid != nil {
		text := condition.ClipTo("spec.nodeSelector: "+condition.ErrorText(invalid), condition.MaxText)
		conditions = stalled(v1alpha1.ReasonInvalidSelector, text)
	}
	s.Conditions = condition.Merge(a.Status.Conditions, a.Generation, now, conditions...)
	return s
}

// totals are counted over the selected nodes.
type totals struct {
	counts   v1alpha1.NodeCounts
	waiting  int32 // pending ones that are not admitted
	failures []nodeFailure
	ready    []*v1alpha1.ArchiveState
	archives int   // different ones that ready nodes have
	percent  int64 // the sum over all nodes
	measured bool  // a node reports how much it needs
}

type nodeFailure struct {
	v1alpha1.NodeFailure
	stalled bool
}

func (t *totals) add(a *v1alpha1.ImageArchive, n *selectedNode, ro *rollout) {
	t.counts.Desired++
	if n.ready() {
		t.counts.Ready++
		t.ready = append(t.ready, n.entry)
		return
	}
	percent, measured := percentOf(n.entry)
	t.percent, t.measured = t.percent+percent, t.measured || measured
	switch f := failureOf(n.entry); {
	case f != nil:
		f.Node = n.name
		t.failures = append(t.failures, *f)
	case a.Spec.Rollout != nil && ro.failures[n.name].timedOut:
		t.failures = append(t.failures, nodeFailure{NodeFailure: v1alpha1.NodeFailure{
			Node: n.name, Reason: v1alpha1.ReasonProgressDeadlineExceeded, Message: fmt.Sprintf("no progress for %s", a.Spec.Rollout.Deadline()),
		}})
	case n.entry != nil && condition.HasReason(n.entry.Conditions, v1alpha1.ConditionReady, v1alpha1.ReasonImporting):
		t.counts.Importing++
		return
	default:
		t.counts.Pending++
		if x := n.admission; a.Spec.Rollout != nil && (x == nil || x.UID != a.UID || x.Generation != a.Generation) {
			t.waiting++
		}
		return
	}
	t.counts.Failed++
}

// failureOf is why a node is not ready, nil for no failure.
func failureOf(e *v1alpha1.ArchiveState) *nodeFailure {
	if e == nil {
		return nil
	}
	f := func(reason, message string, stalled bool) *nodeFailure {
		if !failureReasons.Has(reason) {
			reason = v1alpha1.ReasonUnknown
		}
		return &nodeFailure{NodeFailure: v1alpha1.NodeFailure{Reason: reason, Message: message}, stalled: stalled}
	}
	c := meta.FindStatusCondition(e.Conditions, v1alpha1.ConditionStalled)
	stalls := c != nil && c.Status == metav1.ConditionTrue
	if e.LastError != nil {
		// With a rollout, a node that has failed for good waits to be admitted again, and no longer says that it stalls.
		return f(e.LastError.Reason, e.LastError.Message, stalls || reason.IsTerminal(e.LastError.Reason))
	}
	if stalls { // without an attempt that failed: what is lost and shall not come back
		return f(c.Reason, c.Message, true)
	}
	if c := meta.FindStatusCondition(e.Conditions, v1alpha1.ConditionReady); c != nil && c.Reason == v1alpha1.ReasonNotVisible {
		return f(c.Reason, c.Message, false)
	}
	return nil
}

// percentOf is how much of what a node needs is there, where it reports that.
func percentOf(e *v1alpha1.ArchiveState) (percent int64, ok bool) {
	if e == nil || e.Bytes == nil || e.Bytes.Total <= 0 {
		return 0, false
	}
	part := (float64(e.Bytes.Done) + float64(e.Bytes.Skipped)) / float64(e.Bytes.Total)
	return int64(100 * min(max(part, 0), 1)), true
}

// progress is the mean over all nodes, of which each needs about as much.
func (t *totals) progress() string {
	if len(t.ready) == 0 && !t.measured {
		return ""
	}
	return fmt.Sprintf("%d%%", (t.percent+100*int64(t.counts.Ready))/int64(t.counts.Desired))
}

// countVotes says of an archive as a whole what most ready nodes do. Whether a node knows the digest of the whole depends on
// how it read the archive, and the number of images on its platform.
func (t *totals) countVotes(a *v1alpha1.ImageArchive, s *v1alpha1.ImageArchiveStatus) {
	index, archives := most(t.ready, func(e *v1alpha1.ArchiveState) string { return e.IndexDigest })
	t.archives = archives
	same := slices.DeleteFunc(t.ready, func(e *v1alpha1.ArchiveState) bool { return e.IndexDigest != index })
	digest, _ := most(same, func(e *v1alpha1.ArchiveState) string { return e.Digest })
	size, _ := most(same, func(e *v1alpha1.ArchiveState) int64 { return max(e.Size, 0) })
	s.ImageCount, _ = most(same, func(e *v1alpha1.ArchiveState) int32 { return max(e.ImageCount, 0) })
	s.Artifact = &v1alpha1.Artifact{Size: size, DisplaySize: condition.DisplaySize(size)}
	if digestPattern.MatchString(index) {
		s.Artifact.IndexDigest = index
	}
	if digestPattern.MatchString(digest) {
		s.Artifact.Digest = digest
	}
	known := fmt.Sprint(a.Status.Images)
	lists := map[string][]v1alpha1.Image{"": a.Status.Images}
	images, _ := most(same, func(e *v1alpha1.ArchiveState) string {
		if len(e.Images) == 0 {
			return "" // the same as in the status
		}
		key := fmt.Sprint(e.Images)
		if key == known {
			return ""
		}
		lists[key] = e.Images
		return key
	})
	s.Images = validImages(lists[images])
}

// most returns what most entries have, of equally many the smallest, and how many different ones there are.
func most[T cmp.Ordered](entries []*v1alpha1.ArchiveState, of func(*v1alpha1.ArchiveState) T) (best T, different int) {
	votes := map[T]int{}
	for _, e := range entries {
		votes[of(e)]++
	}
	for value, n := range votes {
		if n > votes[best] || n == votes[best] && value < best {
			best = value
		}
	}
	return best, len(votes)
}

// validImages are those that a status may have, by name.
func validImages(images []v1alpha1.Image) []v1alpha1.Image {
	var list []v1alpha1.Image
	for _, x := range images {
		if x.Name != "" && len(x.Name) <= v1alpha1.MaxImageName && x.Name == condition.OneLine(x.Name) && imageDigest.MatchString(x.Digest) {
			list = append(list, x)
		}
	}
	slices.SortFunc(list, func(x, y v1alpha1.Image) int {
		return cmp.Or(strings.Compare(x.Name, y.Name), strings.Compare(x.Digest, y.Digest))
	})
	list = slices.CompactFunc(list, func(x, y v1alpha1.Image) bool { return x.Name == y.Name })
	return list[:min(len(list), v1alpha1.MaxImages)]
}

// sampleFailures leaves one of each reason first, what stalls before the rest, then by the name of the node.
func (t *totals) sampleFailures() {
	slices.SortFunc(t.failures, func(x, y nodeFailure) int {
		if x.stalled != y.stalled {
			return map[bool]int{true: -1, false: 1}[x.stalled]
		}
		return strings.Compare(x.Node, y.Node)
	})
	var first, others []nodeFailure
	reasons := sets.Set[string]{}
	for _, f := range t.failures {
		if reasons.Has(f.Reason) {
			others = append(others, f)
			continue
		}
		reasons.Insert(f.Reason)
		first = append(first, f)
	}
	t.failures = append(first, others...)
	t.failures = t.failures[:min(len(t.failures), maxFailures)]
	for i := range t.failures {
		f := &t.failures[i]
		f.Message = condition.ClipTo(condition.OneLine(f.Message), condition.MaxSample)
	}
}

func stalled(reason, message string) []metav1.Condition {
	return []metav1.Condition{condition.New(v1alpha1.ConditionReady, metav1.ConditionFalse, reason, message),
		condition.New(v1alpha1.ConditionStalled, metav1.ConditionTrue, reason, message)}
}

func reconciling(ready, reason, message string) []metav1.Condition {
	return []metav1.Condition{condition.New(v1alpha1.ConditionReady, metav1.ConditionFalse, ready, message),
		condition.New(v1alpha1.ConditionReconciling, metav1.ConditionTrue, reason, message)}
}

func (t *totals) conditions(a *v1alpha1.ImageArchive, failed int) []metav1.Condition {
	c := &t.counts
	message, ready := t.message(), v1alpha1.ReasonImported
	stops := a.Spec.Rollout != nil && failed > maxFailed(a)
	if stops {
		message += fmt.Sprintf("; no further node is admitted, since %d failed and maxFailed is %d", failed, maxFailed(a))
	}
	if a.Spec.Suspend {
		message += "; spec.suspend is set"
		ready = v1alpha1.ReasonSuspended
	}
	var first nodeFailure
	if len(t.failures) > 0 {
		first = t.failures[0]
		message += fmt.Sprintf("; %s: %s", first.Node, first.Message)
	}
	// While others go on, a rollout bears the failures that it may have.
	goesOn := a.Spec.Rollout != nil && c.Importing+c.Pending > 0
	switch {
	case c.Desired == 0:
		return reconciling(v1alpha1.ReasonNoNodesSelected, v1alpha1.ReasonNoNodesSelected, noNodesText(a))
	case c.Ready == c.Desired:
		return []metav1.Condition{condition.New(v1alpha1.ConditionReady, metav1.ConditionTrue, ready, message)}
	case stops:
		return stalled(v1alpha1.ReasonRolloutStopped, message)
	case first.stalled && !goesOn:
		return stalled(first.Reason, message)
	case a.Spec.Suspend:
		return []metav1.Condition{condition.New(v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonSuspended, message)}
	}
	return reconciling(cmp.Or(first.Reason, v1alpha1.ReasonImporting), v1alpha1.ReasonImporting, message)
}

func noNodesText(a *v1alpha1.ImageArchive) string {
	if a.Spec.NodeSelector == nil || len(a.Spec.NodeSelector.MatchLabels)+len(a.Spec.NodeSelector.MatchExpressions) == 0 {
		return "the cluster has no node"
	}
	text := fmt.Sprintf("no node matches spec.nodeSelector (%s); correct the selector or label the nodes",
		metav1.FormatLabelSelector(a.Spec.NodeSelector))
	return condition.ClipTo(text, condition.MaxText)
}

// message counts in words; states in which no node is are left out.
func (t *totals) message() string {
	c := &t.counts
	s := fmt.Sprintf("%d of %s ready", c.Ready, condition.Count(int(c.Desired), "node"))
	for _, part := range []struct {
		n    int32
		what string
	}{{c.Importing, "importing"}, {c.Failed, "failed"}, {t.waiting, "waiting for admission"}, {c.Pending - t.waiting, "pending"}} {
		if part.n > 0 {
			s += fmt.Sprintf(", %d %s", part.n, part.what)
		}
	}
	if t.archives > 1 {
		s += fmt.Sprintf("; the nodes have %d different archives", t.archives)
	}
	return s
}
