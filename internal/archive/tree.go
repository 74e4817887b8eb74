package archive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

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
	// are followed. An uncompressed layer has its diffID for digest, a compressed
	// one what its name claims: by random access neither is verified yet. The
	// error is fs.ErrNotExist, or ErrDigestMismatch.
	Layer(ctx context.Context, name string, diffID digest.Digest) (ocispec.Descriptor, error)
	// Locate tells where a regular member's bytes lie, links followed. After a
	// stream pass ok is false.
	Locate(name string) (off, size int64, ok bool)
	// Complete is false when the tar has no end marker: it may have been cut
	// between two members.
	Complete() bool

	// has tells whether there is a regular member of this name, or a link that leads to one (or in a circle).
	has(name string) bool
	// linkIn gives the first link with this name or, when it ends in a slash, below it; or "".
	linkIn(name string) string
}

// controlFiles say what is in an archive. They must not be there twice with
// different content: readers would disagree about which one counts.
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

// members are an archive's regular members, as F keeps them, and its links.
// Of members with the same name the last one counts, as for containerd.
type members[F any] struct {
	files    map[string]F
	links    map[string]string
	complete bool
}

func newMembers[F any]() members[F] {
	return members[F]{files: map[string]F{}, links: map[string]string{}}
}

func (m *members[F]) addFile(name string, f F) error {
	if _, ok := m.links[name]; ok && controlFiles[name] {
		return fmt.Errorf("%s is there as a file and as a link: %w", name, ErrInvalid)
	}
	delete(m.links, name)
	m.files[name] = f
	return nil
}

func (m *members[F]) addLink(e entry) error {
	if _, ok := m.files[e.name]; ok && controlFiles[e.name] {
		return fmt.Errorf("%s is there as a file and as a link: %w", e.name, ErrInvalid)
	}
	delete(m.files, e.name)
	m.links[e.name] = e.link
	return nil
}

// resolve follows links from name to a regular member.
func (m *members[F]) resolve(name string) (string, F, error) {
	var none F
	at := name
	for range maxLinks {
		if f, ok := m.files[at]; ok {
			return at, f, nil
		}
		to, ok := m.links[at]
		if !ok {
			return "", none, fmt.Errorf("member %.200q: %w", name, fs.ErrNotExist)
		}
		at = to
	}
	return "", none, fmt.Errorf("member %.200q: links lead round in a circle: %w", name, ErrInvalid)
}

func (m *members[F]) Complete() bool { return m.complete }

func (m *members[F]) has(name string) bool {
	_, _, err := m.resolve(name)
	return !errors.Is(err, fs.ErrNotExist)
}

func (m *members[F]) linkIn(name string) string {
	first := ""
	for l := range m.links {
		if l == name || strings.HasSuffix(name, "/") && strings.HasPrefix(l, name) {
			if first == "" || l < first {
				first = l
			}
		}
	}
	return first
}

// claimedDigest is the digest that a member's name claims, or "": that of a blob in
// a layout, and of a compressed layer in docker archives by go-containerregistry
// and jib (<hex>.tar.gz) and by Bazel's rules_oci (blobs/<alg>/<hex>.tar.gz).
// <hex>.tar claims nothing: it is a diffID, which the config tells too.
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

func isLink(e entry) bool { return e.kind == tar.TypeSymlink || e.kind == tar.TypeLink }

func tooLarge(name string, size, limit int64) error {
	return fmt.Errorf("member %.200q has %d bytes, at most %d are read: %w", name, size, limit, ErrLimit)
}
