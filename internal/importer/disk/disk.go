// Package disk keeps room on the file systems that containerd writes to: it finds them, says whether what is planned
// fits, and watches them while something is written.
//
//	all, err := disk.Find(ctx, client.IntrospectionService(), disk.Options{Snapshotter: "overlayfs"})
//	for _, f := range all {
//		f.Plan(blobs, unpacked)
//		err := f.Check() // errors.Is(err, daemon.ErrNoSpace)
//	}
package disk

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/introspection"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"github.com/tarlift/tarlift/internal/importer/daemon"
)

const (
	// reservedInodes in percent is the kubelet's default for imagefs.inodesFree.
	reservedInodes = 5

	// bytesPerInode of what is unpacked: the files and directories of a Debian /usr have 34 KiB each.
	bytesPerInode = 32 << 10

	// watchInterval is how often free space is measured while something is written: at 1 GiB/s, once in 20 MiB, which is
	// little beside any reserve. It takes microseconds.
	watchInterval = 20 * time.Millisecond
)

// FileSystem is one that containerd writes to, and what an import needs of it. All but Inodes are bytes.
type FileSystem struct {
	// Roots are containerd's directories on it, as containerd names them.
	Roots []string `json:"roots"`
	// Unknown says why the rest is not known; empty if it is.
	Unknown  string `json:"unknown,omitempty"`
	Free     int64  `json:"free"`
	Total    int64  `json:"total"`
	Reserve  int64  `json:"reserve"`
	Blobs    int64  `json:"blobs"`    // to be written to the content store
	Unpacked int64  `json:"unpacked"` // to be written to the snapshotter, estimated
	Inodes   Inodes `json:"inodes"`

	path    string // of this process, on it
	reserve Reserve
	blobs   bool // blobs go there
	layers  bool // and unpacked layers
}

// Inodes of a file system, all 0 where it has no fixed number of them.
type Inodes struct {
	Free    int64 `json:"free"`
	Total   int64 `json:"total"`
	Reserve int64 `json:"reserve"`
	Needed  int64 `json:"needed"` // estimated
}

// Options say which file systems to find.
type Options struct {
	// Snapshotter that layers are unpacked into.
	Snapshotter string
	// Reserve is how much stays free of each file system.
	Reserve Reserve
	// Root is a directory on the file system of containerd's root, for where that cannot be seen under the path that
	// containerd reports. Empty: found out.
	Root string
}

// Find returns the file systems of containerd's content store and of its snapshotter: one if they share it, else the
// content store's first. One that this process does not see is returned with the reason, and passes every check.
func Find(ctx context.Context, containerd introspection.Service, o Options) ([]*FileSystem, error) {
	resp, err := containerd.Plugins(ctx,
		fmt.Sprintf("type==%s", plugins.ContentPlugin), fmt.Sprintf("type==%s,id==%s", plugins.SnapshotPlugin, o.Snapshotter))
	if err != nil {
		return nil, daemon.Error("ask for containerd's directories", err)
	}
	roots := map[string]string{}
	for _, p := range resp.GetPlugins() {
		roots[p.GetType()] = p.GetExports()["root"]
	}
	blobs, layers := roots[plugins.ContentPlugin.String()], roots[plugins.SnapshotPlugin.String()]
	first, second := o.fileSystem("the content store", blobs, layers), o.fileSystem("snapshotter "+o.Snapshotter, layers, layers)
	first.blobs, second.layers = true, true
	if sameFileSystem(first.path, second.path) {
		first.Roots, first.layers = append(first.Roots, layers), true
		return []*FileSystem{first}, nil
	}
	return []*FileSystem{first, second}, nil
}

// fileSystem is the one that a plugin's root lies on; layers is the snapshotter's root.
func (o Options) fileSystem(name, root, layers string) *FileSystem {
	if root == "" {
		return &FileSystem{Unknown: "containerd does not say where " + name + " lies"}
	}
	f := &FileSystem{Roots: []string{root}, path: o.visible(root, layers), reserve: o.Reserve}
	if f.path == "" {
		f.Unknown = root + " is not visible here"
	} else if err := f.measure(); err != nil {
		f.Unknown = err.Error()
	}
	return f
}

