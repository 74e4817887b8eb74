package importer

import (
	"context"
	"fmt"
	"runtime"

	"golang.org/x/sync/semaphore"
)

const (
	// memoryBudget bounds what all imports of a process together hold in buffers and decoder windows, in bytes: one of the
	// largest window, or five that zstd makes without --long. With it, what the process has at rest and what one archive's
	// metadata may take, the agent stays below 128 MiB.
	memoryBudget = 48 << 20
	// baseMemory is what an import holds beside its blobs, in bytes: its plan, and buffers of gRPC.
	baseMemory = 2 << 20
	// blobMemory is what a blob takes that is on its way.
	blobMemory = 1 << 20
)

// budget is shared by the imports of a process. Whoever has a place among those with large metadata waits for nothing else,
// so that imports cannot wait for each other in a circle.
type budget struct {
	buffers *semaphore.Weighted // bytes of memoryBudget
	large   *semaphore.Weighted // imports whose metadata is larger than usual: one at a time
}

func newBudget() *budget {
	return &budget{buffers: semaphore.NewWeighted(memoryBudget), large: semaphore.NewWeighted(1)}
}

// share is what one import has of the memory.
type share struct {
	of     *budget
	bytes  int64
	window int64
	large  bool
}

// acquire waits until there is memory for so many blobs at a time, and for a decoder's window of so many bytes. It is called
// once.
func (s *share) acquire(ctx context.Context, blobs int, window int64) error {
	n := min(baseMemory+int64(blobs)*blobMemory+window+window/8, memoryBudget)
	if err := s.of.buffers.Acquire(ctx, n); err != nil {
		return fmt.Errorf("wait for memory: %w", err)
	}
	s.bytes, s.window = n, window
	return nil
}

// acquireLarge waits until no other import has large metadata. It may be called again.
func (s *share) acquireLarge(ctx context.Context) error {
	if s.large {
		return nil
	}
	if err := s.of.large.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("wait for memory: %w", err)
	}
	s.large = true
	return nil
}

// release is called when nothing of the memory is used any more. What was large is collected first: else the next import
// would take as much again before the collector runs.
func (s *share) release() {
	if s.window > 0 || s.large {
		runtime.GC()
	}
	s.of.buffers.Release(s.bytes)
	if s.large {
		s.of.large.Release(1)
	}
}
