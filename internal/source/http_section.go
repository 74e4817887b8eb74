package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// httpSection reads a part of an HTTP blob over as many connections as it takes. It continues at the
// byte where the last one broke, as long as attempts bring bytes.
type httpSection struct {
	ctx    context.Context
	cancel context.CancelFunc
	b      *httpBlob
	off    int64 // of the next byte
	left   int64 // bytes
	body   *response
	broken *temporaryError // why body went away, if it did
	wait   *backoff
	err    error // final
}

// section makes no request before its first read, and none for what the cache holds.
func (b *httpBlob) section(ctx context.Context, off, n int64) *httpSection {
	ctx, cancel := joined(ctx, b.ctx)
	return &httpSection{ctx: ctx, cancel: cancel, b: b, off: off, left: n, wait: b.newBackoff(resumeAttempts)}
}

func (s *httpSection) Read(p []byte) (int, error) {
	if s.err == nil && s.left == 0 {
		s.finish(io.EOF)
	}
	if s.err != nil || len(p) == 0 {
		return 0, s.err
	}
	p = p[:min(int64(len(p)), s.left)]
	n := 0
	for n == 0 {
		if s.body == nil {
			if n = s.b.cache.copy(p, s.off); n > 0 {
				break
			}
			if err := s.connect(); err != nil {
				s.finish(err)
				return 0, s.err
			}
		}
		n = s.readBody(p)
	}
	s.off += int64(n)
	s.left -= int64(n)
	return n, nil
}

// readBody reads from the open connection; 0 means that it is gone.
func (s *httpSection) readBody(p []byte) int {
	p = p[:min(int64(len(p)), s.body.n)]
	n, err := s.body.Read(p)
	s.b.add(n)
	s.body.n -= int64(n)
	if n > 0 {
		s.wait.progress()
	}
	switch {
	case s.body.n == 0: // all of it, which may be less than was asked for
		s.drop()
	case err != nil:
		s.broken = &temporaryError{text: s.body.brokenText(err)}
		s.drop()
	}
	return n
}

func (s *httpSection) drop() {
	if s.body != nil {
		s.body.Close() //nolint:gosec // only read from
		s.body = nil
	}
}

// connect asks for the rest, again and again if need be. It returns the final error.
func (s *httpSection) connect() error {
	for {
		if s.broken != nil && !s.wait.again(s.ctx, s.broken.after) {
			return s.b.gaveUp(s.ctx, s.wait, s.broken)
		}
		s.broken = nil
		res, err := s.b.get(s.ctx, byteRange{s.off, s.left})
		if err == nil {
			err = s.b.acceptPart(res, s.off)
		}
		if err == nil {
			s.body = res
			return nil
		}
		if res != nil {
			res.Close() //nolint:gosec // only read from
		}
		if !errors.As(err, &s.broken) {
			return err
		}
	}
}

// acceptPart checks that an answer is the wanted part of the bytes that the blob was opened with.
func (b *httpBlob) acceptPart(res *response, off int64) error {
	switch res.StatusCode {
	case http.StatusOK:
		return fmt.Errorf("the server answered a range with the whole of something new: %w", ErrChanged)
	case http.StatusRequestedRangeNotSatisfiable:
		return fmt.Errorf("the server has no such range any more: %w", ErrChanged)
	}
	if !b.validator.same(res.Header) {
		return fmt.Errorf("the server did not send the same %s again: %w", b.validator.header, ErrChanged)
	}
	got, err := parseContentRange(res.Header.Get("Content-Range"))
	switch {
	case err != nil:
		return fmt.Errorf("the server sent no usable Content-Range: %w", ErrUnavailable)
	case got.total >= 0 && got.total != b.size:
		return fmt.Errorf("the server sent another size: %w", ErrChanged)
	case got.off != off:
		return fmt.Errorf("the server sent another range than it was asked for: %w", ErrUnavailable)
	}
	res.n = min(res.n, got.n)
	return nil
}

// finish makes err the result of this and every later read.
func (s *httpSection) finish(err error) {
	s.drop()
	s.cancel()
	s.err = err
	if !errors.Is(err, io.EOF) {
		s.err = s.b.errorf(err)
	}
}

func (s *httpSection) Close() error {
	if s.err == nil {
		s.finish(errClosed)
	}
	return nil
}

// errClosed is what a closed reader gives.
var errClosed = fmt.Errorf("it is closed: %w", ErrUnavailable)

// httpStream reads the only response of a server that gives no ranges; what breaks stays broken.
type httpStream struct {
	ctx  context.Context
	stop func() bool
	b    *httpBlob
	err  error
}

func newHTTPStream(ctx context.Context, b *httpBlob) *httpStream {
	return &httpStream{ctx: ctx, b: b, stop: context.AfterFunc(ctx, b.cancel)}
}

func (s *httpStream) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.b.stream.Read(p)
	s.b.add(n)
	switch {
	case err == nil || errors.Is(err, io.EOF):
		s.err = err
	case s.ctx.Err() != nil:
		s.err = s.b.errorf(s.ctx.Err())
	case s.b.ctx.Err() != nil:
		s.err = s.b.errorf(s.b.ctx.Err())
	default:
		s.err = s.b.errorf(fmt.Errorf("%s, and without ranges there is no resuming: %w",
			s.b.stream.brokenText(err), ErrUnavailable))
	}
	return n, s.err
}

func (s *httpStream) Close() error {
	s.stop()
	return s.b.stream.Close()
}
