package archive

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Formats of archives.
const (
	FormatOCI    = "oci"
	FormatDocker = "docker"
)

// Layout is the content of an archive: an OCI layout, or what a docker archive is as a layout.
type Layout struct {
	// Format is FormatOCI or FormatDocker.
	Format string
	// Index is index.json; of a docker archive, what an index.json for it would be.
	Index       []byte
	IndexDigest digest.Digest
	// Manifests of Index.
	Manifests []ocispec.Descriptor
	// Complete is false when the tar has no end marker. Accept that only when
	// nothing is missing.
	Complete bool

	tree *Tree
	// Of a docker archive: for each of Manifests its image in manifest.json, and the members that are blobs.
	images  []int
	members map[digest.Digest]blobMember

	mu       sync.Mutex
	blobs    map[digest.Digest][]byte // metadata that was read, or made of a docker archive: a remote archive is asked once
	metadata int64                    // bytes in blobs and Index
	decoded  int64                    // what MaxReadBytes bounds
}

// blobMember is a docker archive's member that is a blob.
type blobMember struct {
	name string
	size int64
}

// Extent is where a blob's bytes are: in memory, or at Offset in the archive.
type Extent struct {
	Data   []byte // the blob itself: metadata that was read, or made of a docker archive
	Member string // "" when Data is set
	Offset int64
	Size   int64
}

// Decode reads oci-layout and index.json, or else manifest.json and the configs of its images. In an archive with both
// the OCI layout counts, as for containerd.
func Decode(ctx context.Context, t *Tree) (*Layout, error) {
	l := &Layout{Complete: t.Complete(), tree: t, members: map[digest.Digest]blobMember{}, blobs: map[digest.Digest][]byte{}}
	var err error
	switch {
	case t.has(ocispec.ImageLayoutFile):
		err = l.decodeOCI(ctx)
	case !l.Complete && (t.has(ocispec.ImageIndexFile) || !t.has(dockerManifestFile)):
		err = fmt.Errorf("the tar has no end marker, and no %s: %w", ocispec.ImageLayoutFile, ErrTruncated)
	case t.has(dockerManifestFile):
		err = l.decodeDocker(ctx)
	case t.has(ocispec.ImageIndexFile):
		err = fmt.Errorf("%s without %s: %w", ocispec.ImageIndexFile, ocispec.ImageLayoutFile, ErrInvalid)
	default:
		err = fmt.Errorf("a tar without %s and %s is not an image archive: %w", ocispec.ImageLayoutFile, dockerManifestFile, ErrInvalid)
	}
	if err != nil {
		return nil, err
	}
	l.IndexDigest = digest.FromBytes(l.Index)
	return l, nil
}

func (l *Layout) decodeOCI(ctx context.Context) error {
	l.Format = FormatOCI
	if link := l.tree.blobLink(); link != "" {
		return fmt.Errorf("member %.200q is a link: %w", link, ErrInvalid)
	}
	data, err := l.readFile(ctx, ocispec.ImageLayoutFile, MaxManifestBytes)
	if err != nil {
		return err
	}
	if l.Index, err = l.readFile(ctx, ocispec.ImageIndexFile, MaxManifestBytes); err != nil {
		return err
	}
	l.Manifests, err = DecodeOCI(data, l.Index)
	return err
}

// DecodeOCI returns the manifests of an OCI layout, whose files oci-layout and index.json these are.
func DecodeOCI(layoutFile, indexFile []byte) ([]ocispec.Descriptor, error) {
	layout, err := decodeJSON[ocispec.ImageLayout](layoutFile)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", ocispec.ImageLayoutFile, err)
	}
	if layout.Version != ocispec.ImageLayoutVersion {
		return nil, fmt.Errorf("read %s: imageLayoutVersion: %.200q, want %q: %w",
			ocispec.ImageLayoutFile, layout.Version, ocispec.ImageLayoutVersion, ErrInvalid)
	}
	idx, err := decodeIndex(indexFile, ocispec.MediaTypeImageIndex)
	if err == nil && len(idx.Manifests) == 0 {
		err = fmt.Errorf("manifests: empty: %w", ErrInvalid)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", ocispec.ImageIndexFile, err)
	}
	return idx.Manifests, nil
}

// Select applies a selection to Manifests. Its errors name the place of a manifest.
func (l *Layout) Select(s Selection) ([]Named, error) {
	return s.SelectAt(l.Manifests, l.Place)
}

// readFile reads a member that must be there.
func (l *Layout) readFile(ctx context.Context, name string, limit int64) ([]byte, error) {
	data, err := l.tree.ReadFile(ctx, name, limit)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("not in the archive: %w", l.orTruncated(ErrInvalid))
	}
	if err != nil {
		return nil, fmt.Errorf("read %.200q: %w", name, err)
	}
	return data, l.countMetadata(ctx, int64(len(data)))
}

