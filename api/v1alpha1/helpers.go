package v1alpha1

import (
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// DropInPrefix is how the names of archives in a node's drop-in directory begin in its NodeImageState. No ImageArchive
// has a slash in its name.
const DropInPrefix = "drop-in/"

// IsDropIn says whether an entry of a NodeImageState is about a file in the drop-in directory.
func IsDropIn(archive string) bool { return strings.HasPrefix(archive, DropInPrefix) }

// Selector selects the archive's nodes by their labels. An absent nodeSelector selects all, unlike with other uses of a
// LabelSelector.
func (a *ImageArchive) Selector() (labels.Selector, error) {
	if a.Spec.NodeSelector == nil {
		return labels.Everything(), nil
	}
	return metav1.LabelSelectorAsSelector(a.Spec.NodeSelector) //nolint:wrapcheck // it names the key or the value
}

// OwningNode is the UID of the Node that the NodeImageState belongs to, empty for none.
func (s *NodeImageState) OwningNode() types.UID {
	for _, o := range s.OwnerReferences {
		if o.Kind == "Node" {
			return o.UID
		}
	}
	return ""
}

// BelongsTo says whether the NodeImageState is about this Node, and not about an earlier one of the same name.
func (s *NodeImageState) BelongsTo(node metav1.Object) bool {
	uid := s.OwningNode()
	return uid == "" || uid == node.GetUID()
}

// defaultProgressDeadline is that of the API, for objects that were stored without it.
const defaultProgressDeadline = 10 * time.Minute

// Deadline is progressDeadline.
func (r *Rollout) Deadline() time.Duration {
	if r.ProgressDeadline == nil {
		return defaultProgressDeadline
	}
	return r.ProgressDeadline.Duration
}

// Slots is how many of the selected nodes may import at a time.
func (r *Rollout) Slots(selected int) int {
	if r == nil {
		return 0
	}
	limit := intstr.FromString("10%")
	if r.MaxConcurrent != nil {
		limit = *r.MaxConcurrent
	}
	n, err := intstr.GetScaledValueFromIntOrPercent(&limit, selected, true)
	if err != nil {
		return 1 // the API server lets no such value in
	}
	return max(n, 1)
}
