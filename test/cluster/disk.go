package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Disk is a file system that can lose its power: what was not written out by then is lost. The cache of a disk, which
// can be lost as well, is not part of this: file systems flush it whenever they sync.
//
// The loop device is freed with the last mount, even if that goes with the namespace.
type Disk struct {
	Dir   string // where it is mounted
	image string
}

// DiskSize in bytes is room for some images.
const DiskSize = 512 << 20

// NewDisk makes a file system of this many bytes in dir, and mounts it there.
func NewDisk(ctx context.Context, dir string, size int64) (*Disk, error) {
	d := &Disk{Dir: filepath.Join(dir, "mounted"), image: filepath.Join(dir, "image")}
	if err := os.Mkdir(d.Dir, 0o755); err != nil {
		return nil, err
	}
	image, err := os.Create(d.image)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(image.Truncate(size), image.Close()); err != nil {
		return nil, err
	}
	if err := runTool(ctx, "mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", d.image); err != nil {
		return nil, err
	}
	return d, d.Mount(ctx)
}

// Mount mounts the file system, which replays its journal. That is not written out by age within a test, so that only
// what somebody syncs survives.
func (d *Disk) Mount(ctx context.Context) error {
	return runTool(ctx, "mount", "-t", "ext4", "-o", "loop,commit=3600", d.image, d.Dir)
}

// CutPower shuts the file system down without writing anything: EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH, of
// the kernel's fs/ext4/ext4.h. From now on everything in it fails.
func (d *Disk) CutPower() error {
	const shutdown, noLogFlush = 0x8004587d, 2
	root, err := os.Open(d.Dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := unix.IoctlSetPointerInt(int(root.Fd()), shutdown, noLogFlush); err != nil {
		return fmt.Errorf("cut the power of %s: %w", d.Dir, err)
	}
	return nil
}

// Unmount takes the file system away, and what a daemon that was killed left mounted in it. Nobody may use it any more.
func (d *Disk) Unmount() error {
	if err := unmountBelow(d.Dir); err != nil {
		return err
	}
	if err := unix.Unmount(d.Dir, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", d.Dir, err)
	}
	return nil
}

func runTool(ctx context.Context, name string, args ...string) error {
	path, err := systemTool(name)
	if err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, path, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}
