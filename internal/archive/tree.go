package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Tree is the members of an archive: where random access finds them, or what a stream pass has stored. Names are
// clean: no leading "./". Of members with the same name the last one counts, as for containerd.
type Tree struct {
	files    map[string]member // regular files
	links    map[string]string
	control  map[string][]byte // the bytes of controlFiles
	kept     int64             // bytes in control, copies included
	complete bool

	random Random // nil after a stream pass
	sink   Sink   // nil with random access
}

// member is a regular file.
type member struct {
	offset      int64 // with random access
	size        int64
	digest      digest.Digest // "" while unknown
	compression Compression   // once digest is known
}

// controlFiles say what is in an archive. They must not be links, nor be there twice with different content: readers would
// disagree about which one counts.
var controlFiles = map[string]bool{
	ocispec.ImageLayoutFile: true,
	ocispec.ImageIndexFile:  true,
	dockerManifestFile:      true,
	"repositories":          true,
}

const (
	dockerManifestFile = "manifest.json"
	blobsDir           = ocispec.ImageBlobsDir + "/"
	// maxLinks that lead to a member, as many as Linux follows.
	maxLinks = 40
)

// Complete is false when the tar has no end marker: it may have been cut between two members.
func (t *Tree) Complete() bool { return t.complete }

// ReadFile returns a member's bytes, which callers must not change. It follows links. The error is fs.ErrNotExist, or
// ErrLimit above limit bytes.
func (t *Tree) ReadFile(ctx context.Context, name string, limit int64) ([]byte, error) {
	at, m, err := t.resolve(name)
	if err != nil {
		return nil, err
	}
	if m.size > limit {
		return nil, tooLarge(name, m.size, limit)
	}
	if data, ok := t.control[at]; ok {
		return data, nil
	}
	if t.random != nil {
		return t.readAt(ctx, m.offset, m.size)
	}
	data, err := t.sink.Get(ctx, m.digest, limit)
	if errors.Is(err, fs.ErrNotExist) {
		// It was there a moment ago: not an absent member, which callers may accept.
		return nil, fmt.Errorf("member %.200q was not kept: %v: %w", name, err, ErrInvalid) //nolint:errorlint // see above
	}
	if err != nil {
		return nil, fmt.Errorf("member %.200q: %w", name, err)
	}
	return data, nil
}

// Layer returns media type, digest and size of a docker archive's layer. It follows links. An uncompressed layer has
// its diffID as digest, a compressed one the digest that its name claims, or else that of its bytes: random access
// verifies only the last. The error is fs.ErrNotExist, or ErrDigestMismatch.
func (t *Tree) Layer(ctx context.Context, name string, diffID digest.Digest) (ocispec.Descriptor, error) {
	at, m, err := t.resolve(name)
	if err == nil && m.digest == "" {
		m, err = t.identify(ctx, at, m)
	}
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if m.compression != Uncompressed {
		return ocispec.Descriptor{MediaType: mediaTypeDockerLayerGzip, Digest: m.digest, Size: m.size}, nil
	}
	if m.digest != "" && m.digest != diffID {
		return ocispec.Descriptor{}, fmt.Errorf("layer %.200q has digest %s, its config says %s: %w", name, m.digest, diffID, ErrDigestMismatch)
	}
	return ocispec.Descriptor{MediaType: mediaTypeDockerLayer, Digest: diffID, Size: m.size}, nil
}

// identify finds the compression and the digest of a layer by random access. It leaves out the digest of an
// uncompressed layer, which is the diffID, and hashes a compressed one whose name does not claim a digest.
func (t *Tree) identify(ctx context.Context, name string, m member) (member, error) {
	head, err := t.readAt(ctx, m.offset, min(m.size, SniffLen))
	if err != nil {
		return m, err
	}
	m.compression, m.digest = Sniff(head), claimedDigest(name)
	if m.compression != Uncompressed && m.digest == "" {
		if m.digest, err = t.hash(ctx, m); err != nil {
			return m, fmt.Errorf("read layer %.200q: %w", name, err)
		}
	}
	t.files[name] = m
	return m, nil
}

func (t *Tree) hash(ctx context.Context, m member) (digest.Digest, error) {
	rc, err := t.random.Section(ctx, m.offset, m.size)
	if err != nil {
		return "", err
	}
	defer rc.Close()
	sum := digest.Canonical.Digester()
	n, err := io.Copy(sum.Hash(), rc)
	if err != nil {
		return "", err //nolint:wrapcheck // the source's own
	}
	if n != m.size {
		return "", fmt.Errorf("the file ends at byte %d: %w", m.offset+n, ErrTruncated)
	}
	return sum.Digest(), nil
}

func (t *Tree) readAt(ctx context.Context, off, size int64) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err //nolint:wrapcheck // the caller's own
	}
	data := make([]byte, size)
	n, err := t.random.ReadAt(data, off)
	if n == len(data) {
		return data, nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = fmt.Errorf("the file ends at byte %d: %w", off+int64(n), ErrTruncated)
	}
	return nil, err
}

// Locate returns where the bytes of a regular member lie. It follows links. After a stream pass ok is false.
func (t *Tree) Locate(name string) (off, size int64, ok bool) {
	_, m, err := t.resolve(name)
	return m.offset, m.size, err == nil && t.random != nil
}

func (t *Tree) addFile(name string, m member) {
	delete(t.links, name)
	t.files[name] = m
}

func (t *Tree) addLink(name, target string) error {
	if controlFiles[name] {
		return fmt.Errorf("member %.200q is a link: %w", name, ErrInvalid)
	}
	delete(t.files, name)
	t.links[name] = target
	return nil
}

// resolve follows links from name to a regular member.
func (t *Tree) resolve(name string) (string, member, error) {
	at := name
	for range maxLinks {
		if m, ok := t.files[at]; ok {
			return at, m, nil
		}
		to, ok := t.links[at]
		if !ok {
			return "", member{}, fmt.Errorf("member %.200q: %w", name, fs.ErrNotExist)
		}
		at = to
	}
	return "", member{}, fmt.Errorf("member %.200q: links lead round in a circle: %w", name, ErrInvalid)
}

// has says whether there is a regular member of this name, or a link that leads to one (or in a circle).
func (t *Tree) has(name string) bool {
	_, _, err := t.resolve(name)
	return !errors.Is(err, fs.ErrNotExist)
}

// blobLink returns the first link below blobs/, or "".
func (t *Tree) blobLink() string {
	for _, name := range slices.Sorted(maps.Keys(t.links)) {
		if strings.HasPrefix(name, blobsDir) {
			return name
		}
	}
	return ""
}

// claimedDigest is the digest that a member's name claims, or "": that of a blob in a layout, and of a compressed layer
// in docker archives by go-containerregistry and jib (<hex>.tar.gz) and by Bazel's rules_oci
// (blobs/<alg>/<hex>.tar.gz). <hex>.tar claims nothing: it is a diffID, which the config has too.
func claimedDigest(name string) digest.Digest {
	stem, layer := strings.CutSuffix(name, ".tar.gz")
	alg, hex, ok := strings.Cut(strings.TrimPrefix(stem, blobsDir), "/")
	if !strings.HasPrefix(stem, blobsDir) {
		alg, hex, ok = digest.SHA256.String(), stem, layer
	}
	d := digest.NewDigestFromEncoded(digest.Algorithm(alg), hex)
	if !ok || d.Validate() != nil {
		return ""
	}
	return d
}

func tooLarge(name string, size, limit int64) error {
	return fmt.Errorf("member %.200q has %d bytes, at most %d are read: %w", name, size, limit, ErrLimit)
}
