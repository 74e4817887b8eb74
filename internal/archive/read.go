package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
)

// Random is an archive with random access.
type Random interface {
	// ReadAt reads headers and metadata, a few bytes at a time: reading ahead is left to the source, which knows what pays.
	io.ReaderAt
	// Section streams n bytes from off.
	Section(ctx context.Context, off, n int64) (io.ReadCloser, error)
}

// Sink takes the members of a stream. One that has a method Follow(*Tree) gets the tree before the first member, and
// may look into it, as far as the stream has come, at each Put.
type Sink interface {
	// Put stores size bytes of r and returns their digest. claimed is the digest that the member's name claims, or "".
	// Bytes that are present already need not be read. StreamTree compares the two digests.
	Put(ctx context.Context, claimed digest.Digest, size int64, r io.Reader) (digest.Digest, error)
	// Get returns the bytes that Put took. The error is fs.ErrNotExist, or ErrLimit above limit bytes.
	Get(ctx context.Context, d digest.Digest, limit int64) ([]byte, error)
}

// ReadTree reads the tar in the first size bytes of r: headers, control files such as index.json, and the padding at
// the end. A member that would end beyond size is ErrTruncated.
func ReadTree(ctx context.Context, r Random, size int64) (*Tree, error) {
	t := newTree(r, nil)
	s := newScanner(io.NewSectionReader(r, 0, size))
	err := t.readMembers(ctx, s, func(e entry) (member, error) {
		if e.size > size-e.data {
			return member{}, fmt.Errorf("member %.200q ends beyond the end of the file, at byte %d: %w", e.name, size, ErrTruncated)
		}
		return member{offset: e.data, size: e.size}, nil
	})
	if err != nil {
		return nil, err
	}
	if !s.complete || s.in.off == size {
		return t, nil
	}
	padding, err := r.Section(ctx, s.in.off, size-s.in.off)
	if err != nil {
		return nil, err
	}
	defer padding.Close()
	return t, expectZeros(padding)
}

// StreamTree reads a tar to the end of r in one pass. It keeps control files such as index.json in memory, and puts all
// other regular members into sink.
func StreamTree(ctx context.Context, r io.Reader, sink Sink) (*Tree, error) {
	t := newTree(nil, sink)
	if f, ok := sink.(interface{ Follow(*Tree) }); ok {
		f.Follow(t)
	}
	s := newScanner(struct{ io.Reader }{r}) // no Seek: a file as stdin must be read, not skipped
	err := t.readMembers(ctx, s, func(e entry) (member, error) { return t.putMember(ctx, s, e) })
	if err != nil {
		return nil, err
	}
	return t, expectZeros(r)
}

func newTree(r Random, sink Sink) *Tree {
	return &Tree{files: map[string]member{}, links: map[string]string{}, control: map[string][]byte{}, random: r, sink: sink}
}

// readMembers reads a tar to its end; take makes a member of a regular file that is not a control file.
func (t *Tree) readMembers(ctx context.Context, s *scanner, take func(entry) (member, error)) error {
	for {
		e, err := s.next(ctx)
		if errors.Is(err, io.EOF) {
			t.complete = s.complete
			return nil
		}
		if err == nil {
			err = t.readMember(s, e, take)
		}
		if err != nil {
			return err
		}
	}
}

func (t *Tree) readMember(s *scanner, e entry, take func(entry) (member, error)) error {
	switch {
	case e.kind == tar.TypeSymlink || e.kind == tar.TypeLink:
		return t.addLink(e.name, e.link)
	case e.kind != tar.TypeReg:
		return nil
	case controlFiles[e.name]:
		return t.readControl(s, e)
	}
	m, err := take(e)
	if err == nil {
		t.addFile(e.name, m)
	}
	return err
}

// readControl reads a control file into memory.
func (t *Tree) readControl(s *scanner, e entry) error {
	if e.size > MaxManifestBytes {
		return tooLarge(e.name, e.size, MaxManifestBytes)
	}
	if t.kept += e.size; t.kept > MaxMetadataBytes {
		return fmt.Errorf("copies of %s have more than %d bytes: %w", e.name, MaxMetadataBytes, ErrLimit)
	}
	data := make([]byte, e.size)
	if _, err := io.ReadFull(s, data); err != nil {
		return s.fault(err)
	}
	if old, ok := t.control[e.name]; ok && !bytes.Equal(old, data) {
		return fmt.Errorf("%s is there twice with different content: %w", e.name, ErrInvalid)
	}
	t.control[e.name] = data
	t.addFile(e.name, member{offset: e.data, size: e.size, digest: digest.FromBytes(data), compression: Sniff(data)})
	return nil
}

// putMember puts a member of a stream into the sink.
func (t *Tree) putMember(ctx context.Context, s *scanner, e entry) (member, error) {
	m, head := member{size: e.size}, make([]byte, min(e.size, SniffLen))
	if _, err := io.ReadFull(s, head); err != nil {
		return m, s.fault(err)
	}
	m.compression = Sniff(head)
	claimed := claimedDigest(e.name)
	var err error
	if m.digest, err = t.sink.Put(ctx, claimed, e.size, io.MultiReader(bytes.NewReader(head), s)); err != nil {
		return m, s.fault(err)
	}
	if claimed != "" && m.digest != claimed {
		return m, fmt.Errorf("member %.200q has digest %s: %w", e.name, m.digest, ErrDigestMismatch)
	}
	// archive/tar would count what is left as headers.
	if _, err := io.Copy(io.Discard, s); err != nil {
		return m, s.fault(err)
	}
	return m, nil
}

// expectZeros reads r to its end, which is behind the tar's.
func expectZeros(r io.Reader) error {
	buf := make([]byte, 32<<10)
	for n := 0; ; {
		m, err := r.Read(buf)
		if !isZero(buf[:m]) {
			return fmt.Errorf("data after the end of the tar: %w", ErrInvalid)
		}
		if n += m; n > MaxPaddingBytes {
			return fmt.Errorf("more than %d MiB of zeros after the end of the tar: %w", MaxPaddingBytes>>20, ErrLimit)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
