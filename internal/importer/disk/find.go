package disk

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/introspection"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/plugin"
	"golang.org/x/sys/unix"

	"github.com/tarlift/tarlift/internal/importer/daemon"
)

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
	roots := map[plugin.Type]string{}
	for _, p := range resp.GetPlugins() {
		roots[plugin.Type(p.GetType())] = p.GetExports()["root"]
	}
	blobs, layers := roots[plugins.ContentPlugin], roots[plugins.SnapshotPlugin]
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
