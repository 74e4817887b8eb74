package corpus

import (
	"bytes"
	"io"
	"sort"
	"sync/atomic"
)

// Data is the bytes of an archive. Those of large ones are made while they are read.
type Data struct {
	parts []part
}

// part is a run of bytes that begins at start.
type part struct {
	io.ReaderAt
	start, size int64
}

// Size of the archive in bytes.
func (d *Data) Size() int64 {
	if len(d.parts) == 0 {
		return 0
	}
	last := d.parts[len(d.parts)-1]
	return last.start + last.size
}

// Reader reads all of it from its start.
func (d *Data) Reader() *io.SectionReader { return io.NewSectionReader(d, 0, d.Size()) }

// ReadAt implements io.ReaderAt.
func (d *Data) ReadAt(p []byte, off int64) (n int, err error) {
	k := sort.Search(len(d.parts), func(k int) bool { return d.parts[k].start+d.parts[k].size > off })
	for ; k < len(d.parts) && n < len(p); k++ {
		x := d.parts[k]
		from := off + int64(n) - x.start
		piece := p[n:min(int64(len(p)), int64(n)+x.size-from)]
		m, err := x.ReadAt(piece, from)
		if n += m; m < len(piece) {
			return n, err
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// join puts runs of bytes one behind the other.
func join(runs ...*Data) *Data {
	d := &Data{}
	for _, r := range runs {
		for _, x := range r.parts {
			d.add(x.ReaderAt, x.size)
		}
	}
	return d
}

func (d *Data) add(r io.ReaderAt, size int64) {
	if size > 0 {
		d.parts = append(d.parts, part{r, d.Size(), size})
	}
}

// data is a run of bytes that are there.
func data(b []byte) *Data {
	d := &Data{}
	d.add(bytes.NewReader(b), int64(len(b)))
	return d
}

func text(s string) *Data { return data([]byte(s)) }

// repeat is a block again and again, size bytes in all.
func repeat(block []byte, size int64) *Data {
	d := &Data{}
	d.add(repeated(block), size)
	return d
}

// zeros are size bytes.
func zeros(size int64) *Data { return repeat(make([]byte, blockSize), size) }

type repeated []byte

func (r repeated) ReadAt(p []byte, off int64) (int, error) {
	for n := 0; n < len(p); {
		n += copy(p[n:], r[(off+int64(n))%int64(len(r)):])
	}
	return len(p), nil
}

// counted is n blocks of the same size, each made by its number.
func counted(n int64, size int, content func(k int64) []byte) *Data {
	d := &Data{}
	d.add(&blocks{size: size, content: content}, n*int64(size))
	return d
}

type blocks struct {
	size    int
	content func(k int64) []byte
	last    atomic.Pointer[block] // readers read a little at a time
}

type block struct {
	k    int64
	data []byte
}

func (b *blocks) ReadAt(p []byte, off int64) (int, error) {
	for n := 0; n < len(p); {
		at := off + int64(n)
		k := at / int64(b.size)
		x := b.last.Load()
		if x == nil || x.k != k {
			x = &block{k, b.content(k)}
			b.last.Store(x)
		}
		n += copy(p[n:], x.data[at%int64(b.size):])
	}
	return len(p), nil
}
