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

// turn is somebody who reads one section of the source after the other, each in chunks.
type turn struct {
	*connections
	came  time.Time
	asked bool // for a section

	ctx       context.Context // of the section
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
			t := &turn{connections: c, came: time.Now(), arrived: make(chan struct{}, 1)}
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

// Section is as that of a source.Blob. It is closed before the next one is asked for.
func (t *turn) Section(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	distant := source.RoundTripBytes(t.src) > t.most/2
	t.mu.Lock()
	if t.asked = true; !distant {
		t.ctx, t.cancel = context.WithCancel(ctx)
		t.next, t.end = off, off+n
	}
	t.schedule()
	t.mu.Unlock()
	if distant {
		return t.src.Section(ctx, off, n)
	}
	return t, nil
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
		waiting += max(len(t.chunks)-1, 0)
	}
	for _, t := range c.turns {
		for t.next < t.end && c.busy < c.n && (len(t.chunks) == 0 || waiting < 2*c.n-2) {
			if len(t.chunks) > 0 {
				waiting++
			}
			t.begin()
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

// begin has a connection fetch the next chunk.
func (t *turn) begin() {
	c := &chunk{off: t.next}
	if last := len(t.buffers) - 1; last >= 0 {
		c.buf, t.buffers = t.buffers[last], t.buffers[:last]
	} else {
		c.buf = make([]byte, t.most)
	}
	c.buf = c.buf[:min(t.size, t.end-t.next)]
	t.next += int64(len(c.buf))
	t.chunks = append(t.chunks, c)
	t.busy++
	t.receiving.Go(func() {
		start := time.Now()
		err := t.receive(c)
		t.mu.Lock()
		defer t.mu.Unlock()
		t.busy--
		if c.err = err; err == nil {
			t.adapt(int64(len(c.buf)), time.Since(start))
		} else {
			t.end = t.next // nobody will get that far
		}
		wake(t.arrived)
		t.schedule()
	})
}

// receive fills the buffer. It returns the source's error, as if it were read without chunks.
func (t *turn) receive(c *chunk) error {
	body, err := t.src.Section(t.ctx, c.off, int64(len(c.buf)))
	if err != nil {
		return err
	}
	defer body.Close()
	for {
		n, err := body.Read(c.buf[c.in:])
		t.mu.Lock()
		c.in += n
		t.mu.Unlock()
		wake(t.arrived)
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

func (t *turn) Read(p []byte) (int, error) {
	for {
		n, err := t.take(p)
		if n > 0 || err != nil {
			return n, err
		}
		select {
		case <-t.arrived:
		case <-t.ctx.Done():
			return 0, t.ctx.Err() //nolint:wrapcheck // the caller's own
		}
	}
}

// take reads what has arrived.
func (t *turn) take(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.chunks) > 0 {
		c := t.chunks[0]
		if c.read < len(c.buf) {
			n := copy(p, c.buf[c.read:c.in])
			if c.read += n; n > 0 {
				return n, nil
			}
			return 0, c.err
		}
		t.drop()
		t.schedule()
	}
	if t.next < t.end {
		return 0, nil
	}
	return 0, io.EOF
}

// drop gives the first chunk's memory back.
func (t *turn) drop() {
	buf := t.chunks[0].buf
	t.buffers = append(t.buffers, buf[:cap(buf)])
	t.chunks = t.chunks[1:]
}

// Close returns when nothing is received any more.
func (t *turn) Close() error {
	t.mu.Lock()
	t.next = t.end // nothing more is asked for
	t.mu.Unlock()
	t.cancel()
	t.receiving.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.chunks) > 0 {
		t.drop()
	}
	t.schedule()
	return nil
}
