package source

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// OpenUnder opens the regular file path below the directory dir for random access. Neither ".." nor a
// symbolic link leads anywhere else, and nothing but regular files is opened: path may come from somebody
// who must not read other files of the node. A link that stays inside is not followed either, since what it
// leads to can change between a look at it and its use. File systems mounted below dir are part of it.
func OpenUnder(dir, path string) (Blob, error) {
	if !filepath.IsLocal(path) || strings.ContainsRune(path, 0) {
		return nil, fmt.Errorf("open %q: the path must lead to a file below the archive directory: %w", path, ErrInvalid)
	}
	root, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0) //nolint:gosec // the operator's own choice
	if err != nil {
		return nil, fileError("open archive directory", dir, err)
	}
	defer root.Close()

	// Only to look at it: opening a device may have effects.
	seen, err := openBeneath(root, path, unix.O_PATH)
	if err != nil {
		return nil, beneathError(path, err)
	}
	defer seen.Close()
	if err := requireRegular(seen, path); err != nil {
		return nil, err
	}
	// Without O_NONBLOCK a pipe that has taken the file's place since then would block for ever.
	f, err := openBeneath(root, path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return nil, beneathError(path, err)
	}
	return newFileBlob(f, path)
}

// ChangedUnder tells whether OpenUnder would give other bytes than those of this validator.
func ChangedUnder(dir, path, validator string) (bool, error) {
	b, err := OpenUnder(dir, path)
	if err != nil {
		return false, err
	}
	defer b.Close()
	return b.Validator() != validator, nil
}

// openBeneath opens what lies at path, without "..", below root, and passes no symbolic link on the way.
func openBeneath(root *os.File, path string, flags int) (*os.File, error) {
	path = filepath.Clean(path)
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC), //nolint:gosec // flags are positive
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	}
	fd, err := uninterrupted(func() (int, error) { return unix.Openat2(int(root.Fd()), path, &how) })
	// A kernel before 5.6 does not have the call, and a seccomp profile that does not know it refuses it.
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		fd, err = walkBeneath(int(root.Fd()), path, flags)
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// walkBeneath does the same by single steps. A directory is held open while the next name is looked up in it,
// so it does not matter what is renamed meanwhile.
func walkBeneath(root int, path string, flags int) (int, error) {
	names := strings.Split(path, "/")
	dir := root
	for i, name := range names {
		how, through := unix.O_PATH, i < len(names)-1
		if !through {
			how = flags
		}
		next, err := openStep(dir, name, how, through)
		if dir != root {
			unix.Close(dir) //nolint:gosec // only looked up in
		}
		if err != nil {
			return -1, err
		}
		dir = next
	}
	return dir, nil
}

// openStep opens one name in a directory, which must be a directory itself if the way leads through it.
func openStep(dir int, name string, flags int, through bool) (int, error) {
	fd, err := uninterrupted(func() (int, error) {
		return unix.Openat(dir, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	switch kind := st.Mode & unix.S_IFMT; {
	case err != nil:
	case kind == unix.S_IFLNK: // O_PATH opens the link itself
		err = unix.ELOOP
	case through && kind != unix.S_IFDIR:
		err = unix.ENOTDIR
	}
	if err != nil {
		unix.Close(fd) //nolint:gosec // not used
		return -1, err
	}
	return fd, nil
}

// uninterrupted opens again when a signal came between.
func uninterrupted(open func() (int, error)) (int, error) {
	for {
		if fd, err := open(); !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

func beneathError(path string, err error) error {
	switch {
	case errors.Is(err, unix.ELOOP):
		return fmt.Errorf("open %q: a symbolic link lies on the way, and links are not followed; mount or hard-link the file: %w",
			path, ErrInvalid)
	case errors.Is(err, unix.EXDEV):
		return fmt.Errorf("open %q: the path leads out of the archive directory: %w", path, ErrInvalid)
	}
	return fileError("open", path, err)
}

// requireRegular refuses everything that is no regular file.
func requireRegular(f *os.File, name string) error {
	info, err := f.Stat()
	if err != nil {
		return fileError("open", name, err)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("open %q: it is a %s, not a regular file: %w", name, kindOf(info.Mode()), ErrInvalid)
	}
	return nil
}
