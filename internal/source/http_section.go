package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// httpSection reads a part of an HTTP blob over as many connections as it takes. It continues at the byte where the last
// one broke, as long as the source gives the least that it must. Of a blob without random access it reads the one answer.
type httpSection struct {
	ctx      context.Context
	cancel   context.CancelFunc
	b        *httpBlob
	off      int64 // of the next byte
	left     int64 // bytes
	body     *response
	least    int64           // bytes that body has yet to bring to be no failure
	broken   *temporaryError // why body went away, if it did
	wait     *backoff
	progress *progress
	err      error // final
}

// newSection makes no request before its first read, and none for what was read ahead.
func (b *httpBlob) newSection(ctx context.Context, off, n int64) *httpSection {
	ctx, cancel := b.joined(ctx)
	return &httpSection{ctx: ctx, cancel: cancel, b: b, off: off, left: n, wait: b.newBackoff(resumeAttempts), progress: &progress{}}
}

func (s *httpSection) Read(p []byte) (n int, err error) {
	start := time.Now()
	if s.body == nil && s.b.RandomAccess() {
		n = s.b.ahead.copy(p[:min(int64(len(p)), s.left)], s.off)
	}
	for n == 0 && len(p) > 0 && s.left > 0 && s.err == nil {
		if s.body == nil {
			err = s.connect()
		} else {
			n = s.readBody(p[:min(int64(len(p)), s.left, s.body.n)])
		}
		if err == nil {
			err = s.progress.add(n, time.Since(start), s.b.opts.hooks.leastTime)
			start = time.Now()
		}
		if err != nil {
			s.finish(err)
		}
	}
	s.off += int64(n)
	s.left -= int64(n)
	if s.left == 0 && s.err == nil {
		s.finish(io.EOF)
	}
	if n > 0 {
		return n, nil
	}
	return 0, s.err
}

// readBody reads from the open connection; 0 means that it is gone.
func (s *httpSection) readBody(p []byte) int {
	n, err := s.body.Read(p)
	s.b.read.Add(int64(n))
	s.body.n -= int64(n)
	if s.least -= int64(n); s.least <= 0 {
		s.wait.failed = 0
	}
	switch {
	case s.b.whole != nil && errors.Is(err, io.EOF):
		s.left = int64(n)
	case s.body.n == 0: // all of it, which may be less than was asked for
		if s.least > 0 {
			s.broken = &temporaryError{text: "the server answers with next to nothing of a range"}
		}
		s.drop()
	case err != nil:
		s.broken = s.b.temporary(context.Cause(s.body.Request.Context()), err)
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

// connect asks for the rest once, after a pause if need be. It returns a final error.
func (s *httpSection) connect() error {
	if err := s.ctx.Err(); err != nil {
		return err //nolint:wrapcheck // the caller's own
	}
	if s.b.whole != nil {
		return fmt.Errorf("%w, and without ranges there is no resuming", s.broken)
	}
	if s.broken != nil {
		if err := s.wait.pause(s.ctx, s.broken); err != nil {
			return err
		}
	}
	s.broken, s.least = nil, min(leastAnswer, (s.left+1)/2)
	res, err := s.b.get(s.ctx, byteRange{s.off, s.left})
	if err == nil {
		if err = s.b.acceptPart(res, s.off); err == nil {
			s.body = res
			return nil
		}
		res.Close() //nolint:gosec // only read from
	}
	if errors.As(err, &s.broken) {
		return nil
	}
	return err
}

// acceptPart checks that an answer is the wanted part of the bytes that the blob was opened with.
func (b *httpBlob) acceptPart(res *response, off int64) error {
	switch res.StatusCode {
	case http.StatusOK:
		return fmt.Errorf("the server answered a range with the whole of something new: %w", ErrChanged)
	case http.StatusRequestedRangeNotSatisfiable:
		return fmt.Errorf("the server has no such range any more: %w", ErrChanged)
	}
	if !b.bound.same(res.Header) {
		return fmt.Errorf("the server did not send the same %s again: %w", b.bound.header, ErrChanged)
	}
	got, ok := parseContentRange(res.Header.Get("Content-Range"))
	switch {
	case !ok:
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
		s.finish(fmt.Errorf("it is closed: %w", ErrUnavailable))
	}
	return nil
}
