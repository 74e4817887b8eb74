package importer

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"

	"github.com/tarlift/tarlift/internal/importer/disk"
)

// What Options and Disks are made of.
type (
	Disk    = disk.FileSystem
	Inodes  = disk.Inodes
	Reserve = disk.Reserve
)

// unpackFactor is how many times larger than its blob a compressed layer is estimated to be. Layers of distributions and
// language runtimes are 2.5 to 3.5 times as large as what gzip and zstd make of them. What the estimate misses, the watch
// finds.
const unpackFactor = 3

// disks finds the file systems that containerd writes to, none where no reserve is kept.
func (i *Importer) disks(ctx context.Context) ([]*Disk, error) {
	if i.reserve.None() {
		return nil, nil
	}
	snapshotter, err := i.snapshotterName(ctx)
	if err != nil {
		return nil, err
	}
	return disk.Find(ctx, i.client.IntrospectionService(), disk.Options{Snapshotter: snapshotter, Reserve: i.reserve, Root: i.containerdRoot})
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
		d.Plan(p.Bytes.Move, unpacked)
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
		d.Plan(p.Bytes.Move-kept, d.Unpacked)
		if err := d.Check(); err != nil {
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
	if err != nil {
		return func() {}, err
	}
	return disk.Watch(all, func() bool { return a.writing.Load() > 0 }, a.cancel), nil
}
