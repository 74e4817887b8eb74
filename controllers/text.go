package controllers

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/dustin/go-humanize"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tarlift/tarlift/api/v1alpha1"
)

// maxText bounds what status and Events say of an error: the note of an Event may have 1 KiB.
const maxText = 1000

const (
	// maxSample bounds the JSON of each of the samples of failures that an ImageArchive shows: ten of them, with names of
	// 253 bytes, and two conditions of maxText stay below 16 KiB.
	maxSample = 400
	// minText is what a text is never made shorter than: less would say nothing.
	minText = 30
)

var (
	urlQuery    = regexp.MustCompile(`(https?://[^\s"'?#]*)[?#][^\s"']*`)
	urlUserinfo = regexp.MustCompile(`(https?://)[^\s"'/?#]*@`)
)

// errorText is an error's text as it may appear in status, Events and logs: one line without control characters,
// without user, password and query string of any URL, and not too long. The packages below keep to most of that
// themselves; this is for the libraries under them.
func errorText(err error) string {
	s := strings.ToValidUTF8(err.Error(), "\uFFFD")
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, s)
	s = urlUserinfo.ReplaceAllString(s, "$1")
	s = urlQuery.ReplaceAllString(s, "$1")
	return clip(s)
}

func clip(s string) string {
	if len(s) <= maxText {
		return s
	}
	return strings.ToValidUTF8(s[:maxText-len("…")], "") + "…"
}

// clipTo shortens a text so that it takes at most this many bytes in JSON, where a character may take six.
func clipTo(s string, most int) string {
	if 6*len(s) <= most {
		return s
	}
	size, fits := 0, 0 // fits: up to here there is also room for the ellipsis
	for i, r := range s {
		if size += jsonSize(r); size > most {
			return s[:fits] + "…"
		}
		if size+len("…") <= most {
			fits = i + utf8.RuneLen(r)
		}
	}
	return s
}

// jsonSize is how many bytes a character of a valid text takes in a JSON string, as encoding/json writes it.
func jsonSize(r rune) int {
	switch {
	case r == '"' || r == '\\':
		return 2
	case r < ' ' || r == '<' || r == '>' || r == '&' || r == '\u2028' || r == '\u2029':
		return 6
	}
	return utf8.RuneLen(r)
}

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
	for most := maxText; most >= minText; most /= 2 {
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
		slices.ContainsFunc(e.Conditions, func(c metav1.Condition) bool { return clipTo(c.Message, minText) != c.Message })
}

// withTexts is an entry with texts that take at most this many bytes. Where that is little, conditions refer to the last
// error.
func withTexts(e v1alpha1.ArchiveState, most int) v1alpha1.ArchiveState {
	e = *e.DeepCopy()
	for i := range e.Conditions {
		c := &e.Conditions[i]
		if c.Message = clipTo(c.Message, most); e.LastError != nil && most < 4*minText && len(c.Message) > minText/2 {
			c.Message = "see lastError"
		}
	}
	if e.LastError != nil {
		e.LastError.Message = clipTo(e.LastError.Message, most)
	}
	return e
}

// displaySize is a number of bytes for the reader's eye, such as 45MiB; empty for none.
func displaySize(n int64) string {
	if n <= 0 {
		return ""
	}
	return strings.ReplaceAll(humanize.IBytes(uint64(n)), " ", "")
}

// count is a number with its noun, such as 1 image or 3 images.
func count(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return humanize.Comma(int64(n)) + " " + noun
}
