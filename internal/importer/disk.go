package importer

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/dustin/go-humanize"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"golang.org/x/sys/unix"
)

const (
	// reservedInodes in percent is the kubelet's default for imagefs.inodesFree.
	reservedInodes = 5

	// unpackFactor is how many times larger than its blob a compressed layer is estimated to be. Layers of distributions and
	// language runtimes are 2.5 to 3.5 times as large as what gzip and zstd make of them. What the estimate misses, the watch
	// finds.
	unpackFactor = 3
	// bytesPerInode of what is unpacked: the files and directories of a Debian /usr have 34 KiB each.
	bytesPerInode = 32 << 10

	// diskInterval is how often free space is looked at while something is written: at 1 GiB/s, once in 20 MiB, which is
	// little beside any reserve. A look takes microseconds.
	diskInterval = 20 * time.Millisecond
)

// Disk is a file system that containerd writes to, and what an import would do to it. All but Inodes are bytes.
type Disk struct {
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

	seenAt   string // where this process sees it
	contents bool   // blobs go there
	layers   bool   // and unpacked layers
}

// Inodes of a file system, all 0 where it has no fixed number of them.
type Inodes struct {
	Free    int64 `json:"free"`
	Total   int64 `json:"total"`
	Reserve int64 `json:"reserve"`
	Needed  int64 `json:"needed"` // estimated
}

// disks finds the file systems that containerd's content store and its snapshotter lie on.
func (i *Importer) disks(ctx context.Context) ([]*Disk, error) {
	if i.reserve.none() {
		return nil, nil
	}
	snapshotter, err := i.snapshotterName(ctx)
	if err != nil {
		return nil, err
	}
	roots, err := i.askRoots(ctx, snapshotter)
	if err != nil {
		return nil, err
	}
	var all []*Disk
	for _, r := range roots {
		d := &Disk{Roots: []string{r.path}, contents: !r.snapshotter, layers: r.snapshotter}
		switch d.seenAt = i.visible(r, roots); {
		case r.path == "":
			d.Roots, d.Unknown = nil, "containerd does not say where "+r.name+" lies"
		case d.seenAt == "":
			d.Unknown = r.path + " is not visible here"
		}
		same := slices.IndexFunc(all, func(o *Disk) bool { return o.seenAt != "" && sameFileSystem(o.seenAt, d.seenAt) })
		if same >= 0 {
			all[same].Roots, all[same].layers = append(all[same].Roots, r.path), true
			continue
		}
		all = append(all, d)
	}
	for _, d := range all {
		if err := d.look(i.reserve); err != nil {
			d.Unknown = err.Error()
		}
	}
	return all, nil
}

// root is a directory that a plugin of containerd writes to; path is empty if it does not say.
type root struct {
	name, path  string
	snapshotter bool
}

// askContainerd for its roots: the content store's first. Both are plugins' exports under the name "root".
func (i *Importer) askContainerd(ctx context.Context, snapshotter string) ([]root, error) {
	resp, err := i.client.IntrospectionService().Plugins(ctx,
		fmt.Sprintf("type==%s", plugins.ContentPlugin), fmt.Sprintf("type==%s,id==%s", plugins.SnapshotPlugin, snapshotter))
	if err != nil {
		return nil, runtimeError("ask for containerd's directories", err)
	}
	roots := []root{{name: "the content store"}, {name: "snapshotter " + snapshotter, snapshotter: true}}
	for _, p := range resp.GetPlugins() {
		k := 0
		if p.GetType() == string(plugins.SnapshotPlugin) {
			k = 1
		}
		roots[k].path = p.GetExports()["root"]
	}
	return roots, nil
}

// visible is a path of this process on the file system of r: r itself, what the user says, or the root of this
// process's container, which containerd's overlayfs has unpacked there. It is empty if there is none.
func (i *Importer) visible(r root, roots []root) string {
	if r.path == "" {
		return ""
	}
	if i.containerdRoot != "" {
		return i.containerdRoot
	}
	if info, err := os.Stat(r.path); err == nil && info.IsDir() {
		return r.path
	}
	upper := overlayUpper("/proc/self/mountinfo")
	for _, o := range roots {
		if o.snapshotter && o.path != "" && strings.HasPrefix(upper, o.path+"/") && filepath.Dir(o.path) == filepath.Dir(r.path) {
			return "/"
		}
	}
	return ""
}

// overlayUpper is the directory that an overlay at "/" writes to, as the one who mounted it named it; empty if there is
// none. The format is that of proc_pid_mountinfo(5).
func overlayUpper(mountinfo string) string {
	f, err := os.Open(mountinfo) //nolint:gosec // a file of procfs
	if err != nil {
		return ""
	}
	defer f.Close()
	upper := ""
	for lines := bufio.NewScanner(f); lines.Scan(); {
		mount, rest, _ := strings.Cut(lines.Text(), " - ")
		fields, super := strings.Fields(mount), strings.Fields(rest)
		if len(fields) < 5 || fields[4] != "/" || len(super) < 3 || super[0] != "overlay" {
			continue
		}
		for option := range strings.SplitSeq(super[2], ",") {
			if dir, ok := strings.CutPrefix(option, "upperdir="); ok {
				upper = dir
			}
		}
	}
	return upper
}

func sameFileSystem(a, b string) bool {
	var x, y unix.Statfs_t
	return a == b || b != "" && unix.Statfs(a, &x) == nil && unix.Statfs(b, &y) == nil && x.Fsid == y.Fsid && x.Blocks == y.Blocks
}

