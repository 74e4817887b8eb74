// Package reason has the one table from errors to reasons: the words that conditions, Events and both command lines
// use for what made an import or a bundle fail.
package reason

import (
	"errors"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/internal/source"
)

// The reasons, as package api/v1alpha1 documents them.
const (
	ArchiveInvalid     = "ArchiveInvalid"
	ContentIncomplete  = "ContentIncomplete"
	DigestMismatch     = "DigestMismatch"
	ImportFailed       = "ImportFailed"
	InsufficientDisk   = "InsufficientDisk"
	InvalidName        = "InvalidName"
	LimitExceeded      = "LimitExceeded"
	NameConflict       = "NameConflict"
	NoMatchingPlatform = "NoMatchingPlatform"
	RuntimeUnavailable = "RuntimeUnavailable"
	SourceDenied       = "SourceDenied"
	SourceNotFound     = "SourceNotFound"
	SourceUnavailable  = "SourceUnavailable"
	Truncated          = "Truncated"
)

// table is searched from top to bottom, since an error may match several rows: what the source or containerd did
// explains what the archive then looked like, and a truncated archive explains a missing blob.
var table = []struct {
	err      error
	reason   string
	terminal bool
}{
	{source.ErrNotFound, SourceNotFound, false},
	{source.ErrDenied, SourceDenied, false},
	{source.ErrInvalid, SourceDenied, true},
	{source.ErrChanged, SourceUnavailable, false},
	{source.ErrUnavailable, SourceUnavailable, false},

	{importer.ErrRuntimeUnavailable, RuntimeUnavailable, false},
	{importer.ErrInsufficientDisk, InsufficientDisk, false},

	{archive.ErrTruncated, Truncated, true},
	{archive.ErrDigestMismatch, DigestMismatch, true},
	{archive.ErrLimit, LimitExceeded, true},
	{archive.ErrInvalidName, InvalidName, true},
	{importer.ErrNameConflict, NameConflict, true},
	{importer.ErrNoMatchingPlatform, NoMatchingPlatform, true},
	{importer.ErrContentIncomplete, ContentIncomplete, true},
	{archive.ErrMissing, ContentIncomplete, true},
	{archive.ErrInvalid, ArchiveInvalid, true},
}

// Classify returns an error's reason, and whether the error is terminal: trying again is of no use until the archive,
// the spec or the node changes. An error that matches no row is ImportFailed. The error must not be the caller's own
// cancellation, which is no failure.
func Classify(err error) (reason string, terminal bool) {
	for _, row := range table {
		if errors.Is(err, row.err) {
			return row.reason, row.terminal
		}
	}
	return ImportFailed, false
}

// IsTerminal reports whether every error of this reason is terminal.
func IsTerminal(reason string) bool {
	found := false
	for _, row := range table {
		if row.reason == reason {
			if !row.terminal {
				return false
			}
			found = true
		}
	}
	return found
}
