// Package condition has what both the node's agent and the fleet's controller say about archives: conditions, and
// texts that are fit for status, Events and logs.
package condition

import (
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// New is a condition without its times.
func New(typ string, status metav1.ConditionStatus, reason, message string) metav1.Condition {
	return metav1.Condition{Type: typ, Status: status, Reason: reason, Message: message}
}

// Merge completes the conditions that hold now by the generation and by the times since when they hold,
// which old ones tell.
func Merge(old []metav1.Condition, generation int64, now time.Time, current ...metav1.Condition) []metav1.Condition {
	for i := range current {
		c := &current[i]
		c.ObservedGeneration, c.LastTransitionTime = generation, *Timestamp(now)
		if o := meta.FindStatusCondition(old, c.Type); o != nil && o.Status == c.Status {
			c.LastTransitionTime = o.LastTransitionTime
		}
	}
	return current
}

// HasReason says whether a condition is there with this reason.
func HasReason(list []metav1.Condition, typ, reason string) bool {
	c := meta.FindStatusCondition(list, typ)
	return c != nil && c.Reason == reason
}

// Timestamp cuts a time to what the API keeps of it.
func Timestamp(now time.Time) *metav1.Time {
	t := metav1.NewTime(now).Rfc3339Copy()
	return &t
}
