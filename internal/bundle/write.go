package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/tarlift/tarlift/internal/archive"
)

// blockSize of a tar, in bytes. Two blocks of zeros end it.
const blockSize = 512

var zeros [2 * blockSize]byte

// Write writes the archive and gives its digest. Every blob is compared with its digest on its way; after an error what was
// written is no archive. progress is told the bytes so far, often; nil for nobody. Where ctx ends while w hangs, w is still in use.
func (b *Bundle) Write(ctx context.Context, w io.Writer, progress func(int64)) (digest.Digest, error) {
	p := startPipeline(ctx, w, progress)
	return p.finish(b.produce(p))
}

// produce puts the archive into the pipeline.
func (b *Bundle) produce(p *pipeline) error {
	for _, m := range b.head {
		header, err := m.header()
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
	n, err := p.copy(rc, l)
	if errors.Is(err, errShort) {
		err = fmt.Errorf("%d bytes of %d: %w", n, l.Size, archive.ErrTruncated)
	}
	if err != nil {
		return l.wrap(err)
	}
	return p.put(padding(l.Size))
}

// wrap says where the bytes are.
func (l layer) wrap(err error) error {
	if l.blob.Member == "" {
		return fmt.Errorf("read blob %s: %w", l.Digest, err)
	}
	return fmt.Errorf("read member %.200q: %w", l.blob.Member, err)
}

func (m member) header() ([]byte, error) { return tarHeader(m.name, int64(len(m.data))) }

// tarHeader is a header that tells nothing of who wrote it, and when.
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

// padding follows size bytes of a member.
func padding(size int64) []byte { return zeros[:(blockSize-size%blockSize)%blockSize] }

// size adds up what Write will write.
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
