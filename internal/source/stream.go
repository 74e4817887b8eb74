package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
)

// streamBuffer is how many bytes one read of a stream asks for: a pipe's default capacity is 64 KiB,
// and more than a few of them gain nothing.
const streamBuffer = 256 << 10

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
	return &streamReader{ctx: ctx, b: b, buf: make([]byte, streamBuffer), done: make(chan readResult, 1)}, nil
}

func (b *streamBlob) Close() error {
	if c, ok := b.r.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// streamReader reads in a goroutine of its own, one read at a time: a read of a silent pipe cannot be
// interrupted, but whoever waits for it can.
type streamReader struct {
	ctx  context.Context
	b    *streamBlob
	buf  []byte // belongs to the goroutine while one runs
	rest []byte // the part of buf that is read but not yet given away
	done chan readResult
	err  error
}

type readResult struct {
	n   int
	err error
}

func (s *streamReader) Read(p []byte) (int, error) {
	for len(s.rest) == 0 {
		if s.err == nil {
			s.err = s.ctx.Err()
		}
		if s.err != nil {
			return 0, s.err
		}
		s.fill()
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

func (s *streamReader) fill() {
	go func() {
		n, err := s.b.r.Read(s.buf)
		s.done <- readResult{n, err}
	}()
	select {
	case <-s.ctx.Done():
		s.err = s.ctx.Err()
	case res := <-s.done:
		s.b.add(res.n)
		s.rest = s.buf[:res.n]
		s.err = res.err
		if res.err != nil && !errors.Is(res.err, io.EOF) {
			s.err = fmt.Errorf("read %s: %s: %w", s.b.name, describe(res.err), ErrUnavailable)
		}
	}
}

func (s *streamReader) Close() error { return nil }
