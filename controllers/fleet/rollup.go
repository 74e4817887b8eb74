package fleet

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
	"github.com/tarlift/tarlift/internal/reason"
)

// maxFailures is how many failing nodes an archive's status shows: enough to see what is wrong, while the status
// stays small however many nodes there are.
const maxFailures = 10

// rollUp sums up what the nodes say about an archive. nodes are all Nodes, states all NodeImageStates by name; a
// selected node that has not reported on this generation is pending. A rollout that has stopped is one that stalls.
func rollUp(
	a *v1alpha1.ImageArchive, nodes []metav1.PartialObjectMetadata, states map[string]*v1alpha1.NodeImageState, stand standing, now time.Time,
) *v1alpha1.ImageArchiveStatus {
	s := &v1alpha1.ImageArchiveStatus{ObservedGeneration: a.Generation}
	members, err := membersOf(a, nodes, states)
	if err != nil {
		message := condition.ClipTo("spec.nodeSelector: "+condition.ErrorText(err), condition.MaxText)
		s.Nodes = &v1alpha1.NodeCounts{Summary: "0/0"}
		s.Conditions = condition.Merge(a.Status.Conditions, a.Generation, now,
			condition.New(v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonInvalidSelector, message),
			condition.New(v1alpha1.ConditionStalled, metav1.ConditionTrue, v1alpha1.ReasonInvalidSelector, message))
		return s
	}
	t := tally{byIndex: map[string]*nodeArtifact{}, standing: stand}
	for i := range members {
		t.addMember(a, &members[i])
	}
	t.sort()
	s.Nodes = &t.counts
	s.Nodes.Summary = fmt.Sprintf("%d/%d", s.Nodes.Ready, s.Nodes.Desired)
	for _, f := range t.failures[:min(len(t.failures), maxFailures)] {
		s.Failures = append(s.Failures, f.NodeFailure)
	}
	if len(t.artifacts) > 0 {
		best := t.artifacts[0]
		best.DisplaySize = condition.DisplaySize(best.Size)
		s.Artifact, s.ImageCount = &best.Artifact, best.images
	}
	s.Conditions = condition.Merge(a.Status.Conditions, a.Generation, now, t.conditions(a)...)
	return s
}

// membersOf are the nodes that an archive selects.
func membersOf(
	a *v1alpha1.ImageArchive, nodes []metav1.PartialObjectMetadata, states map[string]*v1alpha1.NodeImageState,
) ([]member, error) {
	selector, err := a.Selector()
	if err != nil {
		return nil, err
	}
	members := make([]member, 0, len(nodes))
	for i := range nodes {
		node := &nodes[i]
		if !selector.Matches(labels.Set(node.Labels)) {
			continue
		}
		m := member{name: node.Name}
		if state := states[node.Name]; state != nil && state.BelongsTo(node) {
			m.state, m.entry, m.admission = state, entryFor(a, state), admissionFor(a.Name, state)
		}
		members = append(members, m)
	}
	return members, nil
}

// entryFor is what a node says about this generation of an archive, nil for nothing.
func entryFor(a *v1alpha1.ImageArchive, state *v1alpha1.NodeImageState) *v1alpha1.ArchiveState {
	for i := range state.Status.Archives {
		if e := &state.Status.Archives[i]; e.UID == a.UID && e.ObservedGeneration == a.Generation {
			return e
		}
	}
	return nil
}

// share is what a node's entry adds to the sum.
type share struct {
	step     step
	stalled  bool
	failure  v1alpha1.ImportError // of a failed one
	artifact v1alpha1.Artifact    // of a ready one
	images   int32                // of a ready one
}

type step int

const (
	stepPending step = iota
	stepImporting
	stepFailed
	stepReady
)

func shareOf(e *v1alpha1.ArchiveState) share {
	switch {
	case e == nil:
		return share{}
	case condition.IsTrue(e.Conditions, v1alpha1.ConditionReady):
		artifact := v1alpha1.Artifact{Digest: e.Digest, IndexDigest: e.IndexDigest, Size: e.Size}
		return share{step: stepReady, artifact: artifact, images: e.ImageCount}
	case e.LastError != nil:
		// With a rollout, a node that has failed for good waits to be let in again, and no longer says that it stalls.
		stalled := condition.IsTrue(e.Conditions, v1alpha1.ConditionStalled) || reason.IsTerminal(e.LastError.Reason)
		return share{step: stepFailed, failure: *e.LastError, stalled: stalled}
	case condition.IsTrue(e.Conditions, v1alpha1.ConditionStalled):
		// Without an attempt that failed: what is lost and shall not be healed.
		c := condition.Find(e.Conditions, v1alpha1.ConditionStalled)
		return share{step: stepFailed, failure: v1alpha1.ImportError{Reason: c.Reason, Message: c.Message}, stalled: true}
	case condition.HasReason(e.Conditions, v1alpha1.ConditionReady, v1alpha1.ReasonImporting):
		return share{step: stepImporting}
	}
	return share{}
}

// tally is what is counted over the selected nodes.
type tally struct {
	standing
	counts    v1alpha1.NodeCounts
	waiting   int32 // pending ones that the rollout has not let in
	failures  []nodeFailure
	byIndex   map[string]*nodeArtifact
	artifacts []*nodeArtifact // that ready nodes have imported
}

type nodeFailure struct {
	v1alpha1.NodeFailure
	stalled bool
}

