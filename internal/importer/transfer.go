package importer

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/importer/transfer"
	"github.com/tarlift/tarlift/internal/source"
)

// transfer makes sure that every blob of the plan is below the session's lease, several at a time. Metadata goes first, so
// that layers can be unpacked as they arrive; these follow in the order in which they are unpacked.
func (a *attempt) transfer(ctx context.Context, p *Plan) error {
	a.progress.total(p.Bytes.Total)
	a.progress.phase(PhaseTransferring)
	var inline, members []PlannedBlob
	for _, b := range p.Blobs {
		if b.Extent.Member == "" || b.Present {
			inline = append(inline, b)
		} else {
			members = append(members, b)
		}
	}
	workers := a.importer.transfers(a.src)
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(workers)
	for _, b := range inline {
		group.Go(func() error { return a.writeInline(groupCtx, b) })
	}
	if err := group.Wait(); err != nil {
		return err //nolint:wrapcheck // it names the blob
	}
	a.startUnpack(p)
	extents := make([]archive.Extent, len(members))
	for k, b := range members {
		extents[k] = b.Extent
	}
	return transfer.Each(ctx, a.src, workers, extents, func(ctx context.Context, run *transfer.Run) error {
		for _, k := range run.Blobs {
			b := members[k]
			err := a.session.EnsureBlob(ctx, b.Descriptor, func(offset int64) (io.ReadCloser, error) { return run.Open(ctx, k, offset) })
			if err != nil {
				return fmt.Errorf("blob %s: member %q: %w", b.Digest, b.Extent.Member, err)
			}
		}
		return nil
	})
}

// coresAndOne is how much containerd can do at a time, which computes on one core for each blob that is written and for
// each layer that is unpacked: what waits for the disk leaves its core to another. The cores are the machine's; a quota of
// this process's container is not the daemon's.
func coresAndOne() int { return runtime.NumCPU() + 1 }

const (
	// maxTransfers: each costs containerd and this process some MiB of buffers, and no gain was seen beyond.
	maxTransfers = 4
	// remoteTransfers are also connections: enough to fill a link that bounds each of them, too few to be a burden.
	remoteTransfers = 4
)

// transfers is how many blobs are moved at a time.
func (i *Importer) transfers(src source.Blob) int {
	switch {
	case i.options.Concurrency > 0:
		return int(i.options.Concurrency)
	case src.Remote():
		return remoteTransfers
	}
	return min(coresAndOne(), maxTransfers)
}

// writeInline writes a blob whose bytes are at hand. One that was present when the plan was made is only leased, or read from
// the archive if containerd has collected it since.
func (a *attempt) writeInline(ctx context.Context, b PlannedBlob) error {
	err := a.session.EnsureBlob(ctx, b.Descriptor, func(offset int64) (io.ReadCloser, error) {
		switch {
		case b.Extent.Data != nil:
			return io.NopCloser(bytes.NewReader(b.Extent.Data[offset:])), nil
		case b.Extent.Member != "":
			return a.src.Section(ctx, b.Extent.Offset+offset, b.Extent.Size-offset)
		}
		return nil, fmt.Errorf("it has left the content store, and is not in the archive: %w", ErrContentIncomplete)
	})
	if err != nil {
		return fmt.Errorf("blob %s: %w", b.Digest, err)
	}
	return nil
}
