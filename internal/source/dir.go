package source

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"
)

// maxDirFiles bounds what is looked at of a directory, as a tar's members are bounded elsewhere: whoever names / by
// mistake is told soon.
const maxDirFiles = 100_000

// tarBlock is what a tar is made of, in bytes.
const tarBlock = 512

// dirBlob is a directory.
type dirBlob struct {
	blob
	root  *os.Root
	parts []dirPart // by offset
}

// dirPart is a header, a file, or zeros.
type dirPart struct {
	off, size int64
	header    []byte // before the zeros that size has beyond it
	file      string
	modified  time.Time
}

// OpenDir gives a directory as the tar of what is in it, sorted by name: regular files, links as links, and
// nothing else. The tar is nowhere; its bytes are made when they are read.
func OpenDir(ctx context.Context, path string) (Blob, error) {
	info, err := os.Stat(path)
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("it is no directory: %w", ErrInvalid)
	}
	if err != nil {
		return nil, fileError("open", path, err)
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fileError("open", path, err)
	}
	b := &dirBlob{root: root}
	b.init(ctx, path, 0)
	names, err := b.list()
	for _, name := range names {
		if err == nil {
			err = b.add(name)
		}
	}
	if err != nil {
		b.Close() //nolint:gosec // only read from
		return nil, err
	}
	b.append(dirPart{size: 2 * tarBlock})
	return b, nil
}

// list gives the sorted names of what is below the directory and is no directory.
func (b *dirBlob) list() (names []string, err error) {
	err = fs.WalkDir(b.root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return fileError("read", b.name+"/"+name, err)
		case b.ctx.Err() != nil:
			return b.ctx.Err()
		case entry.IsDir():
		case len(names) == maxDirFiles:
			return fmt.Errorf("open %q: more than %d files are below it: %w", b.name, maxDirFiles, ErrInvalid)
		default:
			names = append(names, name)
		}
		return nil
	})
	slices.Sort(names)
	return names, err //nolint:wrapcheck // what the function above returned
}

func (b *dirBlob) append(p dirPart) {
	p.off = b.size
	b.size += p.size
	b.parts = append(b.parts, p)
}

// add appends a file or a link.
func (b *dirBlob) add(name string) error {
	path := b.name + "/" + name
	info, err := b.root.Lstat(name)
	if err != nil {
		return fileError("read", path, err)
	}
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: info.Size(), Mode: 0o644, ModTime: time.Unix(0, 0)}
	switch mode := info.Mode(); {
	case mode&fs.ModeSymlink != 0:
		h.Typeflag, h.Size = tar.TypeSymlink, 0
		if h.Linkname, err = b.root.Readlink(name); err != nil {
			return fileError("read", path, err)
		}
	case !mode.IsRegular():
		return fmt.Errorf("open %q: %.200q in it is a %s: %w", b.name, name, kindOf(mode), ErrInvalid)
	}
	var header bytes.Buffer
	if err := tar.NewWriter(&header).WriteHeader(h); err != nil {
		return fmt.Errorf("open %q: file %.200q: %s: %w", b.name, name, err.Error(), ErrInvalid)
	}
	b.append(dirPart{size: int64(header.Len()), header: header.Bytes()})
	if h.Size > 0 {
		b.append(dirPart{size: h.Size, file: name, modified: info.ModTime()})
		b.append(dirPart{size: -h.Size & (tarBlock - 1)})
	}
	return nil
}

func (b *dirBlob) Close() error {
	b.cancel()
	return b.root.Close() //nolint:wrapcheck // names the directory itself
}

func (b *dirBlob) Section(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	return b.section(ctx, off, n, b.readAt)
}

func (b *dirBlob) ReadAt(p []byte, off int64) (int, error) { return b.readAt(b.ctx, p, off) }

func (b *dirBlob) readAt(ctx context.Context, p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("read %q: negative offset: %w", b.name, ErrInvalid)
	}
	for n < len(p) && err == nil {
		at := off + int64(n)
		if at >= b.size {
			return n, io.EOF
		}
		// The part with at in it is the last that begins there or before; behind an empty one.
		i, _ := slices.BinarySearchFunc(b.parts, at+1, func(part dirPart, off int64) int { return cmp.Compare(part.off, off) })
		part := &b.parts[i-1]
		from, k := at-part.off, 0
		piece := p[n:min(int64(len(p)), int64(n)+part.size-from)]
		if part.file != "" {
			k, err = readInterruptibly(ctx, leastTime, piece, func(buf []byte) (int, error) { return b.readFile(part, buf, from) })
		} else {
			k = len(piece)
			clear(piece[copy(piece, part.header[min(from, int64(len(part.header))):]):])
		}
		n += k
	}
	return n, err
}

// readFile fills p. A directory may hold thousands of files: none stays open.
func (b *dirBlob) readFile(part *dirPart, p []byte, off int64) (int, error) {
	path := b.name + "/" + part.file
	file, err := b.root.Open(part.file)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("read %q: the file was removed meanwhile: %w", path, ErrChanged)
	}
	if err != nil {
		return 0, fileError("read", path, err)
	}
	defer file.Close()
	n, err := file.ReadAt(p, off)
	b.read.Add(int64(n))
	info, statErr := file.Stat()
	switch {
	case statErr != nil:
		return 0, fileError("read", path, statErr)
	case info.Size() != part.size || !info.ModTime().Equal(part.modified):
		return 0, fmt.Errorf("read %q: the file was written to or replaced meanwhile: %w", path, ErrChanged)
	case n < len(p):
		return 0, fileError("read", path, err)
	}
	return n, nil
}
