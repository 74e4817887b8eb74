package importer

import (
	"context"

	"github.com/tarlift/tarlift/internal/importer/disk"
)

type (
	// Disk is a file system that containerd writes to.
	Disk = disk.FileSystem
	// Inodes are a Disk's.
	Inodes = disk.Inodes
	// Reserve is how much of a Disk an import leaves free.
	Reserve = disk.Reserve
)

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
