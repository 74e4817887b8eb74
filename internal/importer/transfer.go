package importer

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"runtime"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/tarlift/tarlift/internal/source"
)

// transfer makes sure that every blob of the plan is below the session's lease, several at a time. Metadata goes first, so
// that layers can be unpacked as they arrive; these follow in the order in which they are unpacked.
func (a *attempt) transfer(ctx context.Context, p *Plan) error {
	a.progress.total(p.Bytes.Total)
	a.progress.phase(PhaseTransferring)
	var inline, members []PlannedBlob
	for _, b := range p.Blobs {
		if b.extent.Member == "" || b.Present {
			inline = append(inline, b)
		} else {
			members = append(members, b)
		}
	}
	workers := a.importer.transfers(a.src)
	if err := atOnce(ctx, workers, inline, a.writeInline); err != nil {
		return err
	}
	a.startUnpack(p)
	if a.src.Remote() {
		return newFetcher(a.src, workers).each(ctx, runs(members), a.writeRange)
	}
	return atOnce(ctx, workers, members, func(ctx context.Context, b PlannedBlob) error {
		return a.writeRange(ctx, a.src, []PlannedBlob{b})
	})
}

// atOnce calls do for each item, in their order, n at a time, until one fails.
func atOnce[T any](ctx context.Context, n int, items []T, do func(context.Context, T) error) error {
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(n)
	for _, item := range items {
		if groupCtx.Err() != nil {
			break
		}
		group.Go(func() error { return do(groupCtx, item) })
	}
	if err := group.Wait(); err != nil {
		return err //nolint:wrapcheck // do says what failed
	}
	return ctx.Err() //nolint:wrapcheck // the caller's own
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
	case i.concurrency > 0:
		return int(i.concurrency)
	case src.Remote():
		return remoteTransfers
	}
	return min(coresAndOne(), maxTransfers)
}

const (
	// maxRun bounds what is fetched of several blobs together, in bytes: a round trip of 50 ms is then small beside the time
	// that the bytes take at 100 MiB/s, and there is still something to write at the same time.
	maxRun = 8 << 20
	// maxGap between two blobs of a run, in bytes: tar headers and padding. More would be cheaper to ask for anew.
	maxGap = 16 << 10
)

// runs groups blobs so that what lies side by side in a remote archive is fetched as one section. Each run's blobs are in
// the order in which they lie there, and the runs in the order of the first of their blobs that is wanted.
func runs(blobs []PlannedBlob) [][]PlannedBlob {
	type place struct {
		PlannedBlob
		turn int
	}
	places := make([]place, len(blobs))
	for k, b := range blobs {
		places[k] = place{b, k}
	}
	slices.SortFunc(places, func(a, b place) int { return cmp.Compare(a.extent.Offset, b.extent.Offset) })
	type run struct {
		blobs      []PlannedBlob
		start, end int64
		turn       int
	}
	var all []*run
	for _, p := range places {
		end := p.extent.Offset + p.extent.Size
		if last := len(all) - 1; last >= 0 {
			r := all[last]
			if gap := p.extent.Offset - r.end; 0 <= gap && gap <= maxGap && end-r.start <= maxRun {
				r.blobs, r.end, r.turn = append(r.blobs, p.PlannedBlob), end, min(r.turn, p.turn)
				continue
			}
		}
		all = append(all, &run{[]PlannedBlob{p.PlannedBlob}, p.extent.Offset, end, p.turn})
	}
	slices.SortFunc(all, func(a, b *run) int { return cmp.Compare(a.turn, b.turn) })
	out := make([][]PlannedBlob, len(all))
	for k, r := range all {
		out[k] = r.blobs
	}
	return out
}

// writeInline writes a blob whose bytes are at hand. One that was present when the plan was made is only leased, or read from
// the archive if containerd has collected it since.
func (a *attempt) writeInline(ctx context.Context, b PlannedBlob) error {
	err := a.session.EnsureBlob(ctx, b.Descriptor, func(offset int64) (io.ReadCloser, error) {
		switch {
		case b.extent.Data != nil:
			return io.NopCloser(bytes.NewReader(b.extent.Data[offset:])), nil
		case b.extent.Member != "":
			return a.src.Section(ctx, b.extent.Offset+offset, b.extent.Size-offset)
		}
		return nil, fmt.Errorf("it has left the content store, and is not in the archive: %w", ErrContentIncomplete)
	})
	if err != nil {
		return fmt.Errorf("blob %s: %w", b.Digest, err)
	}
	return nil
}

// sections is what blobs are read from: a source, or a turn to read from a remote one.
type sections interface {
	Section(ctx context.Context, off, n int64) (io.ReadCloser, error)
}

// writeRange writes the blobs of a run over one section, as far as none of them is passed over.
func (a *attempt) writeRange(ctx context.Context, src sections, blobs []PlannedBlob) error {
	last := blobs[len(blobs)-1].extent
	r := &runReader{ctx: ctx, src: src, end: last.Offset + last.Size}
	defer r.Close()
	for _, b := range blobs {
		err := a.session.EnsureBlob(ctx, b.Descriptor, func(offset int64) (io.ReadCloser, error) {
			return r.blob(b.extent.Offset+offset, b.extent.Size-offset)
		})
		if err != nil {
			return fmt.Errorf("blob %s: member %q: %w", b.Digest, b.extent.Member, err)
		}
	}
	return nil
}

// runReader gives the bytes of blobs one after the other, of one section where the next lies just behind.
type runReader struct {
	ctx     context.Context
	src     sections
	section io.ReadCloser // nil while none is open
	at, end int64         // where section stands, and where it ends
}

// blob returns n bytes from off. Closing them leaves the section open for the blob behind.
func (r *runReader) blob(off, n int64) (io.ReadCloser, error) {
	if gap := off - r.at; r.section == nil || gap < 0 || gap > maxGap {
		r.Close() //nolint:gosec // only read from
		section, err := r.src.Section(r.ctx, off, r.end-off)
		if err != nil {
			return nil, err
		}
		r.section, r.at = section, off
	}
	if _, err := io.CopyN(io.Discard, r, off-r.at); err != nil {
		return nil, fmt.Errorf("skip to byte %d: %w", off, err)
	}
	if off+n == r.end {
		return io.NopCloser(r), nil // the end of the section has something to say: see ended
	}
	return io.NopCloser(io.LimitReader(r, n)), nil
}

func (r *runReader) Read(p []byte) (int, error) {
	n, err := r.section.Read(p)
	r.at += int64(n)
	return n, err
}

func (r *runReader) Close() error {
	if r.section == nil {
		return nil
	}
	section := r.section
	r.section = nil
	return section.Close()
}
