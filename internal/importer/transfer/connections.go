package transfer

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/tarlift/tarlift/internal/source"
)

const (
	// chunkMemory bounds what all chunks hold, in bytes, with up to 8 connections; all of it shows in the peak of the
	// process. With 4, chunks grow to 600 KiB.
	chunkMemory = 6 << 20
	// minChunk is what a request asks for at first, and of a slow source always, in bytes: the heads of a request and its
	// answer are 0.3 % of it. What chunks behind the first hold is lost when the process is killed: 3 of them with 4
	// connections, 8 s of a link of 100 KiB/s.
	minChunk = 256 << 10
	// chunkTime is about what a connection should take for a chunk. Larger ones would keep those who read waiting.
	chunkTime = time.Second
	// openTime is more than it takes to open an ingest. Whoever has asked for nothing then waits for another importer.
	openTime = 100 * time.Millisecond
)

// connections reads from a remote source. Whose turn came first has as many connections as it can use, each for another
// chunk; those behind have what is left. A chunk is kept until it has been read, so that a connection never waits for
// containerd. The first may hold n-1 chunks that wait for the one in front of them and n that are on their way, each of the
// others one: 3n-2 together.
//
// Where a round trip costs more than half of a chunk, each turn asks for all of its section at once instead.
type connections struct {
	src     source.Blob
	n       int
	most    int64         // bytes of a chunk
	changed chan struct{} // tells enter to look again

	mu      sync.Mutex
	busy    int      // connections
	size    int64    // of the next chunk
	turns   []*turn  // that have come and not left, in order
	buffers [][]byte // that no chunk uses
}

// turn is somebody who reads one section after the other.
type turn struct {
	*connections
	came    time.Time
	asked   bool     // for a section
	section *section // the latest in chunks, or nil
}

func newConnections(src source.Blob, n int) *connections {
	most := max(chunkMemory/(3*int64(n)-2), minChunk)
	return &connections{src: src, n: n, most: most, size: minChunk, changed: make(chan struct{}, 1)}
}

// enter returns a turn when those before have asked for what they want, and a connection is free still; nil when ctx has
// ended. To begin earlier would have other importers wait in vain for a blob.
func (c *connections) enter(ctx context.Context) *turn {
	for ctx.Err() == nil {
		c.mu.Lock()
		opening := slices.ContainsFunc(c.turns, func(t *turn) bool { return !t.asked && time.Since(t.came) < openTime })
		if c.busy < c.n && !opening {
			t := &turn{connections: c, came: time.Now()}
			c.turns = append(c.turns, t)
			c.mu.Unlock()
			return t
		}
		c.mu.Unlock()
		select {
		case <-c.changed:
		case <-time.After(openTime):
		case <-ctx.Done():
		}
	}
	return nil
}

// Section is as that of a source.Blob. A turn has one at a time.
func (t *turn) Section(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	s := &section{connections: t.connections, next: off, end: off + n, arrived: make(chan struct{}, 1)}
	distant := source.RoundTripBytes(t.src) > t.most/2
	t.mu.Lock()
	if t.asked = true; !distant {
		s.ctx, s.cancel = context.WithCancel(ctx)
		t.section = s
	}
	t.schedule()
	t.mu.Unlock()
	if distant {
		return t.src.Section(ctx, off, n)
	}
	return s, nil
}

func (t *turn) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.turns = slices.DeleteFunc(t.turns, func(other *turn) bool { return other == t })
	t.schedule()
}

// schedule gives free connections away. It is called with the lock, after each change.
func (c *connections) schedule() {
	waiting := 0 // chunks beside the first of each turn
	for _, t := range c.turns {
		if t.section != nil {
			waiting += max(len(t.section.chunks)-1, 0)
		}
	}
	for _, t := range c.turns {
		s := t.section
		for s != nil && s.next < s.end && c.busy < c.n && (len(s.chunks) == 0 || waiting < 2*c.n-2) {
			if len(s.chunks) > 0 {
				waiting++
			}
			s.begin()
		}
	}
	wake(c.changed)
}

// wake lets whoever waits for ch look again.
func wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// adapt learns from the time that a chunk took.
func (c *connections) adapt(bytes int64, took time.Duration) {
	switch {
	case took < chunkTime/2:
		c.size = max(c.size, min(2*bytes, c.most))
	case took > 2*chunkTime:
		c.size = max(min(c.size, bytes/2), minChunk)
	}
}

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

// chunk is what one request asks for.
type chunk struct {
	off      int64
	buf      []byte // all of it
	in, read int    // bytes that have come, and that were read
	err      error  // why no more will come
}

// begin has a connection fetch the next chunk.
func (s *section) begin() {
	c := &chunk{off: s.next}
	if last := len(s.buffers) - 1; last >= 0 {
		c.buf, s.buffers = s.buffers[last], s.buffers[:last]
	} else {
		c.buf = make([]byte, s.most)
	}
	c.buf = c.buf[:min(s.size, s.end-s.next)]
	s.next += int64(len(c.buf))
	s.chunks = append(s.chunks, c)
	s.busy++
	s.receiving.Go(func() {
		start := time.Now()
		err := s.receive(c)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.busy--
		if c.err = err; err == nil {
			s.adapt(int64(len(c.buf)), time.Since(start))
		} else {
			s.end = s.next // nobody will get that far
		}
		wake(s.arrived)
		s.schedule()
	})
}

// receive fills the buffer. It returns the source's error, as if it were read without chunks.
func (s *section) receive(c *chunk) error {
	body, err := s.src.Section(s.ctx, c.off, int64(len(c.buf)))
	if err != nil {
		return err
	}
	defer body.Close()
	for {
		n, err := body.Read(c.buf[c.in:])
		s.mu.Lock()
		c.in += n
		s.mu.Unlock()
		wake(s.arrived)
		switch {
		case c.in == len(c.buf):
			return nil
		case errors.Is(err, io.EOF):
			return io.ErrUnexpectedEOF
		case err != nil:
			return err
		}
	}
}

func (s *section) Read(p []byte) (int, error) {
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

// take reads what has arrived.
func (s *section) take(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.chunks) > 0 {
		c := s.chunks[0]
		if c.read < len(c.buf) {
			n := copy(p, c.buf[c.read:c.in])
			if c.read += n; n > 0 {
				return n, nil
			}
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
func (s *section) drop() {
	buf := s.chunks[0].buf
	s.buffers = append(s.buffers, buf[:cap(buf)])
	s.chunks = s.chunks[1:]
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