// look takes down how much is free. Blocks that are reserved for root do not count, as with the kubelet.
func (d *Disk) look(r Reserve) error {
	if d.Unknown != "" {
		return nil
	}
	var s unix.Statfs_t
	if err := unix.Statfs(d.seenAt, &s); err != nil {
		return fmt.Errorf("look at the file system of %s: %w", d.seenAt, err)
	}
	d.Free, d.Total = int64(s.Bavail)*s.Bsize, int64(s.Blocks)*s.Bsize //nolint:gosec // no file system has 2^63 bytes
	d.Reserve = r.of(d.Total)
	d.Inodes.Free, d.Inodes.Total = int64(s.Ffree), int64(s.Files) //nolint:gosec // nor that many inodes
	d.Inodes.Reserve = d.Inodes.Total * reservedInodes / 100
	return nil
}

// room says that a disk has too little of it for what is still to be written, keeping the reserve.
func (d *Disk) room() error {
	if d.Unknown != "" {
		return nil
	}
	size := func(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }
	if d.Free-d.Blobs-d.Unpacked < d.Reserve {
		needs := "what is being written"
		if d.Blobs+d.Unpacked > 0 {
			needs = fmt.Sprintf("%s of blobs and about %s of unpacked files", size(d.Blobs), size(d.Unpacked))
		}
		return fmt.Errorf("containerd's file system (%s) has %s free of %s, of which %s are to stay so: no room for %s: %w",
			d.Roots[0], size(d.Free), size(d.Total), size(d.Reserve), needs, ErrInsufficientDisk)
	}
	if d.Inodes.Total > 0 && d.Inodes.Free-d.Inodes.Needed < d.Inodes.Reserve {
		return fmt.Errorf("containerd's file system (%s) has %d inodes free of %d, of which %d are to stay so: no room for about %d files: %w",
			d.Roots[0], d.Inodes.Free, d.Inodes.Total, d.Inodes.Reserve, d.Inodes.Needed, ErrInsufficientDisk)
	}
	return nil
}

// Disks says what a plan would need of the file systems that containerd writes to. It is empty where no reserve is kept.
func (i *Importer) Disks(ctx context.Context, p *Plan, req Request) ([]*Disk, error) {
	ctx = i.in(ctx)
	all, err := i.disks(ctx)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	var unpacked int64
	if req.Unpack {
		if unpacked, err = i.toUnpack(ctx, p); err != nil {
			return nil, err
		}
	}
	for _, d := range all {
		if d.contents {
			d.Blobs = p.Bytes.Move
		}
		if d.layers {
			d.Unpacked, d.Inodes.Needed = unpacked, unpacked/bytesPerInode
		}
	}
	return all, nil
}

// toUnpack estimates the size of the layers that have no snapshot, in bytes.
func (i *Importer) toUnpack(ctx context.Context, p *Plan) (int64, error) {
	name, err := i.snapshotterName(ctx)
	if err != nil {
		return 0, err
	}
	sum, counted := int64(0), map[digest.Digest]bool{}
	for _, fs := range p.rootfs {
		chain := identity.ChainIDs(slices.Clone(fs.diffIDs))
		for k, id := range slices.Backward(chain) {
			if counted[id] {
				break
			}
			_, err := i.client.SnapshotService(name).Stat(ctx, id.String())
			if err == nil {
				break
			}
			if !errdefs.IsNotFound(err) {
				return 0, runtimeError(fmt.Sprintf("snapshotter %q", name), err)
			}
			counted[id] = true
			size := fs.layers[k].Size
			if fs.layers[k].Digest.Encoded() != fs.diffIDs[k].Encoded() { // else it is not compressed
				size *= unpackFactor
			}
			sum += size
		}
	}
	return sum, nil
}

// preflight refuses to begin what would not fit.
func (a *attempt) preflight(ctx context.Context, p *Plan) error {
	all, err := a.importer.Disks(ctx, p, a.req)
	if err != nil {
		return err
	}
	kept, err := a.kept(ctx, p)
	if err != nil {
		return err
	}
	for _, d := range all {
		if d.contents {
			d.Blobs -= kept
		}
		if d.Blobs+d.Unpacked == 0 {
			continue // nothing is written there
		}
		if err := d.room(); err != nil {
			return err
		}
	}
	return nil
}

// kept is how many bytes of blobs to be written an earlier attempt has left in ingests: they take no more room.
func (a *attempt) kept(ctx context.Context, p *Plan) (int64, error) {
	partial, err := a.session.Partial(ctx)
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, b := range p.Blobs {
		if !b.Present {
			sum += min(partial[b.Digest], b.Size)
		}
	}
	return sum, nil
}

// watchDisk ends the import when what is left free of a file system falls below the reserve while something is written.
// The function that it returns ends the watch.
func (a *attempt) watchDisk(ctx context.Context) (stop func(), err error) {
	all, err := a.importer.disks(ctx)
	if err != nil || len(all) == 0 {
		return func() {}, err
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(diskInterval)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			if a.writing.Load() == 0 {
				continue
			}
			for _, d := range all {
				if d.look(a.importer.reserve) != nil {
					continue
				}
				if err := d.room(); err != nil {
					a.cancel(err)
					return
				}
			}
		}
	}()
	return func() { close(done); <-ended }, nil
}
