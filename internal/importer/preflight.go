package importer

import (
	"context"
	"errors"
	"fmt"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/importer/disk"
	"github.com/tarlift/tarlift/internal/importer/ownership"
	"github.com/tarlift/tarlift/internal/importer/plan"
	"github.com/tarlift/tarlift/internal/importer/unpack"
)

// What an import of an archive would do here.
type (
	// Plan is which images it would import, and which blobs it would transfer.
	Plan = plan.Plan
	// PlannedImage is an image of a Plan.
	PlannedImage = plan.Image
	// PlannedBlob is a blob of a Plan.
	PlannedBlob = plan.Blob
	// PlannedBytes sums blobs of a Plan.
	PlannedBytes = plan.Bytes
)

// Plan decides what an import of an archive would do here, and changes nothing. Of the archive it reads metadata only.
func (i *Importer) Plan(ctx context.Context, a *Archive, req Request) (*Plan, error) {
	return plan.Make(i.in(ctx), a, plan.Request{
		Content: i.services.content, Platform: i.platform, Selection: req.Selection, Digest: req.Digest, IndexDigest: req.IndexDigest,
	})
}

// What an import would do to a name, name@digest references among them.
type (
	// PlannedName is a name with what would become of it.
	PlannedName = ownership.Change
	// NameChange says what would become of a name.
	NameChange = ownership.NameChange
)

// What may become of a name; an import would fail for a NameConflict.
const (
	NameNew      = ownership.NameNew
	NameKept     = ownership.NameKept
	NameMoved    = ownership.NameMoved
	NameConflict = ownership.NameConflict
)

// DryRun is what an import would do, as far as that is known without moving anything.
type DryRun struct {
	Plan        *Plan         `json:"plan,omitempty"`
	Snapshotter string        `json:"snapshotter,omitempty"` // that layers would be unpacked into
	Names       []PlannedName `json:"names,omitempty"`
	Disks       []*Disk       `json:"disks,omitempty"` // what it would need of them

	// Refusal is the error that an import would end with before it moves anything: a name or the disk is in its way.
	Refusal error `json:"-"`
}

// DryRun checks all that an import would check before it moves anything. The bytes of blobs are not read, so an
// import may fail all the same. Errors: those that an import would fail with so that there is no plan.
func (i *Importer) DryRun(ctx context.Context, a *Archive, req Request) (d DryRun, err error) {
	ctx = i.in(ctx)
	snapshotter, err := i.snapshotterFor(ctx, req)
	if err != nil {
		return d, err
	}
	if req.Unpack {
		d.Snapshotter = snapshotter
	}
	if req.Digest != "" && a.Digest != "" && req.Digest != a.Digest { // a stream's, which was read to its end
		return d, fmt.Errorf("the archive's digest is %s, not %s: %w", a.Digest, req.Digest, archive.ErrDigestMismatch)
	}
	if d.Plan, err = i.Plan(ctx, a, req); err != nil {
		return d, err
	}
	d.Names, err = i.ownership.Changes(ctx, claim(d.Plan, req, ownership.Import{Index: d.Plan.IndexDigest}))
	if errors.Is(err, ErrNameConflict) {
		d.Refusal = err
	} else if err != nil {
		return d, err
	}
	d.Disks, err = i.plannedDisks(ctx, d.Plan, req, snapshotter, 0)
	if d.Refusal == nil {
		d.Refusal = checkDisks(d.Disks)
	}
	return d, err
}

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

// Disks are the file systems that containerd writes to. It is empty where no reserve is kept.
func (i *Importer) Disks(ctx context.Context) ([]*Disk, error) {
	ctx = i.in(ctx)
	name, err := i.snapshotterFor(ctx, Request{})
	if err != nil {
		return nil, err
	}
	return i.disks(ctx, name)
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
