package importer

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/tarlift/tarlift/internal/importer/store"
)

// fetched is a section that is fetched in chunks.
type fetched struct {
	*fetcher
	ctx       context.Context
	cancel    context.CancelFunc
	receiving sync.WaitGroup
	next, end int64         // of the archive, what has yet to be asked for
	chunks    []*chunk      // the first is being read
	arrived   chan struct{} // tells Read that there is more of the first chunk
}

type chunk struct {
	off, size int64
	buf       []byte // a ring; most chunks fit
	read, in  int64  // bytes of size
	complete  bool
	err       error         // that follows the bytes, once it is complete
	drained   chan struct{} // tells receive that there is room again
}

// arrivedIn is what can be read of the ring without a break.
func (c *chunk) arrivedIn() []byte {
	from := c.read % int64(len(c.buf))
	return c.buf[from:min(from+c.in-c.read, int64(len(c.buf)))]
}

// room is what can be written of the ring without a break.
func (c *chunk) room() []byte {
	from, free := c.in%int64(len(c.buf)), int64(len(c.buf))-(c.in-c.read)
	return c.buf[from:min(from+min(free, c.size-c.in), int64(len(c.buf)))]
}

// Section is as that of a source.Blob. A turn has one at a time.
func (t *turn) Section(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	s := &fetched{fetcher: t.fetcher, next: off, end: off + n, arrived: make(chan struct{}, 1)}
	s.ctx, s.cancel = context.WithCancel(ctx)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.section = s
	t.schedule()
	return s, nil
}

// begin has a connection fetch the next chunk.
func (s *fetched) begin() {
	c := &chunk{off: s.next, size: min(s.size, s.end-s.next), drained: make(chan struct{}, 1)}
	if s.distant {
		c.size = s.end - s.next
	}
	if last := len(s.buffers) - 1; last >= 0 {
		c.buf, s.buffers = s.buffers[last], s.buffers[:last]
	} else {
		c.buf = make([]byte, s.most)
	}
	s.next += c.size
	s.chunks = append(s.chunks, c)
	s.busy++
	s.receiving.Go(func() {
		begun := time.Now()
		first, err := s.receive(c)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.busy--
		if c.complete, c.err = true, err; err == nil {
			s.adapt(c.size, first.Sub(begun), time.Since(first))
		} else {
			s.end = s.next // nobody will get that far
		}
		s.tell(c)
		s.schedule()
	})
}

// receive returns the source's error, as if it were read without chunks, and when the first bytes came.
func (s *fetched) receive(c *chunk) (first time.Time, err error) {
	section, err := s.src.Section(s.ctx, c.off, c.size)
	if err != nil {
		return first, err
	}
	defer section.Close()
	for {
		s.mu.Lock()
		room, all := c.room(), c.in == c.size
		s.mu.Unlock()
		switch {
		case all:
			return first, store.AtEnd(section)
		case len(room) == 0:
			select {
			case <-c.drained:
			case <-s.ctx.Done():
				return first, s.ctx.Err() //nolint:wrapcheck // the caller's own
			}
			continue
		}
		n, err := section.Read(room)
		if first.IsZero() && n > 0 {
			first = time.Now()
		}
		s.mu.Lock()
		c.in += int64(n)
		all = c.in == c.size
		s.tell(c)
		s.mu.Unlock()
		switch {
		case errors.Is(err, io.EOF) && !all:
			return first, io.ErrUnexpectedEOF
		case err != nil && !errors.Is(err, io.EOF):
			return first, err
		}
	}
}

// tell wakes Read up if it waits for c.
func (s *fetched) tell(c *chunk) {
	if len(s.chunks) == 0 || s.chunks[0] != c {
		return
	}
	select {
	case s.arrived <- struct{}{}:
	default:
	}
}

func (s *fetched) Read(p []byte) (int, error) {
	for {
		n, err := s.take(p)
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

// take reads what has arrived. What follows a chunk is looked at once that is complete.
func (s *fetched) take(p []byte) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.chunks) > 0 {
		c := s.chunks[0]
		if c.read < c.in || !c.complete {
			n = copy(p, c.arrivedIn())
			c.read += int64(n)
			select {
			case c.drained <- struct{}{}:
			default:
			}
			return n, nil
		}
		if c.err != nil {
			return 0, c.err
		}
		s.drop()
		s.schedule()
	}
	if s.next < s.end {
		return 0, nil
	}
	return 0, io.EOF
}

// drop gives the first chunk's memory back.
func (s *fetched) drop() {
	s.buffers = append(s.buffers, s.chunks[0].buf)
	s.chunks = s.chunks[1:]
}

// Close returns when nothing is received any more.
func (s *fetched) Close() error {
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
