package importer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/source"
)

// sniffBytes is enough for every magic number that archive.Sniff knows.
const sniffBytes = 16

// Import puts the selected images of an archive into containerd. When it returns without error, all of them are
// complete, unpacked if wanted, and published; when it returns an error, no name was changed.
//
// Errors: those of this package, of archive and of source, wrapped.
func (i *Importer) Import(ctx context.Context, src source.Blob, req Request) (result Result, err error) {
	ctx = i.in(ctx)
	s, ctx, err := i.begin(ctx, req)
	if err != nil {
		return Result{}, err
	}
	defer func() {
		// After a success the names stand; what could not be cleared up expires with the lease.
		if endErr := s.end(ctx, err != nil); endErr != nil && err != nil {
			err = errors.Join(err, fmt.Errorf("clear up: %w", endErr))
		}
	}()

	s.progress.phase(PhaseIndexing)
	opened, err := s.index(ctx, src, req.Digest)
	if err != nil {
		return Result{}, err
	}
	plan, err := i.plan(ctx, opened.layout, nil, req)
	if err != nil {
		return Result{}, err
	}
	names := plan.names()
	if err := s.refuseConflicts(ctx, names, req); err != nil {
		return Result{}, err
	}
	if err := s.transfer(ctx, src, plan); err != nil {
		return Result{}, err
	}
	if err := s.assemble(ctx, plan); err != nil {
		return Result{}, err
	}
	snapshotter := ""
	if req.Unpack {
		if snapshotter, err = s.unpack(ctx, plan); err != nil {
			return Result{}, err
		}
	}
	result = s.result(src, opened, plan)
	s.progress.phase(PhasePublishing)
	if err := s.publish(ctx, names, req, newRecord(req, src.String(), result, snapshotter, len(names))); err != nil {
		return Result{}, err
	}
	return result, nil
}

// Plan says what an import would do, and changes nothing. Sources without random access are read to their end.
func (i *Importer) Plan(ctx context.Context, src source.Blob, req Request) (*Plan, error) {
	ctx = i.in(ctx)
	var layout *archive.Layout
	var seen *archive.MemorySink
	random, compression, err := access(src)
	if err != nil {
		return nil, err
	}
	if random && compression == archive.Uncompressed {
		layout, err = decodeRandom(ctx, src)
	} else {
		seen = archive.NewMemorySink()
		var opened opened
		opened, err = readStream(ctx, src, seen, "")
		layout = opened.layout
	}
	if err != nil {
		return nil, err
	}
	return i.plan(ctx, layout, seen, req)
}

// opened is an archive whose metadata can be read.
type opened struct {
	layout *archive.Layout
	digest digest.Digest // of the whole archive, when it was read in full
}

// index opens the archive: by random access without reading blobs where that is possible, else in one pass that
// stores the blobs on its way. A digest of the whole archive can only be checked in such a pass.
func (s *session) index(ctx context.Context, src source.Blob, want digest.Digest) (opened, error) {
	random, compression, err := access(src)
	if err != nil {
		return opened{}, err
	}
	if random && compression == archive.Uncompressed && want == "" {
		layout, err := decodeRandom(ctx, src)
		return opened{layout: layout}, err
	}
	s.progress.total(max(src.Size(), 0))
	s.progress.position = src.BytesRead
	s.progress.phase(PhaseTransferring)
	defer func() { s.progress.position, s.progress.now.Done = nil, 0 }()
	return readStream(ctx, src, streamSink{s}, want)
}

// access says whether a source has random access, and how its first bytes are compressed; a stream's are not
// looked at yet.
func access(src source.Blob) (random bool, c archive.Compression, err error) {
	if !src.RandomAccess() {
		return false, archive.Uncompressed, nil
	}
	head := make([]byte, sniffBytes)
	n, err := src.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return true, archive.Uncompressed, fmt.Errorf("read the first bytes: %w", err)
	}
	return true, archive.Sniff(head[:n]), nil
}

func decodeRandom(ctx context.Context, src source.Blob) (*archive.Layout, error) {
	tree, err := archive.ReadTree(ctx, src, src.Size())
	if err != nil {
		return nil, err //nolint:wrapcheck // says which member
	}
	return archive.Decode(ctx, tree) //nolint:wrapcheck // as above
}

// readStream reads a source once from start to end, decompressing it, and hashes what the source gave.
func readStream(ctx context.Context, src source.Blob, sink archive.Sink, want digest.Digest) (opened, error) {
	raw, err := src.Section(ctx, 0, -1)
	if err != nil {
		return opened{}, fmt.Errorf("open: %w", err)
	}
	defer raw.Close() //nolint:errcheck // only read
	algorithm := digest.Canonical
	if want != "" {
		algorithm = want.Algorithm()
	}
	sum := algorithm.Digester()
	buffered := bufio.NewReaderSize(io.TeeReader(raw, sum.Hash()), copyBuffer)
	head, err := buffered.Peek(sniffBytes)
	if err != nil && !errors.Is(err, io.EOF) {
		return opened{}, fmt.Errorf("read the first bytes: %w", err)
	}
	plain, err := archive.Decompress(buffered, archive.Sniff(head))
	if err != nil {
		return opened{}, err //nolint:wrapcheck // says what is wrong
	}
	defer plain.Close() //nolint:errcheck // only read
	tree, err := archive.StreamTree(ctx, plain, sink)
	if err != nil {
		return opened{}, err //nolint:wrapcheck // says which member
	}
	if _, err := io.Copy(io.Discard, buffered); err != nil {
		return opened{}, fmt.Errorf("read to the end: %w", err)
	}
	if want != "" && sum.Digest() != want {
		return opened{}, fmt.Errorf("the archive's digest is %s, not %s: %w", sum.Digest(), want, archive.ErrDigestMismatch)
	}
	layout, err := archive.Decode(ctx, tree)
	return opened{layout: layout, digest: sum.Digest()}, err //nolint:wrapcheck // says which member
}

// result sums up what was moved.
func (s *session) result(src source.Blob, o opened, p *Plan) Result {
	r := Result{
		Digest: o.digest, IndexDigest: p.IndexDigest, Size: src.Size(),
		Bytes: Bytes{Read: src.BytesRead()},
	}
	for _, n := range s.written {
		r.Bytes.Written += n
	}
	for _, b := range p.Blobs {
		if _, ok := s.written[b.Digest]; !ok {
			r.Bytes.Skipped += b.Size
		}
	}
	for _, img := range p.Images {
		r.Images = append(r.Images, Image{Name: img.Name, Digest: img.Digest})
	}
	return r
}
