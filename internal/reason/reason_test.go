package reason

import (
	"errors"
	"fmt"
	"testing"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/internal/source"
)

func TestClassify(t *testing.T) {
	both := func(a, b error) error { return fmt.Errorf("read: %w: %w", a, b) }
	for _, test := range []struct {
		err      error
		reason   string
		terminal bool
	}{
		{archive.ErrInvalid, "ArchiveInvalid", true},
		{archive.ErrTruncated, "Truncated", true},
		{archive.ErrLimit, "LimitExceeded", true},
		{archive.ErrDigestMismatch, "DigestMismatch", true},
		{archive.ErrMissing, "ContentIncomplete", true},
		{archive.ErrInvalidName, "InvalidName", true},
		{importer.ErrContentIncomplete, "ContentIncomplete", true},
		{importer.ErrNoMatchingPlatform, "NoMatchingPlatform", true},
		{importer.ErrNameConflict, "NameConflict", true},
		{importer.ErrInsufficientDisk, "InsufficientDisk", false},
		{importer.ErrRuntimeUnavailable, "RuntimeUnavailable", false},
		{source.ErrNotFound, "SourceNotFound", false},
		{source.ErrDenied, "SourceDenied", false},
		{source.ErrUnavailable, "SourceUnavailable", false},
		{source.ErrChanged, "SourceUnavailable", false},
		{source.ErrInvalid, "SourceDenied", true},
		{errors.New("something else"), "ImportFailed", false},
		// What explains the other comes first.
		{both(archive.ErrMissing, archive.ErrTruncated), "Truncated", true},
		{both(archive.ErrTruncated, source.ErrUnavailable), "SourceUnavailable", false},
		{both(archive.ErrInvalid, source.ErrChanged), "SourceUnavailable", false},
		{both(importer.ErrContentIncomplete, importer.ErrRuntimeUnavailable), "RuntimeUnavailable", false},
		{both(archive.ErrInvalid, archive.ErrLimit), "LimitExceeded", true},
	} {
		reason, terminal := Classify(fmt.Errorf("import: %w", test.err))
		if reason != test.reason || terminal != test.terminal {
			t.Errorf("%v: %s, terminal %v; want %s, %v", test.err, reason, terminal, test.reason, test.terminal)
		}
	}
}