type nodeArtifact struct {
	v1alpha1.Artifact
	images int32
	nodes  int // that have it
}

func (t *tally) addMember(a *v1alpha1.ImageArchive, m *member) {
	s := shareOf(m.entry)
	x := m.admission
	admitted := x != nil && x.UID == a.UID && x.Generation == a.Generation
	switch {
	case a.Spec.Rollout == nil || s.step == stepReady || s.step == stepFailed:
	case admitted && x.Expired:
		s = share{step: stepFailed, failure: v1alpha1.ImportError{
			Reason:  v1alpha1.ReasonProgressDeadlineExceeded,
			Message: fmt.Sprintf("no progress for %s; its place went to another node", a.Spec.Rollout.Deadline()),
		}}
	case !admitted && s.step == stepPending:
		t.waiting++
	}
	t.add(m.name, s)
}

func (t *tally) add(node string, s share) {
	t.counts.Desired++
	switch s.step {
	case stepPending:
		t.counts.Pending++
	case stepImporting:
		t.counts.Importing++
	case stepFailed:
		t.counts.Failed++
		t.failures = append(t.failures, nodeFailure{
			NodeFailure: v1alpha1.NodeFailure{Node: node, Reason: s.failure.Reason, Message: condition.ClipTo(s.failure.Message, condition.MaxSample)},
			stalled:     s.stalled,
		})
	case stepReady:
		t.counts.Ready++
		t.addArtifact(s)
	}
}

// addArtifact counts an archive under the digest of its index.json. Whether a node also knows the digest of the
// whole depends on how it read it, and the number of images on its platform.
func (t *tally) addArtifact(s share) {
	x := t.byIndex[s.artifact.IndexDigest]
	if x == nil {
		x = &nodeArtifact{Artifact: v1alpha1.Artifact{IndexDigest: s.artifact.IndexDigest}}
		t.byIndex[s.artifact.IndexDigest] = x
		t.artifacts = append(t.artifacts, x)
	}
	x.nodes++
	x.images = max(x.images, s.images)
	x.Digest = max(x.Digest, s.artifact.Digest)
	x.Size = max(x.Size, s.artifact.Size)
}

// sort makes the order independent of that of the nodes: what most nodes have first, and what stalls first.
func (t *tally) sort() {
	slices.SortFunc(t.artifacts, func(x, y *nodeArtifact) int {
		return cmp.Or(cmp.Compare(y.nodes, x.nodes), strings.Compare(x.IndexDigest, y.IndexDigest))
	})
	slices.SortFunc(t.failures, func(x, y nodeFailure) int {
		if x.stalled != y.stalled {
			return map[bool]int{true: -1, false: 1}[x.stalled]
		}
		return strings.Compare(x.Node, y.Node)
	})
}

func (t *tally) conditions(a *v1alpha1.ImageArchive) []metav1.Condition {
	c := &t.counts
	message := t.message()
	notReady := func(reason, message string) metav1.Condition {
		return condition.New(v1alpha1.ConditionReady, metav1.ConditionFalse, reason, message)
	}
	stalled := func(reason, message string) []metav1.Condition {
		return []metav1.Condition{notReady(reason, message), condition.New(v1alpha1.ConditionStalled, metav1.ConditionTrue, reason, message)}
	}
	// withFailure tells of one of the nodes that fail.
	withFailure := func(message string) string {
		return fmt.Sprintf("%s; %s: %s", message, t.failures[0].Node, t.failures[0].Message)
	}
	// While others go on, a rollout bears the failures that it may have.
	goesOn := a.Spec.Rollout != nil && c.Importing+c.Pending > 0
	switch {
	case c.Ready == c.Desired:
		return []metav1.Condition{condition.New(v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonImported, message)}
	case t.stopped && len(t.failures) > 0:
		message += fmt.Sprintf("; no further node begins, since %d failed and maxFailed is %d", t.failed, t.maxFailed)
		return stalled(v1alpha1.ReasonRolloutStopped, withFailure(message))
	case len(t.failures) > 0 && t.failures[0].stalled && !goesOn:
		return stalled(t.failures[0].Reason, withFailure(message))
	case a.Spec.Suspend:
		return []metav1.Condition{notReady(v1alpha1.ReasonSuspended, "spec.suspend is set; "+message)}
	case len(t.failures) > 0:
		return []metav1.Condition{notReady(t.failures[0].Reason, withFailure(message)),
			condition.New(v1alpha1.ConditionReconciling, metav1.ConditionTrue, v1alpha1.ReasonImporting, message)}
	}
	return []metav1.Condition{notReady(v1alpha1.ReasonImporting, message),
		condition.New(v1alpha1.ConditionReconciling, metav1.ConditionTrue, v1alpha1.ReasonImporting, message)}
}

// message counts in words; states in which no node is are left out.
func (t *tally) message() string {
	c := &t.counts
	if c.Desired == 0 {
		return "no node is selected"
	}
	s := fmt.Sprintf("%d of %s ready", c.Ready, condition.Count(int(c.Desired), "node"))
	for _, part := range []struct {
		n    int32
		what string
	}{{c.Importing, "importing"}, {c.Failed, "failed"}, {t.waiting, "waiting"}, {c.Pending - t.waiting, "pending"}} {
		if part.n > 0 {
			s += fmt.Sprintf(", %d %s", part.n, part.what)
		}
	}
	if n := len(t.artifacts); n > 1 {
		s += fmt.Sprintf("; the nodes have %d different archives", n)
	}
	return s
}
