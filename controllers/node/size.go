package node

import (
	"encoding/json"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
)

// minText is what a text is never made shorter than: less would say nothing.
const minText = 30

// maxStateSize bounds the JSON of a NodeImageState's status. With what the controller writes about the same archives and
// what an object says of itself it stays below 16 KiB with twenty archives.
const maxStateSize = 12 << 10

// fitTexts shortens the texts of a report, all to the same length, until the whole is small enough. One archive may say
// all that there is room for; when many fail on a node at the same time, each says less, and in the end only once. The
// ImageArchives' own status, Events and logs are not concerned.
func fitTexts(s *v1alpha1.NodeImageStateStatus) {
	if !slices.ContainsFunc(s.Archives, wordy) {
		return // most reports by far, and what they take is not worth encoding them
	}
	for most := condition.MaxText; most >= minText; most /= 2 {
		for i := range s.Archives {
			s.Archives[i] = withTexts(s.Archives[i], most)
		}
		if b, err := json.Marshal(s); err != nil || len(b) <= maxStateSize {
			return
		}
	}
}

// wordy says whether an entry has a text that could be shorter.
func wordy(e v1alpha1.ArchiveState) bool {
	return e.LastError != nil ||
		slices.ContainsFunc(e.Conditions, func(c metav1.Condition) bool { return condition.ClipTo(c.Message, minText) != c.Message })
}

// withTexts is an entry with texts that take at most this many bytes. Where that is little, conditions refer to the last
// error.
func withTexts(e v1alpha1.ArchiveState, most int) v1alpha1.ArchiveState {
	e = *e.DeepCopy()
	for i := range e.Conditions {
		c := &e.Conditions[i]
		if c.Message = condition.ClipTo(c.Message, most); e.LastError != nil && most < 4*minText && len(c.Message) > minText/2 {
			c.Message = "see lastError"
		}
	}
	if e.LastError != nil {
		e.LastError.Message = condition.ClipTo(e.LastError.Message, most)
	}
	return e
}
