package importer

import (
	"context"

	"github.com/tarlift/tarlift/internal/importer/disk"
	"github.com/tarlift/tarlift/internal/importer/unpack"
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
func (i *Importer) disks(ctx context.Context, snapshotter string) ([]*Disk, error) {
	if i.options.Reserve.None() {
		return nil, nil
	}
	o := disk.Options{Snapshotter: snapshotter, Reserve: i.options.Reserve, Root: i.options.ContainerdRoot}
	return disk.Find(ctx, i.client.IntrospectionService(), o)
}

// Disks says what a plan would need of the file systems that containerd writes to. It is empty where no reserve is kept.
func (i *Importer) Disks(ctx context.Context, p *Plan, req Request) ([]*Disk, error) {
	ctx = i.in(ctx)
	name, err := i.snapshotterFor(ctx, req)
	if err != nil {
		return nil, err
	}
	return i.plannedDisks(ctx, p, req, name, 0)
}

// plannedDisks are the disks with what a plan needs of them, when kept bytes of its blobs are there already.
func (i *Importer) plannedDisks(ctx context.Context, p *Plan, req Request, snapshotter string, kept int64) ([]*Disk, error) {
	all, err := i.disks(ctx, snapshotter)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	var unpacked int64
	if req.Unpack {
		if unpacked, err = unpack.Estimate(ctx, i.client.SnapshotService(snapshotter), p.RootFS); err != nil {
			return nil, err
		}
	}
	for _, d := range all {
		d.Plan(p.Bytes.Move-kept, unpacked)
	}
	return all, nil
}

// preflight refuses to begin what would not fit.
func (a *attempt) preflight(ctx context.Context, p *Plan) error {
	kept, err := a.kept(ctx, p)
	if err != nil {
		return err
	}
	all, err := a.importer.plannedDisks(ctx, p, a.req, a.snapshotter, kept)
	if err != nil {
		return err
	}
	return checkDisks(all)
}

func checkDisks(all []*Disk) error {
	for _, d := range all {
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
func (a *attempt) watchDisk(ctx context.Context) error {
	all, err := a.importer.disks(ctx, a.snapshotter)
	if err == nil && len(all) > 0 {
		a.watching.Go(func() {
			if err := disk.Watch(ctx, all, func() bool { return a.writing.Load() > 0 }); err != nil {
				a.cancel(err)
			}
		})
	}
	return err
}
