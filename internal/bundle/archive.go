package bundle

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/tarlift/tarlift/internal/archive"
)

// FromArchive returns an archive as an input. Its blobs are in r, or in the spool if the archive was read as a stream.
func FromArchive(name string, l *archive.Layout, r archive.Random, s *Spool) Input {
	return Input{Name: name, Manifests: l.Manifests, Place: l.Place, Blobs: &archived{Layout: l, random: r, spool: s}}
}

type archived struct {
	*archive.Layout
	random archive.Random
	spool  *Spool
}

// Find implements Blobs: first from the archive, then from the spool.
func (a *archived) Find(_ context.Context, d digest.Digest) (Blob, error) {
	e, ok := a.Locate(d)
	switch {
	case ok && e.Data != nil:
		return Blob{Size: e.Size, Open: func(context.Context) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(e.Data)), nil
		}}, nil
	case ok:
		return Blob{Member: e.Member, Size: e.Size, Open: func(ctx context.Context) (io.ReadCloser, error) {
			return a.random.Section(ctx, e.Offset, e.Size)
		}}, nil
	}
	if b, ok := a.spool.find(d); ok {
		return b, nil
	}
	if !a.Complete {
		return Blob{}, fmt.Errorf("%w: %w", archive.ErrMissing, archive.ErrTruncated)
	}
	return Blob{}, archive.ErrMissing
}

var _ Blobs = (*archived)(nil)
