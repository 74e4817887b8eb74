// Package transfer reads blobs out of an archive, out of a remote one over several connections.
//
//	err := transfer.Each(ctx, src, 4, extents, func(ctx context.Context, run *transfer.Run) error {
//		for _, blob := range run.Blobs {
//			rc, err := run.Open(ctx, blob, 0)
//			…
//			rc.Close()
//		}
//		return nil
//	})
//
// It knows neither what blobs are nor where they go.
package transfer

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/source"
)

// maxRun bounds what is asked for of several blobs together, in bytes: a round trip of 50 ms is then small beside the time
// that the bytes take at 100 MiB/s, and there is still something to write at the same time.
const maxRun = 8 << 20

// Each calls use for each run of blobs, n at a time, until one fails. The runs come in the order of the first of their blobs
// in extents. src has random access; if it is remote, n is also the number of connections.
func Each(ctx context.Context, src source.Blob, n int, extents []archive.Extent, use func(context.Context, *Run) error) error {
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(n)
	c := newConnections(src, n)
	for _, run := range runs(src, extents) {
		leave := func() {}
		if src.Remote() {
			t := c.enter(groupCtx)
			run.src, leave = t, t.leave
		}
		if groupCtx.Err() != nil {
			break
		}
		group.Go(func() error {
			defer leave()
			defer run.Release()
			return use(groupCtx, run)
		})
	}
	if err := group.Wait(); err != nil {
		return err //nolint:wrapcheck // use says what failed
	}
	return ctx.Err() //nolint:wrapcheck // the caller's own
}

// sections is what a run is read from: a source, or a turn to read from a remote one.
type sections interface {
	Section(ctx context.Context, off, n int64) (io.ReadCloser, error)
}

// Run is blobs that lie side by side in a remote archive and share a request, or a single blob.
type Run struct {
	Blobs []int // the indices of extents, in the order in which they lie in the archive

	blob    source.Blob
	src     sections
	extents []archive.Extent
	section io.ReadCloser // nil while none is open
	at      int64         // where section stands
}

// runs groups blobs. A gap between two of a run is cheaper to read than a request.
func runs(src source.Blob, extents []archive.Extent) []*Run {
	order := make([]int, len(extents))
	for k := range order {
		order[k] = k
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(extents[a].Offset, extents[b].Offset) })
	var all []*Run
	for _, k := range order {
		if last := len(all) - 1; last >= 0 && src.Remote() {
			r, x := all[last], extents[k]
			gap := x.Offset - r.end()
			if 0 <= gap && source.ReadThrough(src, gap) && x.Offset+x.Size-extents[r.Blobs[0]].Offset <= maxRun {
				r.Blobs = append(r.Blobs, k)
				continue
			}
		}
		all = append(all, &Run{Blobs: []int{k}, blob: src, src: src, extents: extents})
	}
	slices.SortFunc(all, func(a, b *Run) int { return cmp.Compare(slices.Min(a.Blobs), slices.Min(b.Blobs)) })
	return all
}

// end is the offset in the archive where the last blob ends.
func (r *Run) end() int64 {
	last := r.extents[r.Blobs[len(r.Blobs)-1]]
	return last.Offset + last.Size
}

// Open gives the bytes of a blob from an offset in it to its end, until the next is opened. Blobs are opened in their order;
// one that is not wanted, now that its turn has come, is left out. The reader ends with ctx.
//
// The bytes of the blobs behind are on their way then too: whoever waits for somebody else before he opens the next calls
// Release, so that others can use his connections.
func (r *Run) Open(ctx context.Context, blob int, offset int64) (io.ReadCloser, error) {
	x := r.extents[blob]
	from := x.Offset + offset
	if gap := from - r.at; r.section == nil || gap < 0 || !source.ReadThrough(r.blob, gap) {
		r.Release()
		section, err := r.src.Section(ctx, from, r.end()-from)
		if err != nil {
			return nil, err
		}
		r.section, r.at = section, from
	}
	if _, err := io.CopyN(io.Discard, r, from-r.at); err != nil {
		return nil, fmt.Errorf("skip to byte %d: %w", from, err)
	}
	if from+x.Size-offset == r.end() {
		return io.NopCloser(r), nil // a source that has changed may say so behind the last byte
	}
	return io.NopCloser(io.LimitReader(r, x.Size-offset)), nil
}

// Read is for the readers that Open gives.
func (r *Run) Read(p []byte) (int, error) {
	n, err := r.section.Read(p)
	r.at += int64(n)
	return n, err
}

// Release gives up what is on its way. The run can still be used.
func (r *Run) Release() {
	if r.section != nil {
		r.section.Close() //nolint:gosec // only read from
		r.section = nil
	}
}
