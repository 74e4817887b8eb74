package importer

import (
	"context"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tarlift/tarlift/internal/source"
)

const (
	// fetchMemory bounds what all chunks hold, in bytes, with up to 8 connections; all of it shows in the peak of the
	// process. With 4, chunks grow to 600 KiB.
	fetchMemory = 6 << 20
	// minChunk is what a request asks for at first, and of a slow source always, in bytes: the heads of a request and its
	// answer are 0.3 % of it. What chunks behind the first hold is lost when the process is killed: 3 of them with 4
	// connections, 8 s of a link of 100 KiB/s.
	minChunk = 256 << 10
	// chunkTime is about what a connection should take for a chunk, without the round trip in front of it. Larger ones would
	// keep those who read waiting.
	chunkTime = time.Second
	// learning is how many chunks of the largest size tell whether the server is distant.
	learning = 8
	// settling is more than it takes to open an ingest. Whoever has asked for nothing then waits for another importer.
	settling = 100 * time.Millisecond
)

// fetcher reads from a remote source with a number of connections. Whose turn came first has as many of them as it can
// use, each for another chunk; those behind have what is left. A chunk is kept until it has been read, so that a
// connection never waits for containerd.
//
// From a distant server, where connections would wait for round trips more than they receive, each turn asks for all of its
// section at once, with one connection.
//
// The first may hold n-1 chunks that wait for the one in front of them to be complete and n that are on their way, each of
// the others one: 3n-2 together.
type fetcher struct {
	src         source.Blob
	connections int
	most        int64         // bytes of a chunk
	changed     chan struct{} // tells enter to look again

	mu      sync.Mutex
	busy    int   // connections
	size    int64 // of the next chunk
	distant bool  // chunks are not worth their round trips
	full    int   // chunks of the largest size so far, and how long they took altogether
	waited  time.Duration
	took    time.Duration
	turns   []*turn  // that have come and not left, in order
	buffers [][]byte // that no chunk uses
}

// turn is somebody who reads one section after the other.
type turn struct {
	*fetcher
	came    time.Time
	section *fetched // the latest, nil before the first
}

func newFetcher(src source.Blob, connections int) *fetcher {
	most := max(fetchMemory/(3*int64(connections)-2), minChunk)
	return &fetcher{src: src, connections: connections, most: most, size: minChunk, changed: make(chan struct{}, 1)}
}

// each calls do for each run, in their order, as soon as those before leave it a connection.
func (f *fetcher) each(ctx context.Context, all [][]PlannedBlob, do func(context.Context, sections, []PlannedBlob) error) error {
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(f.connections)
	for _, blobs := range all {
		t := f.enter(groupCtx)
		if t == nil {
			break
		}
		group.Go(func() error {
			defer t.leave()
			return do(groupCtx, t, blobs)
		})
	}
	if err := group.Wait(); err != nil {
		return err //nolint:wrapcheck // do says what failed
	}
	return ctx.Err() //nolint:wrapcheck // the caller's own
}

// enter returns a turn when those before have asked for what they want, and a connection is free still; nil when ctx has
// ended. To open an ingest earlier would have other importers wait for it in vain.
func (f *fetcher) enter(ctx context.Context) *turn {
	for ctx.Err() == nil {
		f.mu.Lock()
		unsettled := slices.ContainsFunc(f.turns, func(t *turn) bool { return t.section == nil && time.Since(t.came) < settling })
		if f.busy < f.connections && !unsettled {
			t := &turn{fetcher: f, came: time.Now()}
			f.turns = append(f.turns, t)
			f.mu.Unlock()
			return t
		}
		f.mu.Unlock()
		select {
		case <-f.changed:
		case <-time.After(settling):
		case <-ctx.Done():
		}
	}
	return nil
}

func (t *turn) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.turns = slices.DeleteFunc(t.turns, func(other *turn) bool { return other == t })
	t.schedule()
}

// schedule gives free connections away. It is called with the lock, after each change.
func (f *fetcher) schedule() {
	waiting := 0 // chunks beside the first of each turn
	for _, t := range f.turns {
		if t.section != nil {
			waiting += max(len(t.section.chunks)-1, 0)
		}
	}
	for _, t := range f.turns {
		s := t.section
		for s != nil && s.next < s.end && f.busy < f.connections && (len(s.chunks) == 0 || waiting < 2*f.connections-2) {
			if len(s.chunks) > 0 {
				waiting++
			}
			s.begin()
		}
	}
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

// adapt learns from a chunk: how long its first byte was waited for, and how long the rest took.
func (f *fetcher) adapt(bytes int64, waited, took time.Duration) {
	if bytes == f.most {
		f.full++
		f.waited += waited
		f.took += took
		f.distant = f.distant || f.full >= learning && f.waited > f.took/2
	}
	switch {
	case took < chunkTime/2:
		f.size = max(f.size, min(2*bytes, f.most))
	case took > 2*chunkTime:
		f.size = max(min(f.size, bytes/2), minChunk)
	}
}
