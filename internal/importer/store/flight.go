package store

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
)

// stallTime is how long a blob may come no further before others who need it move it too: a source that has fallen silent
// must not hold up imports from other sources. It also ends any circle of imports that wait for each other. To commit a large
// blob takes a slow disk some seconds, in which no bytes move.
const stallTime = 10 * time.Second

// flights are the blobs that are on their way in this process, each moved by one caller.
type flights struct {
	mu  sync.Mutex
	all map[digest.Digest]*flight
}

type flight struct {
	of      *flights
	digest  digest.Digest
	landed  chan struct{} // closed at its end
	moved   atomic.Int64  // bytes
	stalled bool          // another one has this blob, and makes no progress
}

// join returns when nobody else moves the blob, or whoever does makes no progress. The caller leaves the flight at its end.
func (f *flights) join(ctx context.Context, d digest.Digest) (*flight, error) {
	var watched *flight
	var moved int64
	for {
		f.mu.Lock()
		other := f.all[d]
		if other == nil {
			own := &flight{of: f, digest: d, landed: make(chan struct{})}
			f.all[d] = own
			f.mu.Unlock()
			return own, nil
		}
		f.mu.Unlock()
		now := other.moved.Load()
		if other == watched && now == moved {
			return &flight{of: f, digest: d, landed: make(chan struct{}), stalled: true}, nil
		}
		watched, moved = other, now
		select {
		case <-other.landed:
		case <-time.After(stallTime):
		case <-ctx.Done():
			return nil, ctx.Err() //nolint:wrapcheck // the caller's own
		}
	}
}

// leave lets those go on who wait for the blob.
func (f *flight) leave() {
	f.of.mu.Lock()
	defer f.of.mu.Unlock()
	if f.of.all[f.digest] == f {
		delete(f.of.all, f.digest)
	}
	close(f.landed)
}
