package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/tarlift/tarlift/internal/archive"
)

const (
	// blockSize of a tar, in bytes. Two blocks of zeros end it.
	blockSize = 512
	// pieceBytes is how much is read, hashed and written at a time, and pieceCount how many pieces are in memory: 4 MiB.
	pieceBytes = 512 << 10
	pieceCount = 8
	// writeGrace is how long Write waits for a write in progress after ctx ends: one to a file is soon done, one to a pipe
	// that nobody reads never.
	writeGrace = time.Second
)

var zeros [2 * blockSize]byte

// Write writes the archive and returns its digest. It verifies every blob while copying; after an error, what was written
// is no archive. progress gets the number of bytes so far, often; nil for none. If ctx ends while w hangs, w is still in use.
func (b *Bundle) Write(ctx context.Context, w io.Writer, progress func(int64)) (digest.Digest, error) {
	if progress == nil {
		progress = func(int64) {}
	}
	p := newPipeline(ctx, w, progress)
	defer p.fail(nil)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := b.produce(p); err != nil {
			p.fail(err)
		}
		p.finish()
	}()
	select {
	case <-done:
	case <-ctx.Done():
		select {
		case <-done:
		case <-time.After(writeGrace):
		}
	}
	return p.result()
}

// pipeline writes the archive and hashes its bytes twice, for their blob and for the archive. All three happen at the same
// time, since hashing a byte takes longer than reading and writing it.
type pipeline struct {
	ctx                         context.Context
	fail                        context.CancelCauseFunc
	pieces                      [pieceCount]piece // a ring of buffers
	next                        int
	writing, summing, verifying chan *piece
	workers                     sync.WaitGroup
	sum                         digest.Digester // of the archive
}

// piece is bytes of the archive.
type piece struct {
	data   []byte
	buf    []byte
	blob   *layer // whose bytes these are; nil between blobs
	last   bool   // of the blob
	unused sync.WaitGroup
}

func newPipeline(ctx context.Context, w io.Writer, progress func(int64)) *pipeline {
	p := &pipeline{sum: digest.Canonical.Digester()}
	p.ctx, p.fail = context.WithCancelCause(ctx)
	for i := range p.pieces {
		p.pieces[i].buf = make([]byte, pieceBytes)
	}
	var written int64
	p.writing = p.work(func(b *piece) error {
		n, err := w.Write(b.data)
		written += int64(n)
		progress(written)
		return err
	})
	p.summing = p.work(func(b *piece) error {
		_, err := p.sum.Hash().Write(b.data)
		return err
	})
	p.verifying = p.work(new(verifier).verify)
	return p
}

// work starts a worker. After a failure the workers only free the pieces.
func (p *pipeline) work(do func(*piece) error) chan *piece {
	pieces := make(chan *piece, pieceCount)
	p.workers.Go(func() {
		for b := range pieces {
			if p.ctx.Err() == nil {
				if err := do(b); err != nil {
					p.fail(err)
				}
			}
			b.unused.Done()
		}
	})
	return pieces
}

// send gives a piece to the workers.
func (p *pipeline) send(b *piece) error {
	to := []chan *piece{p.writing, p.summing, p.verifying}
	if b.blob == nil {
		to = to[:2]
	}
	b.unused.Add(len(to))
	for _, c := range to {
		c <- b
	}
	return context.Cause(p.ctx) //nolint:wrapcheck // said by whoever failed
}

// put sends bytes between blobs, which do not change afterwards.
func (p *pipeline) put(parts ...[]byte) error {
	for _, data := range parts {
		if len(data) > 0 {
			if err := p.send(&piece{data: data}); err != nil {
				return err
			}
		}
	}
	return nil
}

// copy sends the bytes of a blob.
func (p *pipeline) copy(r io.Reader, l layer) error {
	if l.Size == 0 {
		return p.send(&piece{blob: &l, last: true})
	}
	for done := int64(0); done < l.Size; {
		b := &p.pieces[p.next]
		p.next = (p.next + 1) % pieceCount
		b.unused.Wait()
		n, err := io.ReadFull(r, b.buf[:min(pieceBytes, l.Size-done)])
		done += int64(n)
		switch {
		case done == l.Size:
		case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
			return fmt.Errorf("%d bytes of %d: %w", done, l.Size, archive.ErrTruncated)
		case err != nil:
			return err //nolint:wrapcheck // the caller names the blob
		}
		b.data, b.blob, b.last = b.buf[:n], &l, done == l.Size
		if err := p.send(b); err != nil {
			return err
		}
	}
	return nil
}

