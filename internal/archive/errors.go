package archive

import "errors"

// What may be wrong with an archive. Every error of this package that is the archive's (or its selection's) fault is one
// of these by errors.Is; others are the reader's own, unchanged.
var (
	// ErrInvalid: not an image archive, or one with a part that is not acceptable.
	ErrInvalid = errors.New("invalid archive")
	// ErrTruncated: the bytes end before the archive does.
	ErrTruncated = errors.New("truncated archive")
	// ErrLimit: more of something than limits.go allows.
	ErrLimit = errors.New("limit exceeded")
	// ErrDigestMismatch: bytes have another digest than the one they are named by.
	ErrDigestMismatch = errors.New("digest mismatch")
	// ErrMissing: a blob that something names is not in the archive. It is also ErrTruncated without an end marker.
	ErrMissing = errors.New("not in the archive")
	// ErrInvalidName: an image's name, or the lack of one, or a selection by name is not acceptable.
	ErrInvalidName = errors.New("invalid name")
)
