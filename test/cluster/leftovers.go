package cluster

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	workDirPattern = "tarlift-ns-*"
	lockFile       = "lock"

	// Longer names would take the sockets below past the 108 bytes of sun_path.
	maxWorkDir = 64

	// The kernel frees the last cgroup and mount some ms after the last process.
	removeTimeout = 20 * time.Second
)

// workDir holds everything that is started in this namespace; "" outside.
var workDir string

// makeWorkDir makes the work directory. The lock tells [sweep] that it is in use.
func makeWorkDir() (dir string, lock *os.File, err error) {
	dir, err = os.MkdirTemp("", workDirPattern)
	if err != nil {
		return "", nil, fmt.Errorf("make work directory: %w", err)
	}
	if len(dir) > maxWorkDir {
		os.Remove(dir)
		return "", nil, fmt.Errorf("work directory %q is too long for the sockets in it: set TMPDIR to a shorter one", dir)
	}
	lock, err = os.Create(filepath.Join(dir, lockFile))
	if err == nil {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		return "", nil, fmt.Errorf("lock work directory: %w", err)
	}
	return dir, lock, nil
}

// sweep removes what processes left that were all killed at once.
func sweep() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), workDirPattern))
	for _, dir := range dirs {
		lock, err := os.Open(filepath.Join(dir, lockFile))
		if err != nil {
			continue
		}
		if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			fmt.Fprintf(os.Stderr, "cluster: removing %s, which a killed process left\n", dir)
			_ = removeLeftovers(dir)
		}
		lock.Close()
	}
}

// removeLeftovers removes what outlives a namespace. It may be called again.
func removeLeftovers(dir string) error {
	err := errors.Join(removeCgroup(filepath.Base(dir)), removeTree(dir))
	if err != nil {
		return fmt.Errorf("left behind: %w", err)
	}
	return nil
}

// removeTree removes dir, and never what is mounted in it.
func removeTree(dir string) error {
	return eventually(func() error {
		mounts, err := mountsBelow(dir)
		if err != nil {
			return err
		}
		if len(mounts) > 0 {
			return fmt.Errorf("%s is still mounted", mounts[0])
		}
		return os.RemoveAll(dir)
	})
}

// unmountBelow detaches every mount below dir.
func unmountBelow(dir string) error {
	mounts, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(mounts) { // the newest covers what was there before
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", m, err)
		}
	}
	return nil
}

// mountsBelow lists mount points below dir in the order of mounting.
func mountsBelow(dir string) ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// The four characters that proc(5) escapes in paths.
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var below []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		point := unescape.Replace(strings.Fields(lines.Text())[4])
		if strings.HasPrefix(point, dir+"/") {
			below = append(below, point)
		}
	}
	return below, lines.Err()
}

// eventually tries f until it succeeds, or gives its last error.
func eventually(f func() error) error {
	deadline := time.Now().Add(removeTimeout)
	for {
		err := f()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}