// finish returns when all pieces are done.
func (p *pipeline) finish() {
	close(p.writing)
	close(p.summing)
	close(p.verifying)
	p.workers.Wait()
}

// result is the archive's digest, or the first failure, which explains the others.
func (p *pipeline) result() (digest.Digest, error) {
	if err := context.Cause(p.ctx); err != nil {
		return "", err //nolint:wrapcheck // said by whoever failed
	}
	return p.sum.Digest(), nil
}

// verifier compares blobs with their digests.
type verifier struct {
	hash hash.Hash // of the blob so far; nil before its first piece
}

func (v *verifier) verify(b *piece) error {
	want := b.blob.Digest
	if v.hash == nil {
		v.hash = want.Algorithm().Hash()
	}
	v.hash.Write(b.data)
	if !b.last {
		return nil
	}
	got := digest.NewDigest(want.Algorithm(), v.hash)
	v.hash = nil
	if got != want {
		return fmt.Errorf("%s: %w", b.blob.input, b.blob.wrap(fmt.Errorf("digest is %s, not %s: %w", got, want, archive.ErrDigestMismatch)))
	}
	return nil
}

// produce puts the archive's pieces in order.
func (b *Bundle) produce(p *pipeline) error {
	for _, m := range b.head {
		header, err := tarHeader(m.name, int64(len(m.data)))
		if err != nil {
			return err
		}
		if err := p.put(header, m.data, padding(int64(len(m.data)))); err != nil {
			return err
		}
	}
	for _, l := range b.layers {
		if err := l.produce(p); err != nil {
			return fmt.Errorf("%s: %w", l.input, err)
		}
	}
	return p.put(zeros[:])
}

func (l layer) produce(p *pipeline) (err error) {
	header, err := tarHeader(blobPath(l.Digest), l.Size)
	if err != nil {
		return err
	}
	if err := p.put(header); err != nil {
		return err
	}
	rc, err := l.blob.Open(p.ctx)
	if err != nil {
		return l.wrap(err)
	}
	defer func() {
		if cerr := rc.Close(); err == nil && cerr != nil {
			err = l.wrap(cerr)
		}
	}()
	if err := p.copy(rc, l); err != nil {
		return l.wrap(err)
	}
	return p.put(padding(l.Size))
}

// wrap names the member or blob in an error.
func (l layer) wrap(err error) error {
	if l.blob.Member == "" {
		return fmt.Errorf("read blob %s: %w", l.Digest, err)
	}
	return fmt.Errorf("read member %.200q: %w", l.blob.Member, err)
}

// tarHeader is a header without time and owner.
func tarHeader(name string, size int64) ([]byte, error) {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0)}
	if strings.HasSuffix(name, "/") {
		h.Typeflag, h.Mode = tar.TypeDir, 0o755
	}
	var buf bytes.Buffer
	if err := tar.NewWriter(&buf).WriteHeader(h); err != nil {
		return nil, fmt.Errorf("member %.200q: %w", name, err)
	}
	return buf.Bytes(), nil
}

// padding fills the last block of a member of size bytes.
func padding(size int64) []byte { return zeros[:(blockSize-size%blockSize)%blockSize] }

// size is the number of bytes that Write will write.
func (b *Bundle) size() (int64, error) {
	sum := int64(len(zeros))
	add := func(name string, size int64) error {
		header, err := tarHeader(name, size)
		sum += int64(len(header)) + size + int64(len(padding(size)))
		return err
	}
	for _, m := range b.head {
		if err := add(m.name, int64(len(m.data))); err != nil {
			return 0, err
		}
	}
	for _, l := range b.layers {
		if err := add(blobPath(l.Digest), l.Size); err != nil {
			return 0, err
		}
	}
	return sum, nil
}
