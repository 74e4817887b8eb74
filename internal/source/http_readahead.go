package source

import (
	"io"
	"slices"
	"sync"
)

const (
	// firstWindow is what the first request asks for, in bytes: where small archives lie whole, and the
	// metadata of those that have it in front.
	firstWindow = 64 << 10
	// leastWindow is what a read at a new place fetches, in bytes, but no more than a quarter of its round trip is worth: a tar
	// header with its extensions, and most manifests behind it; with mostNew most configs as well.
	leastWindow = 4 << 10
	mostNew     = 16 << 10
	// mostWindow is what windows grow to, in bytes.
	mostWindow = 1 << 20
	// windowTrips is how many round trips the bytes of a window may take: its own is a small part of that.
	windowTrips = 4
	// maxCached bounds the windows that are kept, in bytes: nearly all of an archive with 1,000 members,
	// whose manifests are read by name when the walk is over.
	maxCached = 4 << 20
)

// readAhead keeps the latest windows of a blob.
type readAhead struct {
	mu      sync.Mutex
	windows []window // oldest first
	bytes   int
}

// window is a part that was read. Its data does not change, so it may be copied without the lock.
type window struct {
	off  int64
	data []byte
}

func (w window) end() int64 { return w.off + int64(len(w.data)) }

func (a *readAhead) add(off int64, data []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.windows = append(a.windows, window{off, data})
	a.bytes += len(data)
	for a.bytes > maxCached {
		a.bytes -= len(a.windows[0].data)
		a.windows = slices.Delete(a.windows, 0, 1)
	}
}

// copy copies what is known from off on into p, and says how many bytes that are. The latest window is the likeliest.
func (a *readAhead) copy(p []byte, off int64) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, w := range slices.Backward(a.windows) {
		if w.off <= off && off < w.end() {
			return copy(p, w.data[off-w.off:])
		}
	}
	return 0
}

// size says how many bytes to fetch at off, where least are wanted and the first is not there. The window is twice as large
// as the latest when only a gap lies between them that is cheaper to read than a request: then the next is likely as near.
// What was read in vain, once that is over, is thereby at most about what was of use.
func (a *readAhead) size(b *httpBlob, off, least int64) int64 {
	trip := b.RoundTripBytes()
	most := min(max(windowTrips*trip, firstWindow), mostWindow)
	a.mu.Lock()
	defer a.mu.Unlock()
	size := max(least, min(max(trip/4, leastWindow), mostNew))
	if last := len(a.windows) - 1; last >= 0 {
		w := a.windows[last]
		if gap := off - w.end(); gap >= 0 && ReadThrough(b, gap) {
			size = max(size, min(2*int64(len(w.data)), most))
		}
	}
	for _, w := range a.windows {
		if w.off > off {
			size = min(size, w.off-off) // the rest is there
		}
	}
	return min(size, b.size-off)
}

// ReadAt serves small reads from windows, and reads the missing ones. Two reads that miss the same
// bytes at the same time both fetch them.
func (b *httpBlob) ReadAt(p []byte, off int64) (int, error) {
	if !b.RandomAccess() || off < 0 {
		return 0, b.errorf(errStreamOnce)
	}
	n := 0
	for n < len(p) {
		at := off + int64(n)
		if at >= b.size {
			return n, io.EOF
		}
		k := b.windows.copy(p[n:], at)
		if k == 0 {
			var err error
			if k, err = b.fetch(p[n:], at); err != nil {
				return n + k, err
			}
		}
		n += k
	}
	return n, nil
}

// fetch reads at least one byte of p from the server: large reads straight into p, small ones by way
// of a window that is kept.
func (b *httpBlob) fetch(p []byte, off int64) (int, error) {
	if len(p) >= firstWindow {
		return b.readFull(p[:min(int64(len(p)), b.size-off)], off, nil)
	}
	data := make([]byte, b.windows.size(b, off, int64(len(p))))
	if _, err := b.readFull(data, off, nil); err != nil {
		return 0, err
	}
	b.windows.add(off, data)
	return copy(p, data), nil
}

// readFull reads a range, of which an answer may be there already.
func (b *httpBlob) readFull(p []byte, off int64, res *response) (int, error) {
	s := b.newSection(b.ctx, off, int64(len(p)))
	s.body, s.progress = res, &b.metadata
	defer s.Close()
	return io.ReadFull(s, p) //nolint:wrapcheck // section names the source
}
