package bundle

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/tarlift/tarlift/internal/archive"
)

const (
	// pieceBytes is what is read, hashed and written at a time: the shorter, the sooner all are busy, and the longer, the
	// less they wait for each other.
	pieceBytes = 512 << 10
	// pieceCount bounds how far one may be ahead of another: 4 MiB in all.
	pieceCount = 8
)

// pipeline brings bytes to three that are busy at the same time, since each byte is hashed twice, for its blob and
// for the archive, and that takes longer than to read and to write it: on two cores as long as to do it once.
type pipeline struct {
	parent, ctx context.Context
	fail        context.CancelCauseFunc
	free        chan []byte

	writing, hashing, checking chan *piece
	ended                      chan struct{} // all three
	sum                        digest.Digester
}

// piece is bytes of the archive. It is not changed until all have used it.
type piece struct {
	data  []byte
	users atomic.Int32
	free  func() // after the last user
	// blob is whose bytes these are, nil for those between blobs, and last tells that no more follow.
	blob *layer
	last bool
}

func startPipeline(ctx context.Context, w io.Writer, progress func(int64)) *pipeline {
	p := &pipeline{
		parent: ctx,
		free:   make(chan []byte, pieceCount), ended: make(chan struct{}), sum: digest.Canonical.Digester(),
		writing: make(chan *piece, pieceCount), hashing: make(chan *piece, pieceCount), checking: make(chan *piece, pieceCount),
	}
	p.ctx, p.fail = context.WithCancelCause(ctx)
	for range pieceCount {
		p.free <- make([]byte, pieceBytes)
	}
	var done int64
	var all sync.WaitGroup
	all.Go(func() {
		p.use(p.writing, func(b *piece) error {
			n, err := w.Write(b.data)
			if done += int64(n); progress != nil {
				progress(done)
			}
			return err
		})
	})
	all.Go(func() {
		p.use(p.hashing, func(b *piece) error {
			_, err := p.sum.Hash().Write(b.data)
			return err
		})
	})
	all.Go(func() {
		var c checker
		p.use(p.checking, c.check)
	})
	go func() { all.Wait(); close(p.ended) }()
	return p
}

// use calls do for each piece until one fails, and lets the others pass: nobody shall wait for it.
func (p *pipeline) use(pieces <-chan *piece, do func(*piece) error) {
	failed := false
	for b := range pieces {
		if !failed {
			if err := do(b); err != nil {
				failed = true
				p.fail(err)
			}
		}
		if b.users.Add(-1) == 0 && b.free != nil {
			b.free()
		}
	}
}

// put sends bytes that are no blob to be checked. They are not changed afterwards.
func (p *pipeline) put(parts ...[]byte) error {
	for _, data := range parts {
		if len(data) == 0 {
			continue
		}
		if err := p.send(&piece{data: data}); err != nil {
			return err
		}
	}
	return nil
}

// send hands a piece to all. Where one of them hangs, the context's end still gets through.
func (p *pipeline) send(b *piece) error {
	to := []chan *piece{p.writing, p.hashing, p.checking}
	if b.blob == nil {
		to = to[:2]
	}
	b.users.Store(int32(len(to))) //nolint:gosec // 2 or 3
	for _, c := range to {
		select {
		case <-p.ctx.Done():
			return context.Cause(p.ctx) //nolint:wrapcheck // said by whoever failed
		case c <- b:
		}
	}
	return context.Cause(p.ctx) //nolint:wrapcheck // said by whoever failed
}

// errShort is a blob with fewer bytes than its descriptor says.
var errShort = errors.New("too few bytes")

// copy sends a blob and counts its bytes. The error is errShort when r has too few of them.
func (p *pipeline) copy(r io.Reader, l layer) (int64, error) {
	if l.Size == 0 {
		return 0, p.send(&piece{blob: &l, last: true})
	}
	var done int64
	for done < l.Size {
		var buf []byte
		select {
		case <-p.ctx.Done():
			return done, context.Cause(p.ctx) //nolint:wrapcheck // said by whoever failed
		case buf = <-p.free:
		}
		n, err := io.ReadFull(r, buf[:min(int64(len(buf)), l.Size-done)])
		done += int64(n)
		switch {
		case done == l.Size:
		case err == io.ErrUnexpectedEOF, err == io.EOF:
			return done, errShort
		case err != nil:
			return done, err //nolint:wrapcheck // the caller names the blob
		}
		if err := p.send(&piece{data: buf[:n], free: func() { p.free <- buf }, blob: &l, last: done == l.Size}); err != nil {
			return done, err
		}
	}
	return done, nil
}

// writerGrace is how long a write that is under way is waited for when the context has ended: one to a file is soon done,
// one to a pipe that nobody reads never.
const writerGrace = time.Second

// finish waits for the rest. err is what putting bytes in came to; what failed first counts.
func (p *pipeline) finish(err error) (digest.Digest, error) {
	if err != nil {
		p.fail(err)
	}
	close(p.writing)
	close(p.hashing)
	close(p.checking)
	select {
	case <-p.ended:
	case <-p.parent.Done():
		select {
		case <-p.ended:
		case <-time.After(writerGrace):
		}
	}
	err = context.Cause(p.ctx)
	p.fail(nil)
	if err != nil {
		return "", err //nolint:wrapcheck // said by whoever failed
	}
	return p.sum.Digest(), nil
}

// checker compares blobs with their digests.
type checker struct{ hash hash.Hash }

func (c *checker) check(b *piece) error {
	if c.hash == nil {
		c.hash = b.blob.Digest.Algorithm().Hash()
	}
	c.hash.Write(b.data)
	if !b.last {
		return nil
	}
	got := digest.NewDigest(b.blob.Digest.Algorithm(), c.hash)
	c.hash = nil
	if got != b.blob.Digest {
		err := fmt.Errorf("digest is %s, not %s: %w", got, b.blob.Digest, archive.ErrDigestMismatch)
		return fmt.Errorf("%s: %w", b.blob.input, b.blob.wrap(err))
	}
	return nil
}
