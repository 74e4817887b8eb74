package source

import (
	"io"
	"sync"
)

const (
	// firstWindow is what the first request asks for, in bytes: where small archives lie whole, and the
	// metadata of those that have it in front.
	firstWindow = 64 << 10
	// minWindow is what a read at a new place fetches: a tar header with its extensions, and most
	// manifests behind it. An archive of hundreds of layers is walked header by header, so more would
	// soon be more bytes than an import may read.
	minWindow = 4 << 10
	// maxWindow is what reads that follow each other grow to.
	maxWindow = 64 << 10
	// maxCached bounds the windows that are kept, in bytes: the headers and manifests of an archive with
	// some hundred blobs, which are read twice (walking, then by name).
	maxCached = 1 << 20
)

// windowCache keeps the latest parts of a blob that were read ahead.
type windowCache struct {
	mu      sync.Mutex
	windows []window // oldest first
	bytes   int
}

type window struct {
	off  int64
	data []byte
}

func (c *windowCache) add(off int64, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.windows = append(c.windows, window{off, data})
	c.bytes += len(data)
	for c.bytes > maxCached {
		c.bytes -= len(c.windows[0].data)
		c.windows = c.windows[1:]
	}
}

// copy copies what is known from off on into p, and says how many bytes that are.
func (c *windowCache) copy(p []byte, off int64) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.windows {
		if w.off <= off && off < w.off+int64(len(w.data)) {
			return copy(p, w.data[off-w.off:])
		}
	}
	return 0
}

// next says how many bytes to fetch at off: twice the window that ends there or shortly before it, if
// one does.
func (c *windowCache) next(off int64) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.windows {
		size := int64(len(w.data))
		if gap := off - (w.off + size); 0 <= gap && gap <= size {
			return min(max(2*size, minWindow), maxWindow)
		}
	}
	return minWindow
}

// ReadAt serves small reads from windows, and reads the missing ones.
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
	data := make([]byte, min(max(b.cache.next(off), int64(len(p))), b.size-off))
	n, err := b.readFull(data, off)
	if err != nil {
		return 0, err
	}
	b.cache.add(off, data[:n])
	return copy(p, data), nil
}

func (b *httpBlob) readFull(p []byte, off int64) (int, error) {
	s := b.section(b.ctx, off, int64(len(p)))
	defer s.Close()
	return io.ReadFull(s, p) //nolint:wrapcheck // section names the source
}