// visible is a path of this process on the file system of root, empty if there is none: what the user says, root itself,
// or the root of this process's container, which containerd's overlayfs has unpacked there.
func (o Options) visible(root, layers string) string {
	// Before containerd 2.3 a content store makes its directory for the first blob. The metadata store beside it, which is
	// there since containerd's first start, tells that this is containerd's root and not what a container has in its place.
	parent := filepath.Dir(root)
	switch {
	case o.Root != "":
		return o.Root
	case isDir(root):
		return root
	case isDir(filepath.Join(parent, plugins.MetadataPlugin.String()+".bolt")):
		return parent
	case layers == "" || filepath.Dir(layers) != parent:
		return ""
	}
	if m, err := mount.Lookup("/"); err == nil && m.FSType == "overlay" && isContainersRoot(m.VFSOptions, layers) {
		return "/"
	}
	return ""
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// isContainersRoot says whether a mount with these options, as whoever mounted it names directories, is the root of a container
// whose files lie below a snapshotter's root.
func isContainersRoot(options, layers string) bool {
	return slices.ContainsFunc(strings.Split(options, ","), func(o string) bool { return strings.HasPrefix(o, "upperdir="+layers+"/") })
}

// sameFileSystem says whether two paths of this process lie on the same file system.
func sameFileSystem(a, b string) bool {
	if a == "" || b == "" {
		return false
	}
	var x, y unix.Statfs_t
	return a == b || unix.Statfs(a, &x) == nil && unix.Statfs(b, &y) == nil && x.Fsid == y.Fsid && x.Blocks == y.Blocks
}

// measure takes down how much is free. Blocks that are reserved for root do not count, as with the kubelet.
func (f *FileSystem) measure() error {
	var s unix.Statfs_t
	if err := unix.Statfs(f.path, &s); err != nil {
		return fmt.Errorf("look at the file system of %s: %w", f.path, err)
	}
	f.Free, f.Total = int64(s.Bavail)*s.Bsize, int64(s.Blocks)*s.Bsize //nolint:gosec // no file system has 2^63 bytes
	f.Reserve = f.reserve.bytesOf(f.Total)
	f.Inodes.Free, f.Inodes.Total = int64(s.Ffree), int64(s.Files) //nolint:gosec // nor that many inodes
	f.Inodes.Reserve = f.Inodes.Total * reservedInodes / 100
	return nil
}

// Plan notes how many bytes an import will write: of blobs, if the content store lies there, and of unpacked layers, if
// the snapshotter does.
func (f *FileSystem) Plan(blobs, unpacked int64) {
	if f.blobs {
		f.Blobs = blobs
	}
	if f.layers {
		f.Unpacked, f.Inodes.Needed = unpacked, unpacked/bytesPerInode
	}
}

// Check returns daemon.ErrNoSpace when what is planned does not fit beside the reserve. Where nothing is planned, or
// the file system is not known, it returns nil.
func (f *FileSystem) Check() error {
	if f.Blobs+f.Unpacked == 0 {
		return nil
	}
	return f.room(fmt.Sprintf("%s of blobs and about %s of unpacked files", size(f.Blobs), size(f.Unpacked)))
}

// room returns daemon.ErrNoSpace when what is planned, in words, does not fit beside the reserve.
func (f *FileSystem) room(planned string) error {
	if f.Unknown != "" {
		return nil
	}
	if f.Free-f.Blobs-f.Unpacked < f.Reserve {
		return fmt.Errorf("containerd's file system (%s) has %s free of %s, of which %s must stay free: no room for %s: %w",
			f.Roots[0], size(f.Free), size(f.Total), size(f.Reserve), planned, daemon.ErrNoSpace)
	}
	if f.Inodes.Total > 0 && f.Inodes.Free-f.Inodes.Needed < f.Inodes.Reserve {
		return fmt.Errorf("containerd's file system (%s) has %d inodes free of %d, of which %d must stay free: no room for about %d files: %w",
			f.Roots[0], f.Inodes.Free, f.Inodes.Total, f.Inodes.Reserve, f.Inodes.Needed, daemon.ErrNoSpace)
	}
	return nil
}

func size(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

// Watch returns daemon.ErrNoSpace when less than the reserve is left of one of the file systems while something is written,
// and nil when ctx ends. Nothing is planned on them: what is written shows in what is free.
func Watch(ctx context.Context, all []*FileSystem, writing func() bool) error {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if !writing() {
			continue
		}
		for _, f := range all {
			if f.Unknown != "" || f.measure() != nil {
				continue
			}
			if err := f.room("what is being written"); err != nil {
				return err
			}
		}
	}
}
