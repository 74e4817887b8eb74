package source

import (
	"io"
	"slices"
	"sync"
	"time"
)

const (
	// filePage is what a read of a file takes at least, in bytes: a page, which costs the disk no more than a part of it. A
	// reader of a tar asks for the last byte of a member, its padding and the next header one after the other, and small
	// members lie between them.
	filePage = 4 << 10
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
	// maxCached bounds the windows that are kept of a server, in bytes: nearly all of an archive with 1,000 members,
	// whose manifests are read by name when the walk is over.
	maxCached = 4 << 20
)

// readAhead serves small reads from the latest windows of a blob. What is missing it reads in windows of the size that is
// given for an offset and the least that is wanted.
type readAhead struct {
	most int // bytes that are kept
	size func(off, least int64) int64
	read func(p []byte, off int64) (int, error)

	mu      sync.Mutex
	windows []window // oldest first
	bytes   int
	spare   []byte // of a window that went
}

// window is a part that was read.
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
	for a.bytes > a.most {
		a.spare = a.windows[0].data
		a.bytes -= len(a.spare)
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

// buffer is room for a window.
func (a *readAhead) buffer(n int64) []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	data := a.spare
	if a.spare = nil; int64(len(data)) != n {
		data = make([]byte, n)
	}
	return data
}

// readAt is an io.ReaderAt's ReadAt of a blob of size bytes. It reads large parts straight into p. Two that miss the same
// bytes at the same time both read them.
func (a *readAhead) readAt(p []byte, off, size int64) (n int, err error) {
	for n < len(p) && err == nil {
		at, k := off+int64(n), 0
		if at >= size {
			return n, io.EOF
		}
		if len(p)-n >= firstWindow {
			k, err = a.read(p[n:min(int64(len(p)), size-off)], at)
		} else if k = a.copy(p[n:], at); k == 0 {
			data := a.buffer(min(a.size(at, int64(len(p)-n)), size-at))
			if _, err = a.read(data, at); err == nil {
				k = copy(p[n:], data)
				a.add(at, data)
			}
		}
		n += k
	}
	return n, err
}

// window says how many bytes to fetch at off, where least are wanted and the first is not there. The window is twice as large
// as the latest when only a gap lies between them that is cheaper to read than a request: then the next is likely as near.
// What was read in vain, once that is over, is thereby at most about what was of use.
func (b *httpBlob) window(off, least int64) int64 {
	a := &b.ahead
	trip := b.roundTripBytes()
	most := min(max(windowTrips*trip, firstWindow), mostWindow)
	a.mu.Lock()
	defer a.mu.Unlock()
	size := max(least, min(max(trip/4, leastWindow), mostNew))
	if last := len(a.windows) - 1; last >= 0 {
		w := a.windows[last]
		if gap := off - w.end(); gap >= 0 && readThrough(b, gap) {
			size = max(size, min(2*int64(len(w.data)), most))
		}
	}
	for _, w := range a.windows {
		if w.off > off {
			size = min(size, w.off-off) // the rest is there
		}
	}
	return size
}

// readFull reads a range, of which an answer may be there already.
func (b *httpBlob) readFull(p []byte, off int64, res *response) (int, error) {
	s := b.newSection(b.ctx, off, int64(len(p)))
	s.body, s.progress = res, &b.metadata
	defer s.Close()
	return io.ReadFull(s, p) //nolint:wrapcheck // section names the source
}

// One rule decides how remote blobs are read: bytes that nobody wants are read through where that takes less time than
// another request. Both are measured with the blob's own answers.
const (
	// startRate is what the first startBytes are believed to have come with, in bytes a second.
	startRate  = 1 << 20
	startBytes = 16 << 10
	// leastMeasured is the size in bytes from which on an answer tells of the rate: small ones come in one packet.
	leastMeasured = 16 << 10
	// recentBytes is how much of what has come the rate tells of, in bytes.
	recentBytes = 4 << 20
	// leastGap is read through in any case, in bytes: the tar headers between two members.
	leastGap = 16 << 10
	// mostGap bounds in bytes what is read through, however far away the server is: time is not all that a byte costs.
	mostGap = 256 << 10
)

// roundTripBytes is how many bytes of b come over one connection in the time that the answer to a request takes to begin;
// 0 if that is nothing, or unknown.
func roundTripBytes(b Blob) int64 {
	if paced, ok := b.(interface{ roundTripBytes() int64 }); ok {
		return paced.roundTripBytes()
	}
	return 0
}

// readThrough tells whether a gap of n bytes between two parts of b is to be read rather than asked around.
func readThrough(b Blob, n int64) bool {
	return n <= min(max(roundTripBytes(b), leastGap), mostGap)
}

// pace is what the answers so far tell of the way to a server.
type pace struct {
	mu        sync.Mutex
	roundTrip time.Duration // the least: what is more was the server's work
	bytes     float64       // the latest, 0 for none,
	took      time.Duration // and how long they were waited for
}

// began notes how long it took until an answer began.
func (p *pace) began(roundTrip time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.roundTrip == 0 || roundTrip < p.roundTrip {
		p.roundTrip = roundTrip
	}
}

// came notes how long the n bytes of an answer's body were waited for.
func (p *pace) came(n int64, took time.Duration) {
	if n < leastMeasured {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bytes == 0 {
		p.bytes, p.took = startBytes, startBytes*time.Second/startRate
	}
	p.bytes += float64(n)
	p.took += took
	if p.bytes > recentBytes {
		p.took = time.Duration(float64(p.took) * recentBytes / p.bytes)
		p.bytes = recentBytes
	}
}

func (p *pace) roundTripBytes() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bytes == 0 {
		return int64(p.roundTrip.Seconds() * startRate)
	}
	return int64(p.bytes * p.roundTrip.Seconds() / p.took.Seconds())
}
