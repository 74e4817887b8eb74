package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Sink takes the members of a stream. One that has a method Follow(Tree) is given the tree before the first member,
// and may look into it, as far as the stream has come, at each Put.
type Sink interface {
	// Put stores size bytes of r and gives their digest. claimed is the digest
	// that the member's name claims, or "". Bytes that are present already need
	// not be read; otherwise Put compares.
	Put(ctx context.Context, claimed digest.Digest, size int64, r io.Reader) (digest.Digest, error)
	// Get gives the bytes that Put took. The error is fs.ErrNotExist, or
	// ErrLimit above limit bytes.
	Get(ctx context.Context, d digest.Digest, limit int64) ([]byte, error)
}

// stored is what is remembered of a member that has passed.
type stored struct {
	digest      digest.Digest
	size        int64
	compression Compression
	data        []byte // of control files only; they have no digest
}

// streamTree is an archive that has passed by.
type streamTree struct {
	members[stored]
	sink Sink
	kept int64 // bytes of control files
}

// StreamTree reads a tar to the end of r in one pass. index.json, manifest.json,
// oci-layout and repositories are kept in memory, all other regular members go
// to sink, those whose name claims a digest with it.
func StreamTree(ctx context.Context, r io.Reader, sink Sink) (Tree, error) {
	t := &streamTree{members: newMembers[stored](), sink: sink}
	if f, ok := sink.(interface{ Follow(Tree) }); ok {
		f.Follow(t)
	}
	// No Seek: a file as stdin must be read, not passed over.
	s := newScanner(struct{ io.Reader }{r})
	for {
		e, err := s.next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if err := t.add(ctx, s, e); err != nil {
			return nil, err
		}
	}
	t.complete = s.complete
	return t, expectZeros(r)
}

func (t *streamTree) add(ctx context.Context, s *scanner, e entry) error {
	if isLink(e) {
		return t.addLink(e)
	}
	if e.kind != tar.TypeReg {
		return nil
	}
	body := &body{s: s, name: e.name}
	if controlFiles[e.name] {
		return t.keep(e, body)
	}
	f := stored{size: e.size}
	head := make([]byte, min(e.size, SniffLen))
	if _, err := io.ReadFull(body, head); err != nil {
		return body.fault(err)
	}
	f.compression = Sniff(head)
	claimed := claimedDigest(e.name)
	var err error
	if f.digest, err = t.sink.Put(ctx, claimed, e.size, io.MultiReader(bytes.NewReader(head), body)); err != nil {
		return body.fault(err)
	}
	if claimed != "" && f.digest != claimed {
		return fmt.Errorf("member %.200q has digest %s: %w", e.name, f.digest, ErrDigestMismatch)
	}
	// archive/tar would count what is left as headers.
	if _, err := io.Copy(io.Discard, body); err != nil {
		return body.fault(err)
	}
	return t.addFile(e.name, f)
}

// keep reads a control file into memory.
func (t *streamTree) keep(e entry, body *body) error {
	if e.size > MaxManifestBytes {
		return tooLarge(e.name, e.size, MaxManifestBytes)
	}
	if t.kept += e.size; t.kept > MaxMetadataBytes {
		return fmt.Errorf("copies of %s have more than %d bytes: %w", e.name, MaxMetadataBytes, ErrLimit)
	}
	data := make([]byte, e.size)
	if _, err := io.ReadFull(body, data); err != nil {
		return body.fault(err)
	}
	if old, ok := t.files[e.name]; ok && !bytes.Equal(old.data, data) {
		return errTwins(e.name)
	}
	return t.addFile(e.name, stored{size: e.size, data: data})
}

// body is a member's bytes. It keeps its own error, so that a sink may say what it likes.
type body struct {
	s    *scanner
	name string
	err  error
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.s.tr.Read(p)
	switch {
	case err == nil || err == io.EOF:
		return n, err //nolint:wrapcheck // a reader hands errors on
	case b.s.in.err != nil:
		b.err = b.s.in.err
	case errors.Is(err, io.ErrUnexpectedEOF):
		b.err = fmt.Errorf("the tar ends at byte %d within member %.200q: %w", b.s.in.off, b.name, ErrTruncated)
	default:
		b.err = fmt.Errorf("read member %.200q: %w: %w", b.name, err, ErrInvalid)
	}
	return n, b.err
}

// fault is the error of reading, or else err.
func (b *body) fault(err error) error {
	if b.err != nil {
		return b.err
	}
	return fmt.Errorf("member %.200q: %w", b.name, err)
}

func (t *streamTree) ReadFile(ctx context.Context, name string, limit int64) ([]byte, error) {
	_, f, err := t.resolve(name)
	switch {
	case err != nil:
		return nil, err
	case f.size > limit:
		return nil, tooLarge(name, f.size, limit)
	case f.digest == "":
		return f.data, nil
	}
	data, err := t.sink.Get(ctx, f.digest, limit)
	if errors.Is(err, fs.ErrNotExist) {
		// It was there a moment ago: not an absent member, which callers may put up with.
		return nil, fmt.Errorf("member %.200q was not kept: %v: %w", name, err, ErrInvalid) //nolint:errorlint // see above
	}
	if err != nil {
		return nil, fmt.Errorf("member %.200q: %w", name, err)
	}
	return data, nil
}

func (t *streamTree) Layer(_ context.Context, name string, diffID digest.Digest) (ocispec.Descriptor, error) {
	_, f, err := t.resolve(name)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if f.compression != Uncompressed {
		return ocispec.Descriptor{MediaType: mediaTypeDockerLayerGzip, Digest: f.digest, Size: f.size}, nil
	}
	if f.digest != diffID {
		return ocispec.Descriptor{}, errOtherDiffID(name, f.digest, diffID)
	}
	return ocispec.Descriptor{MediaType: mediaTypeDockerLayer, Digest: f.digest, Size: f.size}, nil
}

// Locate knows of no place: the bytes have passed.
func (t *streamTree) Locate(string) (off, size int64, ok bool) { return 0, 0, false }
