package fleet

import (
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/sets"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
)

// snapshot is all Nodes, and all NodeImageStates by name. What is in it is the cache's and must not be changed.
type snapshot struct {
	nodes  []metav1.PartialObjectMetadata
	states map[string]*v1alpha1.NodeImageState
}

// selectedNode is a node that an ImageArchive selects, with what it reports.
type selectedNode struct {
	name      string
	state     *v1alpha1.NodeImageState // nil: its agent has not reported yet
	entry     *v1alpha1.ArchiveState   // about this generation; nil: none
	admission *v1alpha1.Admission      // to an archive of this name; nil: none
}

// selected are the nodes that an archive selects. The error is that of an invalid selector.
func (s *snapshot) selected(a *v1alpha1.ImageArchive) ([]selectedNode, error) {
	selector, err := a.Selector()
	if err != nil {
		return nil, err
	}
	nodes := make([]selectedNode, 0, len(s.nodes))
	for i := range s.nodes {
		node := &s.nodes[i]
		if !selector.Matches(labels.Set(node.Labels)) {
			continue
		}
		n := selectedNode{name: node.Name}
		if state := s.states[node.Name]; state != nil && state.BelongsTo(node) {
			n.state, n.entry, n.admission = state, entryFor(a, state), admissionFor(a.Name, state)
		}
		nodes = append(nodes, n)
	}
	return nodes, nil
}

// unselected are the names of NodeImageStates that have an admission to an archive of this name and are none of these nodes'.
func (s *snapshot) unselected(archive string, nodes []selectedNode) []string {
	names := sets.Set[string]{}
	for name, state := range s.states {
		if admissionFor(archive, state) != nil {
			names.Insert(name)
		}
	}
	for i := range nodes {
		if nodes[i].admission != nil {
			names.Delete(nodes[i].name)
		}
	}
	return sets.List(names)
}

// entryFor is what a node reports about this generation of an archive, nil for nothing. Of several entries the first
// counts.
func entryFor(a *v1alpha1.ImageArchive, state *v1alpha1.NodeImageState) *v1alpha1.ArchiveState {
	for i := range state.Status.Archives {
		if e := &state.Status.Archives[i]; e.UID == a.UID && e.ObservedGeneration == a.Generation {
			return e
		}
	}
	return nil
}

func admissionFor(archive string, state *v1alpha1.NodeImageState) *v1alpha1.Admission {
	for i := range state.Spec.Admitted {
		if x := &state.Spec.Admitted[i]; x.Archive == archive {
			return x
		}
	}
	return nil
}

func (n *selectedNode) ready() bool { return n.entry != nil && n.entry.Ready }

// waits says whether the node reports that it is not admitted.
func (n *selectedNode) waits() bool {
	const reason = v1alpha1.ReasonWaitingForRollout
	return n.entry != nil && (condition.HasReason(n.entry.Conditions, v1alpha1.ConditionReady, reason) ||
		condition.HasReason(n.entry.Conditions, v1alpha1.ConditionReconciling, reason))
}

// stopped says whether the node reports that it does not import and will not by itself.
func (n *selectedNode) stopped() bool {
	return n.waits() || n.entry != nil && (meta.IsStatusConditionTrue(n.entry.Conditions, v1alpha1.ConditionStalled) ||
		condition.HasReason(n.entry.Conditions, v1alpha1.ConditionReady, v1alpha1.ReasonSuspended))
}

// admittedTime is the time of the admission under which the node reports, in seconds; 0 for none.
func (n *selectedNode) admittedTime() int64 {
	if n.entry == nil || n.entry.AdmittedTime == nil {
		return 0
	}
	return n.entry.AdmittedTime.Unix()
}
