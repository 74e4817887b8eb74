package builder

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

// layer is a layer's bytes as they lie in the spool.
type layer struct {
	blob
	diffID digest.Digest
	// source tells compression and media type.
	source Layer
}

func makeLayer(s *spool, l Layer) (layer, error) {
	diff := digest.Canonical.Digester()
	b, err := s.add(func(w io.Writer) error {
		cw, err := compressor(w, l.Compression, l.Level)
		if err != nil {
			return err
		}
		if err := writeFiles(io.MultiWriter(cw, diff.Hash()), l.Files); err != nil {
			return err
		}
		return cw.Close()
	})
	return layer{blob: b, diffID: diff.Digest(), source: l}, err
}

func writeFiles(w io.Writer, files []File) error {
	tw := tar.NewWriter(w)
	for _, f := range files {
		if err := writeFile(tw, f); err != nil {
			return fmt.Errorf("file %q: %w", f.Name, err)
		}
	}
	return tw.Close()
}

func writeFile(tw *tar.Writer, f File) (err error) {
	h := &tar.Header{Name: f.Name, Mode: f.Mode, ModTime: time.Unix(0, 0), Typeflag: tar.TypeReg}
	if h.Mode == 0 {
		h.Mode = 0o644
	}
	writeHeader := func() error {
		if f.Header != nil {
			f.Header(h)
		}
		return tw.WriteHeader(h)
	}
	switch {
	case f.Link != "":
		h.Typeflag, h.Linkname = tar.TypeSymlink, f.Link
		return writeHeader()
	case strings.HasSuffix(f.Name, "/"):
		h.Typeflag = tar.TypeDir
		if f.Mode == 0 {
			h.Mode = 0o755
		}
		return writeHeader()
	}
	r, size, err := f.open()
	if err != nil {
		return err
	}
	defer func() { err = withClose(err, r) }()
	h.Size = size
	if err := writeHeader(); err != nil {
		return err
	}
	_, err = io.Copy(tw, r)
	return err
}

func (f File) open() (io.ReadCloser, int64, error) {
	switch {
	case f.Open != nil:
		r, err := f.Open()
		return r, f.Size, err
	case f.Path != "":
		r, err := os.Open(f.Path)
		if err != nil {
			return nil, 0, err
		}
		st, err := r.Stat()
		if err != nil {
			return nil, 0, withClose(err, r)
		}
		return r, st.Size(), nil
	default:
		return io.NopCloser(bytes.NewReader(f.Data)), int64(len(f.Data)), nil
	}
}

// Noise is a file of size bytes that no compression makes smaller; the same
// seed gives the same bytes.
func Noise(name string, seed uint64, size int64) File {
	return File{Name: name, Size: size, Open: func() (io.ReadCloser, error) {
		var key [32]byte
		for i := range 8 {
			key[i] = byte(seed >> (8 * i))
		}
		return io.NopCloser(io.LimitReader(rand.NewChaCha8(key), size)), nil
	}}
}

// compressor gives a writer that compresses to w. Closing it does not close w.
func compressor(w io.Writer, c Compression, level int) (io.WriteCloser, error) {
	switch c {
	case None:
		return nopCloser{w}, nil
	case Gzip:
		if level == 0 {
			level = gzip.DefaultCompression
		}
		return gzip.NewWriterLevel(w, level)
	case Zstd:
		if level == 0 {
			level = 3
		}
		// One goroutine: the output must not depend on the number of cores.
		return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(level)), zstd.WithEncoderConcurrency(1))
	default:
		return nil, fmt.Errorf("unknown compression %d", c)
	}
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
