package transfer

import (
	"context"
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
// Where a round trip costs more than half of a chunk, each turn asks for all of its section at once, over one connection.
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
	section *section // the latest, nil before the first
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
		opening := slices.ContainsFunc(c.turns, func(t *turn) bool { return t.section == nil && time.Since(t.came) < openTime })
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

func (t *turn) leave() {
	if t == nil { // of a source that needs no turns
		return
	}
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
	distant := source.RoundTripBytes(c.src) > c.most/2
	for _, t := range c.turns {
		s := t.section
		for s != nil && s.next < s.end && c.busy < c.n && (len(s.chunks) == 0 || !distant && waiting < 2*c.n-2) {
			if len(s.chunks) > 0 {
				waiting++
			}
			s.begin(distant)
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
