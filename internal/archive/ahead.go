package archive

import (
	"errors"
	"io"
	"slices"
)

const (
	// leastAhead holds what archive/tar reads between two members: the last byte of
	// one, its padding, and the header of the next.
	leastAhead = 2 * blockSize
	// mostAhead is what reads grow to while members are small: a system call for
	// some dozens of them instead of three for each.
	mostAhead = 32 << 10
)

// headers reads the first size bytes of r. Remote sources read ahead themselves,
// and know better what a byte costs.
func headers(r Random, size int64) io.ReadSeeker {
	if s, ok := r.(interface{ Remote() bool }); ok && s.Remote() {
		return io.NewSectionReader(r, 0, size)
	}
	return &headerReader{r: r, size: size}
}

// headerReader reads the headers of a tar by random access. It reads ahead as far
// as members lie closely, and passes over the bytes of large ones.
type headerReader struct {
	r    io.ReaderAt
	size int64
	off  int64 // of the next Read

	buf   []byte // what was read last,
	start int64  // at this offset
	run   int    // bytes read since the last gap
}

// Seek moves at no cost.
func (h *headerReader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += h.off
	case io.SeekEnd:
		offset += h.size
	}
	if offset < 0 {
		return 0, errors.New("negative position")
	}
	h.off = offset
	return offset, nil
}

func (h *headerReader) Read(p []byte) (int, error) {
	if h.off >= h.size {
		return 0, io.EOF
	}
	if h.off < h.start || h.off >= h.start+int64(len(h.buf)) {
		if err := h.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, h.buf[h.off-h.start:])
	h.off += int64(n)
	return n, nil
}

// fill reads at off: the least, or a quarter of what was read without a gap before,
// so that little is read in vain where close members come to an end.
func (h *headerReader) fill() error {
	if gap := h.off - (h.start + int64(len(h.buf))); gap < 0 || gap > int64(len(h.buf)) {
		h.run = 0
	}
	n := min(max(leastAhead, h.run/4), mostAhead)
	n = int(min(int64(n), h.size-h.off))
	h.buf = slices.Grow(h.buf[:0], n)[:n]
	k, err := h.r.ReadAt(h.buf, h.off)
	h.buf, h.start = h.buf[:k], h.off
	h.run += k
	if k > 0 {
		return nil // an error that stays comes again
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}
