package source

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

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
	if err := requireRegular(f.info); err != nil { // a pipe has taken the file's place
		f.Close() //nolint:gosec // never read from
		return nil, fmt.Errorf("open %q: %w", path, err)
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

// openBeneath asks what lies at path before it opens it: opening a device may have effects.
func openBeneath(dir, path string) (*os.File, error) {
	root, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0) //nolint:gosec // the operator's own choice
	if err != nil {
		return nil, fmt.Errorf("archive directory %q: %w", dir, fileFault(err))
	}
	defer root.Close()
	seen, err := walkBeneath(root, path, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer seen.Close()
	info, err := seen.Stat()
	if err != nil {
		return nil, fileFault(err)
	}
	if err := requireRegular(info); err != nil {
		return nil, err
	}
	// Without O_NONBLOCK a pipe that has taken the file's place since then would block for ever.
	return walkBeneath(root, path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
}

// walkBeneath opens one name after the other, each in the directory before it, which stays open meanwhile: so it does
// not matter what is renamed. openat2 does the same in one call, but not on every kernel and with every seccomp profile.
func walkBeneath(root *os.File, path string, flags int) (*os.File, error) {
	names := strings.Split(filepath.Clean(path), "/")
	dir := root
	for i, name := range names {
		how, through := unix.O_PATH, i < len(names)-1
		if !through {
			how = flags
		}
		next, err := openStep(dir, name, how, through)
		if dir != root {
			dir.Close() //nolint:gosec // only looked up in
		}
		if errors.Is(err, unix.ELOOP) {
			return nil, fmt.Errorf("a symbolic link lies on the way, and links are not followed; mount or hard-link the file: %w", ErrInvalid)
		}
		if err != nil {
			return nil, fileFault(err)
		}
		dir = next
	}
	return dir, nil
}

// openStep opens one name in a directory, which must be a directory itself if the way leads through it.
func openStep(dir *os.File, name string, flags int, through bool) (*os.File, error) {
	fd, err := 0, error(unix.EINTR) // a signal came between
	for errors.Is(err, unix.EINTR) {
		fd, err = unix.Openat(int(dir.Fd()), name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	info, err := f.Stat()
	switch {
	case err != nil:
	case info.Mode()&fs.ModeSymlink != 0: // O_PATH opens the link itself
		err = unix.ELOOP
	case through && !info.IsDir():
		err = unix.ENOTDIR
	}
	if err != nil {
		f.Close() //nolint:gosec // not used
		return nil, err
	}
	return f, nil
}
