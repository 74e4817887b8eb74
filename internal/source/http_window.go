package source

import (
	"io"
	"slices"
	"sync"
)

// How much to read ahead was tried out with TestHTTPIndex and BenchmarkHTTPIndex: requests, and KiB on
// the wire, to index archives of 10, 100 and 1,000 members, and one of 200 blobs about as large as a
// window.
//
//	                               10        100         1,000        like windows
//	always 4 KiB                   5,  80    70,  356    707,  3,055    180,    818
//	always 64 KiB                  4, 196    41, 2577    498, 31,934    162, 10,347
//	4 KiB, doubled when near       5,  84    64,  418    699,  3,779    164,  9,703
//	this                           4, 100    46,  876    531,  8,234    173,    999
//
// A tar is walked from header to header, so each member that lies beyond a window costs a round trip,
// however large the window. What it saves are the trips to small members behind a large one: with 50 ms
// each, the 1,000 members took 27 s instead of the 36 s of doubling. Measured latency has no say: what
// a trip saves is worth more than a window's bytes as soon as it takes some milliseconds, and below
// that neither matters. The limit is what an import may read beyond the blobs that it needs, which is
// 1 MiB and 2 % of them.
const (
	// firstWindow is what the first request asks for, in bytes: where small archives lie whole, and the
	// metadata of those that have it in front.
	firstWindow = 64 << 10
	// minWindow is what a read at a new place fetches at least: a tar header with its extensions, and
	// most manifests behind it.
	minWindow = 4 << 10
	// newWindow is what it fetches as long as there is credit: most configs as well.
	newWindow = 16 << 10
	// maxWindow is what windows grow to where small members lie closely, and where reads go straight on.
	maxWindow = 64 << 10
	// startCredit is what windows may cost before they shrink to the least, in bytes; with the first one it
	// is half of the MiB. The other half is for the least, and for the heads of responses.
	startCredit = 512<<10 - firstWindow
	// creditPart is the part of the credit that one window may take.
	creditPart = startCredit / newWindow
	// passedPart of the bytes that were passed over is added to the credit: 1 % of the blobs that a node
	// needs of an archive of five platforms.
	passedPart = 512
	// maxCached bounds the windows that are kept, in bytes: nearly all of an archive with 1,000 members,
	// whose manifests are read by name when the walk is over.
	maxCached = 4 << 20
)

// windowCache keeps the latest parts of a blob that were read ahead.
type windowCache struct {
	mu      sync.Mutex
	windows []*window // oldest first
	bytes   int
	spent   int64 // of startCredit
	passed  int64 // offset up to which credit was added
}

// window is a part that was read. Its data does not change, so it may be copied without the lock.
type window struct {
	off  int64
	data []byte
	next int64 // offset where the last read from it ended
	// saved is the number of reads that would have been requests without it: those that did not go on
	// where another had ended.
	saved int64
}

func (w *window) end() int64 { return w.off + int64(len(w.data)) }

// add keeps data; the first n bytes of it have been given away.
func (c *windowCache) add(off int64, data []byte, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.windows = append(c.windows, &window{off: off, data: data, next: off + int64(n)})
	c.passed = max(c.passed, off+int64(len(data)))
	c.bytes += len(data)
	for c.bytes > maxCached {
		c.bytes -= len(c.windows[0].data)
		c.windows[0] = nil // the slice's array keeps it otherwise
		c.windows = c.windows[1:]
	}
}

// copy copies what is known from off on into p, and says how many bytes that are.
func (c *windowCache) copy(p []byte, off int64) int {
	return copy(p, c.find(off, int64(len(p))))
}

// find gives at most n bytes from off on. The latest window is the likeliest.
func (c *windowCache) find(off, n int64) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range slices.Backward(c.windows) {
		if w.off <= off && off < w.end() {
			if off != w.next {
				w.saved++
			}
			w.next = min(off+n, w.end())
			return w.data[off-w.off : w.next-w.off]
		}
	}
	return nil
}

// take says how many bytes to fetch at off, where at least one is missing of least, and charges them.
func (c *windowCache) take(off, least int64) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.spent -= max(off-c.passed, 0) / passedPart
	c.passed = max(c.passed, off)
	fresh := min(max((startCredit-c.spent)/creditPart, minWindow), newWindow)
	size, until := max(fresh, least), int64(-1)
	for _, w := range c.windows {
		switch gap := off - w.end(); {
		case gap < 0:
			if w.off > off && (until < 0 || w.off < until) {
				until = w.off
			}
		case gap == 0:
			size = max(size, min(2*int64(len(w.data)), maxWindow))
		case gap <= int64(len(w.data)):
			// As dense as there, or else members nearly as large as a window would be read in full.
			size = max(size, min(2*w.saved*fresh, maxWindow))
		}
	}
	if until >= 0 {
		size = min(size, until-off) // the rest is there
	}
	c.spent = min(c.spent+size, startCredit)
	return size
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
		if k := b.cache.copy(p[n:], at); k > 0 {
			n += k
			continue
		}
		k, err := b.fetch(p[n:], at)
		n += k
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// fetch reads at least one byte of p from the server: large reads straight into p, small ones by way
// of a window that is kept.
func (b *httpBlob) fetch(p []byte, off int64) (int, error) {
	if len(p) >= maxWindow {
		return b.readFull(p[:min(int64(len(p)), b.size-off)], off)
	}
	data := make([]byte, min(b.cache.take(off, int64(len(p))), b.size-off))
	if _, err := b.readFull(data, off); err != nil {
		return 0, err
	}
	n := copy(p, data)
	b.cache.add(off, data, n)
	return n, nil
}

func (b *httpBlob) readFull(p []byte, off int64) (int, error) {
	s := b.section(b.ctx, off, int64(len(p)))
	defer s.Close()
	return io.ReadFull(s, p) //nolint:wrapcheck // section names the source
}
