package importer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/importer/plan"
	"github.com/tarlift/tarlift/internal/importer/transfer"
	"github.com/tarlift/tarlift/internal/source"
)

// Archive is an archive whose metadata can be read.
type Archive = plan.Archive

// Open reads an archive's metadata and stores nothing. A source without random access is read to its end.
func Open(ctx context.Context, src source.Blob) (*Archive, error) {
	seen := archive.NewMemorySink()
	a, err := OpenInto(ctx, src, seen)
	if err != nil {
		return nil, err
	}
	a.Passed = seen
	return a, nil
}

// OpenInto is Open, but sink takes the blobs of a source without random access.
func OpenInto(ctx context.Context, src source.Blob, sink archive.Sink) (*Archive, error) {
	random, err := canIndex(src)
	if err != nil {
		return nil, err
	}
	if random {
		return openRandom(ctx, src)
	}
	return openStream(ctx, src, sink, "", func(int64) error { return nil })
}

// open opens the archive for an import: by random access without reading blobs where that is possible, else in one
// pass that stores the blobs on its way. A digest of the whole archive can only be checked in such a pass.
func (a *attempt) open(ctx context.Context) (*Archive, error) {
	random, err := canIndex(a.src)
	if err != nil {
		return nil, err
	}
	acquire := func(window int64) error { return a.memory.acquire(ctx, a.importer.transfers(a.src), window) }
	if random && a.req.Digest == "" {
		if err := acquire(0); err != nil {
			return nil, err
		}
		return openRandom(ctx, a.src)
	}
	a.progress.stream(a.src)
	a.progress.phase(PhaseTransferring)
	defer a.progress.endStream()
	return openStream(ctx, a.src, &streamSink{attempt: a, held: map[digest.Digest][]byte{}}, a.req.Digest, acquire)
}

// headerBuffer holds the headers and small members of a tar, in bytes; larger reads go past it.
const headerBuffer = 64 << 10

// canIndex says whether a source has random access and is not compressed.
func canIndex(src source.Blob) (bool, error) {
	if !src.RandomAccess() {
		return false, nil
	}
	head := make([]byte, archive.SniffLen)
	n, err := src.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, fmt.Errorf("read the first bytes: %w", err)
	}
	return archive.Sniff(head[:n]) == archive.Uncompressed, nil
}

func openRandom(ctx context.Context, src source.Blob) (*Archive, error) {
	tree, err := archive.ReadTree(ctx, src, src.Size())
	if err != nil {
		return nil, err
	}
	layout, err := archive.Decode(ctx, tree)
	return &Archive{Layout: layout}, err
}

// openStream reads a source once from start to end, decompressing it, and hashes what the source gave. Reading and
// hashing, decompressing, and what the sink does each have a goroutine. When it is known how large a window is decompressed
// with, acquire is called with that.
func openStream(
	ctx context.Context, src source.Blob, sink archive.Sink, want digest.Digest, acquire func(window int64) error,
) (*Archive, error) {
	reading, cancel := context.WithCancel(ctx)
	defer cancel()
	raw, err := src.Section(reading, 0, -1)
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	defer raw.Close()
	algorithm := digest.Canonical
	if want != "" {
		algorithm = want.Algorithm()
	}
	sum := algorithm.Digester()
	hashed := transfer.ReadAhead(io.TeeReader(raw, sum.Hash()))
	defer func() { cancel(); hashed.Stop() }()
	buffered := bufio.NewReaderSize(hashed, headerBuffer)
	head, err := buffered.Peek(archive.HeaderLen)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read the first bytes: %w", err)
	}
	a, window := &Archive{Compression: archive.Sniff(head)}, archive.WindowBytes(head)
	if err := acquire(window); err != nil {
		return nil, err
	}
	var tarball io.Reader = buffered
	if a.Compression != archive.Uncompressed {
		plain, err := archive.Decompress(buffered, a.Compression, window)
		if err != nil {
			return nil, err
		}
		defer plain.Close()
		ahead := transfer.ReadAhead(plain)
		defer func() { cancel(); ahead.Stop() }()
		tarball = ahead
	}
	tree, err := archive.StreamTree(ctx, tarball, sink)
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(io.Discard, buffered); err != nil {
		return nil, fmt.Errorf("read to the end: %w", err)
	}
	if a.Digest = sum.Digest(); want != "" && a.Digest != want {
		return nil, fmt.Errorf("the archive's digest is %s, not %s: %w", a.Digest, want, archive.ErrDigestMismatch)
	}
	a.Layout, err = archive.Decode(ctx, tree)
	return a, err
}
