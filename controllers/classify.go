package controllers

import (
	"errors"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/internal/source"
)

// classes is the one table from errors to reasons; the first row that matches counts. An error may match
// several: what the source or the runtime did explains what the archive then looked like, and a cut
// archive explains a missing blob.
var classes = []struct {
	err      error
	reason   string
	terminal bool
}{
	{source.ErrNotFound, v1alpha1.ReasonSourceNotFound, false},
	{source.ErrDenied, v1alpha1.ReasonSourceDenied, false},
	{source.ErrInvalid, v1alpha1.ReasonSourceDenied, true},
	{source.ErrChanged, v1alpha1.ReasonSourceUnavailable, false},
	{source.ErrUnavailable, v1alpha1.ReasonSourceUnavailable, false},

	{importer.ErrRuntimeUnavailable, v1alpha1.ReasonRuntimeUnavailable, false},
	{importer.ErrInsufficientDisk, v1alpha1.ReasonInsufficientDisk, false},

	{archive.ErrTruncated, v1alpha1.ReasonTruncated, true},
	{archive.ErrDigestMismatch, v1alpha1.ReasonDigestMismatch, true},
	{archive.ErrLimit, v1alpha1.ReasonLimitExceeded, true},
	{archive.ErrInvalidName, v1alpha1.ReasonInvalidName, true},
	{importer.ErrNameConflict, v1alpha1.ReasonNameConflict, true},
	{importer.ErrNoMatchingPlatform, v1alpha1.ReasonNoMatchingPlatform, true},
	{importer.ErrContentIncomplete, v1alpha1.ReasonContentIncomplete, true},
	{archive.ErrMissing, v1alpha1.ReasonContentIncomplete, true},
	{archive.ErrInvalid, v1alpha1.ReasonArchiveInvalid, true},
}

// Classify says what an import's error is called in conditions, Events and on the command line, and whether
// it is terminal: no use in trying again until the archive, the spec or the node changes. The error must not
// be the caller's own cancellation, which is no failure.
func Classify(err error) (reason string, terminal bool) {
	for _, c := range classes {
		if errors.Is(err, c.err) {
			return c.reason, c.terminal
		}
	}
	return v1alpha1.ReasonImportFailed, false
}

// stalls says whether every error of this reason is terminal.
func stalls(reason string) bool {
	found := false
	for _, c := range classes {
		if c.reason == reason {
			found = true
			if !c.terminal {
				return false
			}
		}
	}
	return found
}
