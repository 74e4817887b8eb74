package archive

import (
	"io"
	"slices"
)

// leastRead is what one read of a local archive takes at least, in bytes: a page, which costs the disk no more than a
// part of it. archive/tar reads the last byte of a member, its padding and the next header one after the other, and
// small members lie between them.
const leastRead = 4 << 10

// readAhead reads leastRead bytes where fewer are asked for, and keeps what it read last.
type readAhead struct {
	io.ReaderAt
	start int64 // offset of data
	data  []byte
}

// headers reads the first size bytes of r. A remote source has a rule of its own for reading ahead.
func headers(r Random, size int64) io.ReadSeeker {
	if s, ok := r.(interface{ Remote() bool }); ok && s.Remote() {
		return io.NewSectionReader(r, 0, size)
	}
	return io.NewSectionReader(&readAhead{ReaderAt: r}, 0, size)
}

func (r *readAhead) ReadAt(p []byte, off int64) (int, error) {
	if off < r.start || off+int64(len(p)) > r.start+int64(len(r.data)) {
		n := max(len(p), leastRead)
		r.data = slices.Grow(r.data[:0], n)[:n]
		n, err := r.ReaderAt.ReadAt(r.data, off)
		r.start, r.data = off, r.data[:n]
		if n < len(p) {
			return copy(p, r.data), err
		}
	}
	return copy(p, r.data[off-r.start:]), nil
}
