package importer

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/importer/check"
	"github.com/tarlift/tarlift/internal/importer/plan"
	"github.com/tarlift/tarlift/internal/source"
)

// maxHeldBytes bounds what a single pass keeps in memory in all: the metadata of some hundreds of images. What is beyond is
// stored.
const maxHeldBytes = 4 << 20

// streamSink stores what a single pass over an archive meets. It implements archive.Sink.
//
// Where the index and the metadata of all wanted images come first, as in a bundle, what follows is planned: then no blob is
// stored that they do not need, and they are unpacked while they arrive.
type streamSink struct {
	*attempt
	tree    *archive.Tree          // of what has passed
	planned bool                   // or nothing is known before the end
	needed  map[digest.Digest]bool // nil while unknown

	held      map[digest.Digest][]byte // small members, not stored yet
	heldBytes int64
}

// Follow takes the tree of what has passed.
func (s *streamSink) Follow(t *archive.Tree) { s.tree = t }

// Put stores one member. A digest that the member's name claims is verified; a blob that is present is skipped, and so
// is one that is known to be of no use.
func (s *streamSink) Put(ctx context.Context, claimed digest.Digest, size int64, r io.Reader) (digest.Digest, error) {
	buffered := bufio.NewReader(r)
	if head, _ := buffered.Peek(1); claimed != "" && !bytes.Equal(head, []byte("{")) {
		s.planAhead(ctx)
	}
	switch {
	case size <= plan.MaxHeld && s.heldBytes+size <= maxHeldBytes:
		return s.hold(ctx, claimed, size, buffered)
	case claimed == "":
		return s.session.WriteUnnamed(ctx, size, buffered)
	case s.needed != nil && !s.needed[claimed]:
		return claimed, nil
	}
	d, opened := ocispec.Descriptor{Digest: claimed, Size: size}, false
	return claimed, s.session.EnsureBlob(ctx, d, func(offset int64) (io.ReadCloser, error) {
		if opened {
			return nil, fmt.Errorf("a stream cannot be read again: %w", source.ErrUnavailable)
		}
		opened = true
		if _, err := io.CopyN(io.Discard, buffered, offset); err != nil {
			return nil, fmt.Errorf("skip %d bytes: %w", offset, err)
		}
		return io.NopCloser(buffered), nil
	})
}

// hold keeps a small member in memory, unless it is known already whether it is needed.
func (s *streamSink) hold(ctx context.Context, claimed digest.Digest, size int64, r io.Reader) (digest.Digest, error) {
	if s.heldBytes+size > archive.SmallMetadataBytes {
		if err := archive.Reserve(ctx); err != nil {
			return "", err
		}
	}
	data := make([]byte, size)
	if _, err := io.ReadFull(r, data); err != nil {
		return "", fmt.Errorf("read: %w", err)
	}
	algorithm := digest.Canonical
	if claimed != "" {
		algorithm = claimed.Algorithm()
	}
	d := algorithm.FromBytes(data)
	switch {
	case claimed != "" && d != claimed: // the caller compares
	case s.needed[d]:
		return d, s.ensureBlob(ctx, PlannedBlob{
			Descriptor: ocispec.Descriptor{Digest: d, Size: size}, Extent: archive.Extent{Size: size, Data: data},
		})
	case s.needed == nil && s.held[d] == nil:
		s.held[d] = data
		s.heldBytes += size
	}
	return d, nil
}

// planAhead plans once, at the first blob that is no metadata, what has yet to pass. If metadata is still to come, nothing is
// known, and nothing wrong.
func (s *streamSink) planAhead(ctx context.Context) {
	if s.planned {
		return
	}
	s.planned = true
	layout, err := archive.Decode(ctx, s.tree)
	if err != nil || layout.Format != archive.FormatOCI {
		return
	}
	p, err := s.importer.Plan(ctx, &Archive{Layout: layout, Streaming: true}, s.req)
	if err != nil {
		return
	}
	needed := map[digest.Digest]bool{}
	for _, b := range p.Blobs {
		needed[b.Digest] = true
		if b.Extent.Data == nil {
			continue
		}
		if err := s.ensureBlob(ctx, b); err != nil {
			return // it will fail again at the end, and be reported there
		}
	}
	s.needed = needed
	if s.req.Digest == "" { // else nobody has vouched for these bytes yet
		s.startUnpack(p) //nolint:contextcheck // it has the attempt's
	}
}

// Get reads a blob of at most limit bytes back, fs.ErrNotExist for one that was not stored.
func (s *streamSink) Get(ctx context.Context, d digest.Digest, limit int64) ([]byte, error) {
	if data, ok := s.held[d]; ok {
		if int64(len(data)) > limit {
			return nil, fmt.Errorf("blob %s has %d bytes, at most %d are read: %w", d, len(data), limit, archive.ErrLimit)
		}
		return data, nil
	}
	data, err := check.ReadBlob(ctx, s.content, d, limit)
	if errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("blob %s: %w", d, fs.ErrNotExist)
	}
	return data, err
}
