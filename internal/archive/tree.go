package archive

import (
	"context"
	"errors"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Random is an archive that can be read anywhere.
type Random interface {
	io.ReaderAt
	// Section streams n bytes from off.
	Section(ctx context.Context, off, n int64) (io.ReadCloser, error)
}

// Tree is an archive's members as decoding sees them: by random access, or as a
// stream pass has stored them. Names are clean: no leading "./".
type Tree interface {
	// ReadFile gives a member's bytes. Links are followed. The error is
	// fs.ErrNotExist, or ErrLimit above limit bytes.
	ReadFile(ctx context.Context, name string, limit int64) ([]byte, error)
	// Layer gives media type, digest and size of a docker archive's layer. Links
	// are followed. An uncompressed layer has its diffID for digest, not yet
	// verified by random access.
	Layer(ctx context.Context, name string, diffID digest.Digest) (ocispec.Descriptor, error)
	// Locate tells where a regular member's bytes lie, links followed. After a
	// stream pass ok is false.
	Locate(name string) (off, size int64, ok bool)
	// Complete is false when the tar has no end marker: it may have been cut
	// between two members.
	Complete() bool
}

// Sink takes the members of a stream.
type Sink interface {
	// Put stores size bytes of r and gives their digest. claimed is the digest
	// that the member's name claims, or "". Bytes that are present already need
	// not be read.
	Put(ctx context.Context, claimed digest.Digest, size int64, r io.Reader) (digest.Digest, error)
	// Get gives the bytes that Put took. The error is fs.ErrNotExist, or
	// ErrLimit above limit bytes.
	Get(ctx context.Context, d digest.Digest, limit int64) ([]byte, error)
}

// ReadTree reads the headers of the tar in the first size bytes of r, and nothing else.
func ReadTree(ctx context.Context, r Random, size int64) (Tree, error) {
	return nil, errors.New("not implemented")
}

// StreamTree reads a tar to the end of r in one pass. index.json, manifest.json,
// oci-layout and repositories are kept in memory, all other regular members go
// to sink.
func StreamTree(ctx context.Context, r io.Reader, sink Sink) (Tree, error) {
	return nil, errors.New("not implemented")
}
