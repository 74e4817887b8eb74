package importer

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/tarlift/tarlift/internal/source"
)

// transfer makes sure that every blob of the plan is below the session's lease, several at a time. Metadata goes first, so
// that layers can be unpacked as they arrive; these follow in the order in which they are unpacked.
func (a *attempt) transfer(ctx context.Context, p *Plan) error {
	a.progress.update(false, func(now *Progress) { now.Total = p.Bytes.Total })
	a.progress.phase(PhaseTransferring)
	var atHand, members []PlannedBlob
	for _, b := range p.Blobs {
		if b.Extent.Member == "" || b.Present {
			atHand = append(atHand, b)
		} else {
			members = append(members, b)
		}
	}
	if err := a.ensureBlobs(ctx, atHand); err != nil {
		return err
	}
	a.startUnpack(p) //nolint:contextcheck // it has the attempt's
	return a.ensureBlobs(ctx, members)
}

func (a *attempt) ensureBlobs(ctx context.Context, blobs []PlannedBlob) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(a.importer.transfers(a.src))
	for _, b := range blobs {
		group.Go(func() error { return a.ensureBlob(ctx, b) })
	}
	return group.Wait() //nolint:wrapcheck // it names the blob
}

// ensureBlob writes a blob that the store lacks: from memory, or from its place in the archive. One that was present when the
// plan was made is only leased, or written if containerd has collected it since.
func (a *attempt) ensureBlob(ctx context.Context, b PlannedBlob) error {
	err := a.session.EnsureBlob(ctx, b.Descriptor, func(offset int64) (io.ReadCloser, error) {
		switch {
		case b.Extent.Data != nil:
			return io.NopCloser(bytes.NewReader(b.Extent.Data[offset:])), nil
		case b.Extent.Member != "":
			return a.src.Section(ctx, b.Extent.Offset+offset, b.Extent.Size-offset)
		}
		return nil, fmt.Errorf("it has left the content store, and is not in the archive: %w", ErrContentIncomplete)
	})
	if err != nil && b.Extent.Member != "" {
		err = fmt.Errorf("member %q: %w", b.Extent.Member, err)
	}
	if err != nil {
		return fmt.Errorf("blob %s: %w", b.Digest, err)
	}
	return nil
}

// verify checks every image the way the CRI will look at it: the best manifest for this platform, and nothing of it missing.
func (a *attempt) verify(ctx context.Context, p *Plan) error {
	a.progress.phase(PhaseVerifying)
	for _, img := range p.Images {
		missing, err := a.importer.check.Missing(ctx, img.Target)
		if err != nil {
			return err
		}
		if len(missing) > 0 {
			return fmt.Errorf("image %q lacks %s: %w", img.Name, missing[0].Digest, ErrContentIncomplete)
		}
	}
	return nil
}

// coresAndOne is how much containerd can do at a time, which computes on one core for each blob that is written and for
// each layer that is unpacked: what waits for the disk leaves its core to another. The cores are the machine's; a quota of
// this process's container is not the daemon's.
func coresAndOne() int { return runtime.NumCPU() + 1 }

const (
	// maxTransfers: each costs containerd and this process some MiB of buffers, and no gain was seen beyond.
	maxTransfers = 4
	// remoteTransfers are also connections, one for each blob. They share a link: with more of them, the first layers are
	// there later, and less is unpacked while the rest is on its way.
	remoteTransfers = 2
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
