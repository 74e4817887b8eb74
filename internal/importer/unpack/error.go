package unpack

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/importer/daemon"
)

// applyError is what applying a layer failed with, without what containerd's Unpacker adds: a directory whose name differs
// each time.
type applyError struct{ error }

func (e *applyError) Unwrap() error { return e.error }

// madeUp are names of snapshots and directories that containerd makes up.
var madeUp = regexp.MustCompile(`extract-[^ "]+|containerd-mount\d+|snapshots/\d+`)

// damage are parts of what decompressors and tar readers say of a damaged layer.
var damage = []string{
	"invalid tar header", "unexpected EOF", "gzip: invalid", "zstd: ", "magic number mismatch", "invalid input:", "failed to decompress",
}

// unpackError tells a layer that is not what its image says (archive.ErrInvalid, archive.ErrDigestMismatch) from a
// containerd that could not apply it. The text goes into a condition, where a different one counts as a change: of a damaged layer
// only the kind is kept, and names that are made up each time are left out.
func unpackError(err error) error {
	var applying *applyError
	if errors.As(err, &applying) {
		err = applying.error
	}
	known := daemon.Error("unpack", err)
	switch {
	case errors.Is(known, daemon.ErrUnavailable), errors.Is(known, daemon.ErrNoSpace):
		return known
	case errors.Is(err, archive.ErrDigestMismatch):
		return fmt.Errorf("unpack: %w", err)
	case errors.Is(err, context.Canceled), errdefs.IsCanceled(err):
		return fmt.Errorf("unpack: %w", context.Canceled)
	}
	text := madeUp.ReplaceAllString(err.Error(), "…")
	if applying == nil {
		return fmt.Errorf("unpack: %s", text)
	}
	for _, d := range damage {
		if strings.Contains(text, d) {
			return fmt.Errorf("unpack: a layer is no tar archive, or a damaged one: %w", archive.ErrInvalid)
		}
	}
	if errdefs.IsInvalidArgument(err) || errdefs.IsFailedPrecondition(err) {
		return fmt.Errorf("unpack: %w: %s", archive.ErrInvalid, text)
	}
	return fmt.Errorf("unpack: %s", text)
}
