package builder

import (
	"fmt"
	"io"
	"os"

	"github.com/opencontainers/go-digest"
)

// spool holds blobs one behind the other in a file without a name.
type spool struct {
	f   *os.File
	end int64
}

// blob is a run of bytes with its digest.
type blob struct {
	digest digest.Digest
	size   int64
	open   func() io.Reader
}

func newSpool() (*spool, error) {
	f, err := os.CreateTemp("", "image-archive-*")
	if err != nil {
		return nil, fmt.Errorf("create spool: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, withClose(fmt.Errorf("unlink spool: %w", err), f)
	}
	return &spool{f: f}, nil
}

// add appends what write writes.
func (s *spool) add(write func(io.Writer) error) (blob, error) {
	off := s.end
	d := digest.Canonical.Digester()
	w := &countingWriter{w: io.MultiWriter(s.f, d.Hash())}
	err := write(w)
	s.end += w.n
	size := w.n
	return blob{
		digest: d.Digest(),
		size:   size,
		open:   func() io.Reader { return io.NewSectionReader(s.f, off, size) },
	}, err
}

func (s *spool) Close() error { return s.f.Close() }

type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

func readBlob(b blob) ([]byte, error) { return io.ReadAll(b.open()) }
