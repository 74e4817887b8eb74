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
	counter
	ctx   context.Context // that of OpenDir
	root  *os.Root
	name  string
	files []dirFile // by offset
	size  int64
}

// dirFile is a regular file or a link.
type dirFile struct {
	name, link    string
	size          int64
	modified      time.Time
	header, start int64 // offsets of the header and of the bytes
}

// OpenDir gives a directory as the tar of what is in it, sorted by name: regular files, links as links, and
// nothing else. The tar is nowhere; its bytes are made when they are read.
func OpenDir(ctx context.Context, path string) (Blob, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fileError("open", path, err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("open %q: it is no directory: %w", path, ErrInvalid)
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fileError("open", path, err)
	}
	b := &dirBlob{ctx: ctx, root: root, name: path}
	if err := b.list(ctx); err != nil {
		root.Close() //nolint:gosec // only read from
		return nil, err
	}
	return b, nil
}

// list finds the files and gives them their places.
func (b *dirBlob) list(ctx context.Context) error {
	err := fs.WalkDir(b.root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return fileError("read", b.name+"/"+name, err)
		case ctx.Err() != nil:
			return ctx.Err()
		case entry.IsDir():
			return nil
		case len(b.files) == maxDirFiles:
			return fmt.Errorf("open %q: more than %d files are below it: %w", b.name, maxDirFiles, ErrInvalid)
		}
		f, err := b.look(name, entry)
		if err == nil {
			b.files = append(b.files, f)
		}
		return err
	})
	if err != nil {
		return err //nolint:wrapcheck // what the function above returned
	}
	slices.SortFunc(b.files, func(x, y dirFile) int { return cmp.Compare(x.name, y.name) })
	for i := range b.files {
		f := &b.files[i]
		header, err := f.tarHeader()
		if err != nil {
			return fmt.Errorf("open %q: file %.200q: %s: %w", b.name, f.name, err.Error(), ErrInvalid)
		}
		f.header, f.start = b.size, b.size+int64(len(header))
		b.size = f.start + (f.size+tarBlock-1)/tarBlock*tarBlock
	}
	b.size += 2 * tarBlock
	return nil
}

func (b *dirBlob) look(name string, entry fs.DirEntry) (dirFile, error) {
	info, err := entry.Info()
	if err != nil {
		return dirFile{}, fileError("read", b.name+"/"+name, err)
	}
	f := dirFile{name: name}
	switch mode := info.Mode(); {
	case mode.IsRegular():
		f.size, f.modified = info.Size(), info.ModTime()
	case mode&fs.ModeSymlink != 0:
		if f.link, err = b.root.Readlink(name); err != nil {
			return f, fileError("read", b.name+"/"+name, err)
		}
	default:
		return f, fmt.Errorf("open %q: %.200q in it is a %s: %w", b.name, name, kindOf(mode), ErrInvalid)
	}
	return f, nil
}

// tarHeader is the header, of one block or more.
func (f *dirFile) tarHeader() ([]byte, error) {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: f.name, Size: f.size, Mode: 0o644, ModTime: time.Unix(0, 0)}
	if f.link != "" {
		h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
	}
	var buf bytes.Buffer
	err := tar.NewWriter(&buf).WriteHeader(h)
	return buf.Bytes(), err
}

func (b *dirBlob) RandomAccess() bool { return true }
func (b *dirBlob) Remote() bool       { return false }
func (b *dirBlob) Size() int64        { return b.size }
func (b *dirBlob) Validator() string  { return "" }
func (b *dirBlob) String() string     { return b.name }
func (b *dirBlob) Close() error       { return b.root.Close() } //nolint:wrapcheck // names the directory itself

func (b *dirBlob) Section(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	return newSection(ctx, b.ctx, b, b.size, off, n)
}

func (b *dirBlob) ReadAt(p []byte, off int64) (int, error) { return b.readAt(b.ctx, p, off) }

func (b *dirBlob) readAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read %q: negative offset: %w", b.name, ErrInvalid)
	}
	n := 0
	for n < len(p) {
		if off+int64(n) >= b.size {
			return n, io.EOF
		}
		k, err := b.readSome(ctx, p[n:], off+int64(n))
		if err != nil {
			return n, err
		}
		n += k
	}
	return n, nil
}

// readSome reads at least one byte: of a header, of a file, or of the zeros between and behind them.
func (b *dirBlob) readSome(ctx context.Context, p []byte, off int64) (int, error) {
	i, found := slices.BinarySearchFunc(b.files, off, func(f dirFile, off int64) int { return cmp.Compare(f.header, off) })
	if !found {
		i-- // the one that begins before off
	}
	if i < 0 { // there is none
		return zeros(p, b.size-off), nil
	}
	f, end := &b.files[i], b.size
	if i+1 < len(b.files) {
		end = b.files[i+1].header
	}
	switch {
	case off < f.start:
		header, err := f.tarHeader()
		if err != nil {
			return 0, fmt.Errorf("read %q: %w: %w", b.name, err, ErrInvalid)
		}
		return copy(p, header[off-f.header:]), nil
	case off < f.start+f.size:
		p = p[:min(int64(len(p)), f.start+f.size-off)]
		return readInterruptibly(ctx, leastTime, p, func(buf []byte) (int, error) { return b.readFile(f, buf, off-f.start) })
	}
	return zeros(p, end-off), nil
}

func zeros(p []byte, n int64) int {
	p = p[:min(int64(len(p)), n)]
	clear(p)
	return len(p)
}

// readFile fills p. A directory may hold thousands of files: none stays open.
func (b *dirBlob) readFile(f *dirFile, p []byte, off int64) (int, error) {
	path := b.name + "/" + f.name
	file, err := b.root.Open(f.name)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("read %q: the file was removed meanwhile: %w", path, ErrChanged)
	}
	if err != nil {
		return 0, fileError("read", path, err)
	}
	defer file.Close()
	n, err := file.ReadAt(p, off)
	b.add(n)
	info, statErr := file.Stat()
	switch {
	case statErr != nil:
		return 0, fileError("read", path, statErr)
	case info.Size() != f.size || !info.ModTime().Equal(f.modified):
		return 0, fmt.Errorf("read %q: the file was written to or replaced meanwhile: %w", path, ErrChanged)
	case n < len(p):
		return 0, fileError("read", path, err)
	}
	return n, nil
}
