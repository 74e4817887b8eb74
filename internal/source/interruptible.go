package source

import (
	"context"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxAbandoned bounds the calls of the file system that hang while nobody waits for them any more. A dead NFS server
	// or FUSE daemon keeps a thread and a buffer for each, until it answers or the process ends.
	maxAbandoned = 4
	// abandonedGrace is how long a call may take after its caller has gone: from a disk that works it takes milliseconds.
	abandonedGrace = time.Second
	// readBuffer bounds one such read, in bytes: a pipe's default capacity is 64 KiB, and more than a few of them gain
	// nothing.
	readBuffer = 256 << 10
)

var (
	abandoned   atomic.Int32
	readBuffers = sync.Pool{New: func() any { return new([readBuffer]byte) }}
)

// forever is the time limit of calls that wait for somebody else, such as a pipe's writer.
const forever = time.Duration(math.MaxInt64)

// interruptible runs call, which may hang in the kernel, on a goroutine of its own. When ctx or the time is over first it
// abandons the call, with all that the call uses; should the call succeed later, undo releases what it got.
func interruptible[T any](ctx context.Context, limit time.Duration, call func() (T, error), undo func(T)) (got T, err error) {
	for deadline := time.Now().Add(abandonedGrace); abandoned.Load() >= maxAbandoned; time.Sleep(abandonedGrace / 100) {
		if time.Now().After(deadline) {
			return got, fmt.Errorf("%d earlier calls hang in the file system: %w", maxAbandoned, ErrUnavailable)
		}
	}
	waiting, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	type result struct {
		got T
		err error
	}
	returned := make(chan result)
	go func() {
		got, err := call()
		select {
		case returned <- result{got, err}:
		case <-waiting.Done():
			if err == nil {
				undo(got)
			}
			abandoned.Add(-1)
		}
	}()
	select {
	case r := <-returned:
		return r.got, r.err
	case <-waiting.Done():
		abandoned.Add(1)
		if err := ctx.Err(); err != nil {
			return got, err //nolint:wrapcheck // the caller's own
		}
		return got, fmt.Errorf("the file system has not answered for %s: %w", limit, ErrUnavailable)
	}
}

// readInterruptibly is read(p), or of the beginning of p. An abandoned read may write into its buffer at any time later:
// that buffer is never p.
func readInterruptibly(ctx context.Context, limit time.Duration, p []byte, read func([]byte) (int, error)) (int, error) {
	type filled struct {
		buf *[readBuffer]byte
		n   int
		err error // that belongs to the bytes
	}
	f, err := interruptible(ctx, limit, func() (f filled, _ error) {
		f.buf = readBuffers.Get().(*[readBuffer]byte)
		f.n, f.err = read(f.buf[:min(len(p), readBuffer)])
		return f, nil
	}, func(f filled) { readBuffers.Put(f.buf) })
	if err != nil {
		return 0, err
	}
	copy(p, f.buf[:f.n])
	readBuffers.Put(f.buf)
	return f.n, f.err
}
