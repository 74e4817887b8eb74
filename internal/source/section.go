package source

import (
	"context"
	"io"
)

// section reads [off, end) of a local blob.
type section struct {
	ctx      context.Context
	cancel   context.CancelFunc
	readAt   func(ctx context.Context, p []byte, off int64) (int, error) // as io.ReaderAt's, but it ends with ctx
	off, end int64
}

func (b *blob) section(ctx context.Context, off, n int64, readAt func(context.Context, []byte, int64) (int, error)) (io.ReadCloser, error) {
	n, err := b.check(off, n)
	if err != nil {
		return nil, err
	}
	ctx, cancel := b.joined(ctx)
	return &section{ctx, cancel, readAt, off, off + n}, nil
}

func (s *section) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err //nolint:wrapcheck // the caller's own
	}
	if s.off == s.end {
		return 0, io.EOF
	}
	n, err := s.readAt(s.ctx, p[:min(int64(len(p)), s.end-s.off)], s.off)
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
