package archive_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"unicode"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/builder"
)

// FuzzArchive: whatever the bytes are, the error is one of this package's, and
// its text can be shown.
func FuzzArchive(f *testing.F) {
	for _, format := range []builder.Format{builder.OCI, builder.Hybrid, builder.Docker, builder.DockerClassic, builder.DockerDigest} {
		a := simple()
		a.Format = format
		data, err := a.Bytes()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, mode := range modes {
			err := openAndSelect(t.Context(), mode.tree, data)
			if err == nil {
				continue
			}
			if !isOurs(err) {
				t.Errorf("%s: %v", mode.name, err)
			}
			if text := err.Error(); len(text) > 4096 || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Errorf("%s: not to be shown: %q", mode.name, text)
			}
		}
	})
}

func openAndSelect(ctx context.Context, tree func(context.Context, []byte) (archive.Tree, error), data []byte) error {
	t, err := tree(ctx, data)
	if err != nil {
		return err
	}
	l, err := archive.Decode(ctx, t)
	if err != nil {
		return err
	}
	if _, err := (archive.Selection{DigestReferences: true}).Select(l.Manifests); err != nil {
		return err
	}
	return use(ctx, t)
}

func isOurs(err error) bool {
	for _, ours := range []error{
		archive.ErrInvalid, archive.ErrTruncated, archive.ErrLimit,
		archive.ErrDigestMismatch, archive.ErrMissing, archive.ErrInvalidName,
	} {
		if errors.Is(err, ours) {
			return true
		}
	}
	return false
}
