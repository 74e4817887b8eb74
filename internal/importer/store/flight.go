package store

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
)

// stallTime is how long a blob may come no further before others who need it move it too: a source that has fallen silent
// must not hold up imports from other sources. It also ends any circle of imports that wait for each other. To commit a large
// blob takes a slow disk some seconds, in which no bytes move.
const stallTime = 10 * time.Second

type flight struct {
	digest  digest.Digest
	landed  chan struct{} // closed at its end
	moved   atomic.Int64  // bytes
	stalled bool          // another one has this blob, and makes no progress
}

// join returns when nobody else moves the blob, or whoever does makes no progress. The caller leaves the flight at its end.
func (s *Store) join(ctx context.Context, d digest.Digest) (*flight, error) {
	own := &flight{digest: d, landed: make(chan struct{})}
	var watched *flight
	var moved int64
	for {
		s.flightsMu.Lock()
		other := s.flights[d]
		if other == nil {
			s.flights[d] = own
		}
		s.flightsMu.Unlock()
		if other == nil {
			return own, nil
		}
		now := other.moved.Load()
		if other == watched && now == moved {
			own.stalled = true
			return own, nil
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
func (s *Store) leave(f *flight) {
	s.flightsMu.Lock()
	defer s.flightsMu.Unlock()
	if s.flights[f.digest] == f {
		delete(s.flights, f.digest)
	}
	close(f.landed)
}
