package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// OpenFile opens a regular file for random access, or a named pipe as a stream. It waits for a pipe's writer until
// ctx ends.
func OpenFile(ctx context.Context, path string) (Blob, error) {
	if path == "" {
		return nil, fmt.Errorf("open file: the path is empty: %w", ErrInvalid)
	}
	f, err := openInterruptibly(ctx, forever, path, func() (*os.File, error) {
		info, err := os.Stat(path)
		if err == nil && info.Mode()&fs.ModeNamedPipe == 0 {
			err = requireRegular(info)
		}
		if err != nil {
			return nil, err
		}
		return os.Open(path) //nolint:gosec // the caller of the command line chooses the file
	})
	if err != nil {
		return nil, err
	}
	if f.info.Mode()&fs.ModeNamedPipe != 0 {
		return OpenStream(f.File, path), nil //nolint:contextcheck // a stream is read with another
	}
	return newFileBlob(ctx, f, f.info, path), nil
}

// openFile is a file with what is known of it.
type openFile struct {
	*os.File
	info fs.FileInfo
}

// openInterruptibly opens a file and asks what it is.
func openInterruptibly(ctx context.Context, limit time.Duration, name string, open func() (*os.File, error)) (openFile, error) {
	f, err := interruptible(ctx, limit, func() (f openFile, err error) {
		if f.File, err = open(); err != nil {
			return f, fileFault(err)
		}
		if f.info, err = f.Stat(); err != nil {
			f.Close() //nolint:gosec // only read from
			return f, fileFault(err)
		}
		return f, nil
	}, func(f openFile) { f.Close() }) //nolint:gosec // never read from
	if err != nil {
		return f, fmt.Errorf("open %q: %w", name, err)
	}
	return f, nil
}

// requireRegular refuses everything that is no regular file.
func requireRegular(info fs.FileInfo) error {
	if mode := info.Mode(); !mode.IsRegular() {
		return fmt.Errorf("it is a %s, not a regular file: %w", kindOf(mode), ErrInvalid)
	}
	return nil
}

// file is what a fileBlob needs of an os.File.
type file interface {
	io.ReaderAt
	io.Closer
	Stat() (fs.FileInfo, error)
}

// fileBlob is a regular file.
type fileBlob struct {
	blob
	f      file
	opened identity
	limit  time.Duration // of each read: leastTime but in tests
}

// newFileBlob gives the file a validator that stays the same when the file is copied with its times, or its file system is
// mounted again: FAT makes up inodes at each mount, and keeps no time of change.
func newFileBlob(ctx context.Context, f file, info fs.FileInfo, name string) *fileBlob {
	b := &fileBlob{f: f, opened: identify(info), limit: leastTime}
	read := func(p []byte, off int64) (int, error) { return b.readAt(b.ctx, p, off) }
	b.ahead = readAhead{most: filePage, size: func(_, least int64) int64 { return max(least, filePage) }, read: read}
	b.init(ctx, name, info.Size())
	b.validator = fmt.Sprintf("%d-%d", info.Size(), info.ModTime().UnixNano())
	return b
}

// closeTimeout bounds the wait for close(2), which asks a FUSE daemon too.
const closeTimeout = time.Second

func (b *fileBlob) Close() error {
	b.cancel()
	closed := make(chan error, 1)
	go func() { closed <- b.f.Close() }()
	select {
	case err := <-closed:
		return err
	case <-time.After(closeTimeout):
		return nil // it was only read from
	}
}

func (b *fileBlob) Section(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	return b.section(ctx, off, n, b.readAt)
}

func (b *fileBlob) readAt(ctx context.Context, p []byte, off int64) (n int, err error) {
	for n < len(p) && err == nil {
		k, at := 0, off+int64(n)
		k, err = readInterruptibly(ctx, b.limit, p[n:], func(buf []byte) (int, error) { return b.readChecked(buf, at) })
		b.read.Add(int64(k))
		n += k
	}
	if err == nil || err == io.EOF { //nolint:errorlint // readChecked returns it bare
		return n, err
	}
	return n, fmt.Errorf("read %q: %w", b.name, err)
}

