package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// OpenFile opens a regular file for random access, or a named pipe as a stream. It waits for a pipe's writer until
// ctx ends.
func OpenFile(ctx context.Context, path string) (Blob, error) {
	if path == "" {
		return nil, fmt.Errorf("open file: the path is empty: %w", ErrInvalid)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fileError("open", path, err)
	}
	switch mode := info.Mode(); {
	case mode.IsRegular(), mode&fs.ModeNamedPipe != 0:
	default:
		return nil, fmt.Errorf("open %q: it is a %s, not a regular file: %w", path, kindOf(mode), ErrInvalid)
	}
	f, err := openWaiting(ctx, path)
	if err != nil && ctx.Err() != nil {
		return nil, fmt.Errorf("open %q: %w", path, ctx.Err())
	}
	if err != nil {
		return nil, fileError("open", path, err)
	}
	if info.Mode()&fs.ModeNamedPipe != 0 {
		return OpenStream(f, path), nil
	}
	return newFileBlob(f, path)
}

// openWaiting opens in a goroutine of its own: opening a pipe without a writer cannot be interrupted, but whoever
// waits for it can.
func openWaiting(ctx context.Context, path string) (*os.File, error) {
	type result struct {
		f   *os.File
		err error
	}
	opened := make(chan result)
	go func() {
		f, err := os.Open(path) //nolint:gosec // the caller of the command line chooses the file
		select {
		case opened <- result{f, err}:
		case <-ctx.Done():
			if err == nil {
				f.Close() //nolint:gosec // never read from
			}
		}
	}()
	select {
	case res := <-opened:
		return res.f, res.err
	case <-ctx.Done():
		return nil, ctx.Err() //nolint:wrapcheck // the caller's own
	}
}

// fileBlob is a regular file.
type fileBlob struct {
	counter
	f         *os.File
	name      string
	size      int64
	validator string
}

func newFileBlob(f *os.File, name string) (Blob, error) {
	if err := requireRegular(f, name); err != nil {
		f.Close() //nolint:gosec // only read from
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close() //nolint:gosec // only read from
		return nil, fileError("open", name, err)
	}
	return &fileBlob{f: f, name: name, size: info.Size(), validator: fileValidator(info)}, nil
}

// fileValidator has the time of the last change beside that of the last modification, which can be set back. It
// also differs when the last name of an open file is gone, because another was renamed over it or it was deleted.
func fileValidator(info fs.FileInfo) string {
	var inode uint64
	var changed int64
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		inode, changed = st.Ino, st.Ctim.Nano()
	}
	return fmt.Sprintf("%d-%d-%d-%d", info.Size(), info.ModTime().UnixNano(), changed, inode)
}

func (b *fileBlob) RandomAccess() bool { return true }
func (b *fileBlob) Remote() bool       { return false }
func (b *fileBlob) Size() int64        { return b.size }
func (b *fileBlob) Validator() string  { return b.validator }
func (b *fileBlob) String() string     { return b.name }
func (b *fileBlob) Close() error       { return b.f.Close() } //nolint:wrapcheck // names the file itself

func (b *fileBlob) ReadAt(p []byte, off int64) (int, error) {
	n, err := b.f.ReadAt(p, off)
	b.add(n)
	if err == io.EOF && off+int64(n) < b.size {
		return 0, fmt.Errorf("read %q: the file was cut short: %w", b.name, ErrChanged)
	}
	if err != nil && err != io.EOF {
		return n, fileError("read", b.name, err)
	}
	if err := b.unchanged(); err != nil {
		return 0, err
	}
	return n, err //nolint:wrapcheck // io.EOF
}

// unchanged fails when the file is not as it was opened. What was rewritten would otherwise be blamed on the
// archive, as a wrong digest or bad metadata. It is asked after each read, so that no byte is given away which
// was read after the change: on the scale of reading a system call costs nothing.
func (b *fileBlob) unchanged() error {
	info, err := b.f.Stat()
	if err != nil {
		return fileError("read", b.name, err)
	}
	if fileValidator(info) != b.validator {
		return fmt.Errorf("read %q: the file was written to, replaced or removed meanwhile: %w", b.name, ErrChanged)
	}
	return nil
}

func (b *fileBlob) Section(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if off < 0 {
		return nil, fmt.Errorf("read %q: negative offset: %w", b.name, ErrInvalid)
	}
	n = sectionLength(b.size, off, n)
	return &fileSection{ctx: ctx, b: b, off: off, end: off + n}, nil
}

// sectionLength gives the length in bytes of a section that ends where the blob ends, at the latest.
func sectionLength(size, off, n int64) int64 {
	rest := max(size-off, 0)
	if n < 0 {
		return rest
	}
	return min(n, rest)
}

// fileSection reads [off, end) of a file.
type fileSection struct {
	ctx      context.Context
	b        *fileBlob
	off, end int64
}

func (s *fileSection) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err //nolint:wrapcheck // the caller's own
	}
	if s.off == s.end {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), s.end-s.off)]
	n, err := s.b.ReadAt(p, s.off)
	s.off += int64(n)
	if n > 0 && err == io.EOF { //nolint:errorlint // ReadAt returns it bare
		err = nil
	}
	return n, err
}

func (s *fileSection) Close() error { return nil }

// fileError gives an error of the file system its meaning.
func fileError(op, name string, err error) error {
	var errno syscall.Errno
	text, kind := "it cannot be read", ErrUnavailable
	switch hasErrno := errors.As(err, &errno); {
	case errors.Is(err, fs.ErrNotExist), errno == syscall.ENOTDIR:
		text, kind = "no such file", ErrNotFound
	case errors.Is(err, fs.ErrPermission):
		text, kind = "permission denied", ErrDenied
	case errno == syscall.ELOOP, errno == syscall.ENAMETOOLONG, errno == syscall.EINVAL:
		text, kind = errno.Error(), ErrInvalid
	case hasErrno:
		text, kind = errno.Error(), ErrUnavailable
	case errors.Is(err, fs.ErrClosed):
		text, kind = "it is closed", ErrUnavailable
	}
	return fmt.Errorf("%s %q: %s: %w", op, name, text, kind)
}

func kindOf(mode fs.FileMode) string {
	switch {
	case mode.IsDir():
		return "directory"
	case mode&fs.ModeNamedPipe != 0:
		return "named pipe"
	case mode&fs.ModeSocket != 0:
		return "socket"
	case mode&fs.ModeDevice != 0:
		return "device"
	}
	return "special file"
}
