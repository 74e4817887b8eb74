package source

import (
	"context"
	"fmt"
	"io"
)

// reader is what sections of local blobs read from.
type reader interface {
	// readAt is as io.ReaderAt's, and ends with ctx.
	readAt(ctx context.Context, p []byte, off int64) (int, error)
}

// section reads [off, end) of a local blob.
type section struct {
	ctx      context.Context // ends with the blob's
	cancel   context.CancelFunc
	r        reader
	off, end int64
}

// newSection is a Blob's Section. The blob has size bytes and ends with blobCtx.
func newSection(ctx, blobCtx context.Context, r reader, size, off, n int64) (io.ReadCloser, error) {
	if off < 0 {
		return nil, fmt.Errorf("read %q: negative offset: %w", r, ErrInvalid)
	}
	ctx, cancel := joined(ctx, blobCtx)
	return &section{ctx, cancel, r, off, off + sectionLength(size, off, n)}, nil
}

// sectionLength gives the length in bytes of a section that ends where the blob ends, at the latest.
func sectionLength(size, off, n int64) int64 {
	rest := max(size-off, 0)
	if n < 0 {
		return rest
	}
	return min(n, rest)
}

// joined is a context that ends with either of two.
func joined(ctx, other context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(other, func() { cancel(other.Err()) })
	return ctx, func() { stop(); cancel(context.Canceled) }
}

func (s *section) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err //nolint:wrapcheck // the caller's own
	}
	if s.off == s.end {
		return 0, io.EOF
	}
	n, err := s.r.readAt(s.ctx, p[:min(int64(len(p)), s.end-s.off)], s.off)
	s.off += int64(n)
	if n > 0 && err == io.EOF { //nolint:errorlint // readAt returns it bare
		err = nil
	}
	return n, err
}

func (s *section) Close() error {
	s.cancel()
	return nil
}
