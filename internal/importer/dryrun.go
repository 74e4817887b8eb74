package importer

import (
	"context"
	"errors"
	"fmt"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/importer/ownership"
	"github.com/tarlift/tarlift/internal/importer/plan"
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
