package transfer

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"
)

// section is a part of the source that comes in chunks.
type section struct {
	*connections
	ctx       context.Context
	cancel    context.CancelFunc
	receiving sync.WaitGroup
	next, end int64         // of the archive, what has yet to be asked for
	chunks    []*chunk      // the first is being read
	arrived   chan struct{} // tells Read that there is more of the first chunk
}

// chunk is what one request asks for. Its bytes come into a buffer, or directly from the source.
type chunk struct {
	off, size int64
	read      int64 // bytes of size

	buf []byte
	in  int64 // bytes of buf that have come
	err error // why no more will

	direct bool
	body   io.ReadCloser // nil before the first read
}

// Section is as that of a source.Blob. A turn has one at a time.
func (t *turn) Section(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	s := &section{connections: t.connections, next: off, end: off + n, arrived: make(chan struct{}, 1)}
	s.ctx, s.cancel = context.WithCancel(ctx)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.section = s
	t.schedule()
	return s, nil
}

// begin has a connection fetch the next chunk, which is all the rest if it comes directly.
func (s *section) begin(direct bool) {
	c := &chunk{off: s.next, size: min(s.size, s.end-s.next), direct: direct}
	if direct {
		c.size = s.end - s.next
	}
	s.busy++
	s.next += c.size
	s.chunks = append(s.chunks, c)
	wake(s.arrived)
	if direct {
		return
	}
	if last := len(s.buffers) - 1; last >= 0 {
		c.buf, s.buffers = s.buffers[last], s.buffers[:last]
	} else {
		c.buf = make([]byte, s.most)
	}
	s.receiving.Go(func() {
		start := time.Now()
		err := s.receive(c)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.busy--
		if c.err = err; err == nil {
			s.adapt(c.size, time.Since(start))
		} else {
			s.end = s.next // nobody will get that far
		}
		wake(s.arrived)
		s.schedule()
	})
}

// receive fills the buffer. It returns the source's error, as if it were read without chunks.
func (s *section) receive(c *chunk) error {
	body, err := s.src.Section(s.ctx, c.off, c.size)
	if err != nil {
		return err //nolint:wrapcheck // names the source
	}
	defer body.Close()
	for {
		n, err := body.Read(c.buf[c.in:c.size])
		s.mu.Lock()
		c.in += int64(n)
		s.mu.Unlock()
		wake(s.arrived)
		switch {
		case c.in == c.size:
			return nil
		case errors.Is(err, io.EOF):
			return io.ErrUnexpectedEOF
		case err != nil:
			return err //nolint:wrapcheck // names the source
		}
	}
}

func (s *section) Read(p []byte) (int, error) {
	for {
		c, n, err := s.take(p)
		if c != nil {
			return s.readDirectly(c, p)
		}
		if n > 0 || err != nil {
			return n, err
		}
		select {
		case <-s.arrived:
		case <-s.ctx.Done():
			return 0, s.ctx.Err() //nolint:wrapcheck // the caller's own
		}
	}
}

// take reads what has arrived, or returns the chunk that is to be read directly.
func (s *section) take(p []byte) (direct *chunk, n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.chunks) > 0 {
		switch c := s.chunks[0]; {
		case c.read == c.size:
			s.drop()
			s.schedule()
		case c.direct:
			return c, 0, nil
		case c.read < c.in:
			n = copy(p, c.buf[c.read:c.in])
			c.read += int64(n)
			return nil, n, nil
		default:
			return nil, 0, c.err
		}
	}
	if s.next < s.end {
		return nil, 0, nil
	}
	return nil, 0, io.EOF
}

func (s *section) readDirectly(c *chunk, p []byte) (n int, err error) {
	if c.body == nil {
		if c.body, err = s.src.Section(s.ctx, c.off, c.size); err != nil {
			return 0, err //nolint:wrapcheck // names the source
		}
	}
	n, err = c.body.Read(p[:min(int64(len(p)), c.size-c.read)])
	c.read += int64(n)
	switch {
	case c.read == c.size:
		return n, nil
	case errors.Is(err, io.EOF):
		return n, io.ErrUnexpectedEOF
	}
	return n, err //nolint:wrapcheck // names the source
}

// drop lets go of the first chunk.
func (s *section) drop() {
	c := s.chunks[0]
	s.chunks = s.chunks[1:]
	if !c.direct {
		s.buffers = append(s.buffers, c.buf)
		return
	}
	s.busy--
	if c.body != nil {
		c.body.Close() //nolint:errcheck,gosec // only read from
	}
}

// Close returns when nothing is received any more.
func (s *section) Close() error {
	s.mu.Lock()
	s.next = s.end // nothing more is asked for
	s.mu.Unlock()
	s.cancel()
	s.receiving.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.chunks) > 0 {
		s.drop()
	}
	s.schedule()
	return nil
}
