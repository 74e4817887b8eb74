package archive

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Compression of a whole archive or of a layer.
type Compression int

// The compressions that are read. Uncompressed means: none of those.
const (
	Uncompressed Compression = iota
	Gzip
	Zstd
)

// String is "none", "gzip" or "zstd".
func (c Compression) String() string { return [...]string{"none", "gzip", "zstd"}[c] }

// SniffLen is the number of bytes that Sniff wants, as many as containerd looks at.
const SniffLen = 10

// A zstd file may begin with a skippable frame; pzstd writes such.
const (
	gzipMagic         = "\x1f\x8b\x08"
	zstdMagic         = "\x28\xb5\x2f\xfd"
	zstdSkippable     = 0x184d2a50
	zstdSkippableMask = 0xfffffff0
)

// Sniff returns the compression by the first bytes. Fewer than SniffLen bytes are not a compressed file.
func Sniff(head []byte) Compression {
	switch {
	case len(head) < SniffLen:
		return Uncompressed
	case strings.HasPrefix(string(head[:SniffLen]), gzipMagic):
		return Gzip
	case strings.HasPrefix(string(head[:SniffLen]), zstdMagic), binary.LittleEndian.Uint32(head)&zstdSkippableMask == zstdSkippable:
		return Zstd
	default:
		return Uncompressed
	}
}

// HeaderLen is the number of bytes that WindowBytes wants.
const HeaderLen = zstd.HeaderMaxSize

// WindowBytes is how much of its output a decompressor has to keep of data that begins with head, in bytes: at most
// MaxWindowBytes. Frames of zstd have windows of their own; nobody makes later ones with larger windows, unless the first is
// below usualWindow.
func WindowBytes(head []byte) int64 {
	if Sniff(head) != Zstd {
		return 0
	}
	var h zstd.Header
	if err := h.Decode(head); err != nil || h.Skippable { // what follows is not known
		return MaxWindowBytes
	}
	window := h.WindowSize
	if h.SingleSegment {
		window = h.FrameContentSize
	}
	return int64(min(max(window, usualWindow), MaxWindowBytes))
}

// Decompress reads r without its compression, and keeps at most as much as WindowBytes says of r's first bytes. Errors of r
// come through as they are. Other errors are ErrTruncated, ErrInvalid (wrong checksum, not that format) or ErrLimit
// (MaxExpansion, window). Close does not close r.
func Decompress(r io.Reader, c Compression, window int64) (io.ReadCloser, error) {
	d := &decompressor{name: c.String(), in: &meter{r: r}, window: window}
	switch c {
	case Uncompressed:
		return io.NopCloser(r), nil
	case Gzip:
		zr, err := gzip.NewReader(d.in)
		if err != nil {
			return nil, d.explain(err)
		}
		d.out, d.close = zr, zr.Close
	default:
		// One at a time and low memory: with more, each decoder goroutine holds blocks of the window's size.
		zr, err := zstd.NewReader(d.in,
			zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(uint64(window))) //nolint:gosec // never negative
		if err != nil {
			return nil, d.explain(err)
		}
		d.out, d.close = zr, func() error { zr.Close(); return nil }
	}
	return d, nil
}

// meter counts the bytes read and keeps the reader's own error.
type meter struct {
	r   io.Reader
	n   int64
	err error
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.n += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		m.err = err
	}
	return n, err
}

type decompressor struct {
	name  string
	in    *meter
	out   io.Reader
	close func() error
	n     int64

	window int64
}

func (d *decompressor) Read(p []byte) (int, error) {
	n, err := d.out.Read(p)
	d.n += int64(n)
	if d.n > ExpansionGraceBytes && d.n/MaxExpansion > d.in.n {
		return n, fmt.Errorf("%s: %d bytes expand to more than %d times as many: %w", d.name, d.in.n, MaxExpansion, ErrLimit)
	}
	return n, d.explain(err)
}

// explain tells the reader's own errors from the decompressor's.
func (d *decompressor) explain(err error) error {
	switch {
	case err == nil || err == io.EOF && d.out != nil: //nolint:errorlint // io.Reader's end is io.EOF itself
		return err
	case d.in.err != nil:
		return d.in.err
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return fmt.Errorf("%s data ends early: %w", d.name, ErrTruncated)
	case errors.Is(err, zstd.ErrWindowSizeExceeded) && d.window < MaxWindowBytes:
		return fmt.Errorf("a zstd frame needs a window of more than %d MiB, which the first one does not, recompress it as one frame: %w",
			d.window>>20, ErrLimit)
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return fmt.Errorf("zstd data needs a window of more than %d MiB, recompress it with --long=25 or less: %w",
			MaxWindowBytes>>20, ErrLimit)
	default:
		return fmt.Errorf("%s data: %w: %w", d.name, err, ErrInvalid)
	}
}

func (d *decompressor) Close() error { return d.close() }