// readChecked gives no byte that was read after the file had changed: that would be blamed on the archive, as a wrong
// digest or bad metadata. On the scale of reading a system call costs nothing.
func (b *fileBlob) readChecked(p []byte, off int64) (int, error) {
	n, err := b.f.ReadAt(p, off)
	if errors.Is(err, io.EOF) && off+int64(n) < b.size {
		return 0, fmt.Errorf("the file was cut short: %w", ErrChanged)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return n, fileFault(err)
	}
	info, statErr := b.f.Stat()
	if statErr != nil {
		return 0, fileFault(statErr)
	}
	if identify(info) != b.opened {
		return 0, fmt.Errorf("the file was written to, replaced or removed meanwhile: %w", ErrChanged)
	}
	return n, err
}

// identity tells an open file from what it was before.
type identity struct {
	size, modified, changed int64 // ctime too: mtime can be set back
}

// identify differs also when the last name of an open file is gone, because another was renamed over it or it was deleted.
func identify(info fs.FileInfo) identity {
	id := identity{size: info.Size(), modified: info.ModTime().UnixNano()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		id.changed = st.Ctim.Nano()
	}
	return id
}

// fileFault gives an error of the file system its meaning, if it has none yet.
func fileFault(err error) error {
	if errors.Is(err, ErrInvalid) || errors.Is(err, ErrNotFound) || errors.Is(err, ErrDenied) || errors.Is(err, ErrUnavailable) {
		return err
	}
	var errno syscall.Errno
	text, kind := "it cannot be read", ErrUnavailable
	if errors.As(err, &errno) {
		text = errno.Error()
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errno == syscall.ENOTDIR:
		text, kind = "no such file", ErrNotFound
	case errors.Is(err, fs.ErrPermission):
		kind = ErrDenied
	case errno == syscall.ELOOP, errno == syscall.ENAMETOOLONG, errno == syscall.EINVAL:
		kind = ErrInvalid
	}
	return fmt.Errorf("%s: %w", text, kind)
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

// OpenUnder opens the regular file path below the directory dir for random access. Neither ".." nor a
// symbolic link leads anywhere else, and nothing but regular files is opened: path may come from somebody
// who must not read other files of the node. A link that stays inside is not followed either, since what it
// leads to can change between a look at it and its use. File systems mounted below dir are part of it.
func OpenUnder(ctx context.Context, dir, path string) (Blob, error) {
	if !filepath.IsLocal(path) || strings.ContainsRune(path, 0) {
		return nil, fmt.Errorf("open %q: the path must lead to a file below the archive directory: %w", path, ErrInvalid)
	}
	f, err := openInterruptibly(ctx, leastTime, path, func() (*os.File, error) { return openBeneath(dir, path) })
	if err != nil {
		return nil, err
	}
	return newFileBlob(ctx, f, f.info, path), nil
}

// ChangedUnder tells whether OpenUnder would give other bytes than those of this validator.
func ChangedUnder(ctx context.Context, dir, path, validator string) (bool, error) {
	b, err := OpenUnder(ctx, dir, path)
	if err != nil {
		return false, err
	}
	defer b.Close()
	return b.Validator() != validator, nil
}

// openBeneath opens one name after the other, each in the directory before it, which stays open meanwhile: so it does not
// matter what is renamed. openat2 does the same in one call, but not on every kernel and with every seccomp profile.
func openBeneath(dir, path string) (*os.File, error) {
	at, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0) //nolint:gosec // the operator's own choice
	if err != nil {
		return nil, fmt.Errorf("archive directory %q: %w", dir, fileFault(err))
	}
	defer func() { at.Close() }() //nolint:gosec // only looked up in
	var info fs.FileInfo
	for name := range strings.SplitSeq(filepath.Clean(path), "/") {
		fd, err := 0, error(unix.EINTR) // a signal came between
		for errors.Is(err, unix.EINTR) {
			fd, err = unix.Openat(int(at.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		}
		if err != nil {
			return nil, err //nolint:wrapcheck // openInterruptibly gives it its meaning
		}
		at.Close() //nolint:gosec // only looked up in
		at = os.NewFile(uintptr(fd), name)
		if info, err = at.Stat(); err != nil {
			return nil, err //nolint:wrapcheck // the same
		}
		if info.Mode()&fs.ModeSymlink != 0 { // O_PATH opens the link itself
			return nil, fmt.Errorf("a symbolic link lies on the way, and links are not followed; mount or hard-link the file: %w", ErrInvalid)
		}
	}
	// O_PATH has not opened it yet, which may have effects on a device, and blocks on a pipe.
	if err := requireRegular(info); err != nil {
		return nil, err
	}
	// That file, whatever lies at its path by now.
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", at.Fd())) //nolint:wrapcheck // the same
}