// orTruncated is err, the error for a member that is not there, or ErrTruncated if the tar was cut.
func (l *Layout) orTruncated(err error) error {
	if l.Complete {
		return err
	}
	return ErrTruncated
}

// Place says, for errors, where Manifests[i] stands.
func (l *Layout) Place(i int) string {
	if l.Format == FormatDocker {
		return fmt.Sprintf("read %s: image %d", dockerManifestFile, l.images[i])
	}
	return PlaceInIndex(i)
}

// countMetadata counts n more bytes of metadata that are kept.
func (l *Layout) countMetadata(ctx context.Context, n int64) error {
	l.mu.Lock()
	l.metadata += n
	all := l.metadata
	l.mu.Unlock()
	if all > SmallMetadataBytes {
		if err := Reserve(ctx); err != nil {
			return err
		}
	}
	if all > MaxMetadataBytes {
		return fmt.Errorf("indexes, manifests and configs have more than %d MiB: %w", MaxMetadataBytes>>20, ErrLimit)
	}
	return nil
}

// ReadBlob returns a metadata blob, verified against the digest and size of d. Callers must not change the bytes. The
// error is ErrMissing, ErrLimit above limit bytes, MaxMetadataBytes or MaxReadBytes in all, ErrDigestMismatch, or
// ErrInvalid for a wrong size.
func (l *Layout) ReadBlob(ctx context.Context, d ocispec.Descriptor, limit int64) ([]byte, error) {
	if err := d.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("read blob: digest %.200q: %s: %w", d.Digest, reason(err), ErrInvalid)
	}
	data, err := l.readBlob(ctx, d.Digest, limit)
	if err == nil && int64(len(data)) != d.Size {
		err = fmt.Errorf("size: its descriptor says %d, it has %d bytes: %w", d.Size, len(data), ErrInvalid)
	}
	if err == nil {
		err = l.CountDecoded(data)
	}
	if err != nil {
		return nil, fmt.Errorf("read blob %s: %w", d.Digest, err)
	}
	return data, nil
}

// CountDecoded counts a document that will be decoded, also one that was read elsewhere: a small archive can name the
// same large one a hundred thousand times. The error is ErrLimit beyond MaxReadBytes in all.
func (l *Layout) CountDecoded(data []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.decoded += int64(len(data) + ValueBytes*min(countValues(data), MaxValues)); l.decoded > MaxReadBytes {
		return fmt.Errorf("more than %d MiB of indexes, manifests and configs, each as often as it is named: %w", MaxReadBytes>>20, ErrLimit)
	}
	return nil
}

func (l *Layout) readBlob(ctx context.Context, d digest.Digest, limit int64) ([]byte, error) {
	if data, ok := l.inMemory(d); ok {
		if int64(len(data)) > limit {
			return nil, tooLarge(l.path(d), int64(len(data)), limit)
		}
		return data, nil
	}
	data, err := l.tree.ReadFile(ctx, l.path(d), limit)
	switch {
	case errors.Is(err, fs.ErrNotExist) && l.Complete:
		return nil, ErrMissing
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: %w", ErrMissing, ErrTruncated)
	case err != nil:
		return nil, err
	}
	if got := d.Algorithm().FromBytes(data); got != d {
		return nil, fmt.Errorf("member %.200q has digest %s: %w", l.path(d), got, ErrDigestMismatch)
	}
	return data, l.keep(ctx, d, data)
}

func (l *Layout) inMemory(d digest.Digest) ([]byte, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	data, ok := l.blobs[d]
	return data, ok
}

func (l *Layout) keep(ctx context.Context, d digest.Digest, data []byte) error {
	l.mu.Lock()
	l.blobs[d] = data
	l.mu.Unlock()
	return l.countMetadata(ctx, int64(len(data)))
}

// path is the name of the member that is a blob.
func (l *Layout) path(d digest.Digest) string {
	if m, ok := l.members[d]; ok {
		return m.name
	}
	return blobsDir + d.Algorithm().String() + "/" + d.Encoded()
}

// Locate returns where a blob's bytes are. ok is false when it is not in the archive, and after a stream pass when it is
// not in memory.
func (l *Layout) Locate(d digest.Digest) (e Extent, ok bool) {
	if data, ok := l.inMemory(d); ok {
		return Extent{Size: int64(len(data)), Data: data}, true
	}
	if d.Validate() != nil {
		return Extent{}, false
	}
	e.Member = l.path(d)
	e.Offset, e.Size, ok = l.tree.Locate(e.Member)
	return e, ok
}
