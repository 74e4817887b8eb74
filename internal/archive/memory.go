package archive

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"

	"github.com/opencontainers/go-digest"
)

// MemorySink takes a stream pass that stores nothing: it hashes every member, keeps what can be metadata, and remembers
// the sizes of the rest. It is for archives that can be read only once and are only inspected.
type MemorySink struct {
	metadata map[digest.Digest][]byte
	sizes    map[digest.Digest]int64
	kept     int64 // bytes in metadata
}

// statementHead is where an in-toto statement shows its type. Statements are JSON too, but never needed, and those about
// the packages in an image are as large as all metadata together may be.
const statementHead = 64

// NewMemorySink makes an empty sink.
func NewMemorySink() *MemorySink {
	return &MemorySink{metadata: map[digest.Digest][]byte{}, sizes: map[digest.Digest]int64{}}
}

// Put hashes a member and keeps it if it is a JSON object, as indexes, manifests and configs are, but no in-toto statement.
func (m *MemorySink) Put(_ context.Context, claimed digest.Digest, size int64, r io.Reader) (digest.Digest, error) {
	algorithm := digest.Canonical
	if claimed != "" {
		algorithm = claimed.Algorithm()
	}
	sum := algorithm.Digester()
	r = io.TeeReader(r, sum.Hash())
	head := make([]byte, min(size, statementHead))
	if _, err := io.ReadFull(r, head); err != nil {
		return "", fmt.Errorf("read: %w", err)
	}
	var kept bytes.Buffer
	to := io.Discard
	object := bytes.HasPrefix(bytes.TrimSpace(head), []byte("{")) && !bytes.Contains(head, []byte(`"_type"`))
	if object && size <= MaxConfigBytes {
		if m.kept += size; m.kept > MaxMetadataBytes {
			return "", fmt.Errorf("more than %d bytes of metadata: %w", int64(MaxMetadataBytes), ErrLimit)
		}
		kept.Write(head)
		to = &kept
	}
	if _, err := io.CopyN(to, r, size-int64(len(head))); err != nil {
		return "", fmt.Errorf("read: %w", err)
	}
	d := sum.Digest() // which StreamTree compares
	m.sizes[d] = size
	if kept.Len() > 0 {
		m.metadata[d] = kept.Bytes()
	}
	return d, nil
}

// Get returns kept metadata of at most limit bytes, fs.ErrNotExist for anything else.
func (m *MemorySink) Get(_ context.Context, d digest.Digest, limit int64) ([]byte, error) {
	data, ok := m.metadata[d]
	if !ok {
		return nil, fmt.Errorf("blob %s: %w", d, fs.ErrNotExist)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("blob %s has %d bytes, at most %d are read: %w", d, len(data), limit, ErrLimit)
	}
	return data, nil
}

// Size returns the size in bytes of a blob that the pass met. A nil sink met none.
func (m *MemorySink) Size(d digest.Digest) (int64, bool) {
	if m == nil {
		return 0, false
	}
	size, ok := m.sizes[d]
	return size, ok
}
