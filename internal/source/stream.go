package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
)

// errStreamOnce is what everything but one read from start to end of a stream gives.
var errStreamOnce = fmt.Errorf("a stream can be read only once, from its start: %w", ErrInvalid)

// OpenStream makes a blob of r, which is read once, from start to end; name says what it is. When r is
// an io.Closer, Close closes it.
func OpenStream(r io.Reader, name string) Blob {
	return &streamBlob{r: r, name: name}
}

// streamBlob is an open reader, such as standard input.
type streamBlob struct {
	counter
	r     io.Reader
	name  string
	taken atomic.Bool
}

func (b *streamBlob) RandomAccess() bool { return false }
func (b *streamBlob) Remote() bool       { return false }
func (b *streamBlob) Size() int64        { return -1 }
func (b *streamBlob) Validator() string  { return "" }
func (b *streamBlob) String() string     { return b.name }
func (b *streamBlob) whyStream() string  { return "a pipe has no random access" }

func (b *streamBlob) ReadAt([]byte, int64) (int, error) {
	return 0, fmt.Errorf("read %s: %w", b.name, errStreamOnce)
}

func (b *streamBlob) Section(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if off != 0 || n >= 0 || b.taken.Swap(true) {
		return nil, fmt.Errorf("read %s: %w", b.name, errStreamOnce)
	}
	return &streamReader{ctx: ctx, b: b}, nil
}

func (b *streamBlob) Close() error {
	if c, ok := b.r.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// streamReader waits for a silent pipe until its context ends.
type streamReader struct {
	ctx context.Context
	b   *streamBlob
	err error
}

func (s *streamReader) Read(p []byte) (int, error) {
	if s.err == nil {
		s.err = s.ctx.Err()
	}
	if s.err != nil || len(p) == 0 {
		return 0, s.err
	}
	n, err := readInterruptibly(s.ctx, forever, p, s.b.r.Read)
	s.b.add(n)
	switch {
	case err == nil, errors.Is(err, io.EOF), s.ctx.Err() != nil:
		s.err = err
	case errors.Is(err, ErrUnavailable):
		s.err = fmt.Errorf("read %s: %w", s.b.name, err)
	default:
		s.err = fmt.Errorf("read %s: %s: %w", s.b.name, describe(err), ErrUnavailable)
	}
	return n, s.err
}

func (s *streamReader) Close() error { return nil }
