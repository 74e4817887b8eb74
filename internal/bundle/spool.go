package bundle

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/tarlift/tarlift/internal/archive"
)

// Spool keeps the blobs of archives that can be read only once, in a temporary file without a name, which ends with the
// process. It is an archive.Sink.
type Spool struct {
	dir      string
	progress func(int64)
	file     *os.File
	end      int64
	blobs    map[digest.Digest]extent
}

// extent is where a blob is in the file.
type extent struct{ off, size int64 }

// NewSpool returns an empty spool. Its file will be in dir; "" for the system's default. progress gets the number of bytes
// so far; nil for none.
func NewSpool(dir string, progress func(int64)) *Spool {
	if progress == nil {
		progress = func(int64) {}
	}
	return &Spool{dir: dir, progress: progress, blobs: map[digest.Digest]extent{}}
}

// Close removes the file.
func (s *Spool) Close() error {
	if s.file == nil {
		return nil
	}
	return s.file.Close() //nolint:wrapcheck // names the file itself
}

// Put keeps a member. If the spool has its digest already, Put only verifies the member.
func (s *Spool) Put(ctx context.Context, claimed digest.Digest, size int64, r io.Reader) (digest.Digest, error) {
	if err := s.open(); err != nil {
		return "", err
	}
	algorithm := digest.Canonical
	if claimed != "" {
		algorithm = claimed.Algorithm()
	}
	sum := algorithm.Digester()
	var w io.Writer = &spoolWriter{ctx: ctx, spool: s, off: s.end}
	if _, ok := s.blobs[claimed]; ok {
		w = io.Discard
	}
	if _, err := io.CopyN(w, io.TeeReader(r, sum.Hash()), size); err != nil {
		return "", err //nolint:wrapcheck // the reader's own, or said by the writer
	}
	d := sum.Digest()
	if claimed != "" && d != claimed {
		return d, nil // the caller compares
	}
	if _, ok := s.blobs[d]; !ok {
		s.blobs[d] = extent{s.end, size}
		s.end += size
	}
	return d, nil
}

func (s *Spool) open() error {
	if s.file != nil {
		return nil
	}
	f, err := os.CreateTemp(s.dir, ".tarlift-spool-*")
	if err != nil {
		return fmt.Errorf("create temporary file: %w", err)
	}
	s.file = f
	if err := os.Remove(f.Name()); err != nil {
		return fmt.Errorf("write temporary file: %w", err)
	}
	return nil
}

// spoolWriter writes at the file's end.
type spoolWriter struct {
	ctx   context.Context
	spool *Spool
	off   int64
}

func (w *spoolWriter) Write(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err //nolint:wrapcheck // the caller's own
	}
	n, err := w.spool.file.WriteAt(p, w.off)
	w.off += int64(n)
	w.spool.progress(w.off)
	if err != nil {
		err = fmt.Errorf("write temporary file: %w", err)
	}
	return n, err
}

// Get returns a member that was kept.
func (s *Spool) Get(_ context.Context, d digest.Digest, limit int64) ([]byte, error) {
	e, ok := s.blobs[d]
	if !ok {
		return nil, fmt.Errorf("blob %s: %w", d, fs.ErrNotExist)
	}
	if e.size > limit {
		return nil, fmt.Errorf("blob %s has %d bytes, more than %d: %w", d, e.size, limit, archive.ErrLimit)
	}
	var buf bytes.Buffer
	if _, err := io.Copy(&buf, io.NewSectionReader(s.file, e.off, e.size)); err != nil {
		return nil, fmt.Errorf("blob %s: %w", d, err)
	}
	return buf.Bytes(), nil
}

// find returns a blob. A nil spool has none.
func (s *Spool) find(d digest.Digest) (Blob, bool) {
	if s == nil {
		return Blob{}, false
	}
	e, ok := s.blobs[d]
	return Blob{Size: e.size, Open: func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(io.NewSectionReader(s.file, e.off, e.size)), nil
	}}, ok
}
