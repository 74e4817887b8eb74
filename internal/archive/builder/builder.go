// Package builder writes OCI and docker image archives from Go values. The same
// values give the same bytes on every machine, so digests may be compared
// between runs.
//
//	b, err := builder.Archive{Images: []builder.Image{{
//		Names: []string{"registry.example/app:1"},
//		Platforms: []builder.PlatformImage{{
//			Platform: builder.Platform("linux/amd64"),
//			Layers:   []builder.Layer{{Files: []builder.File{{Name: "app", Mode: 0o755, Path: "out/app"}}}},
//			Config:   ocispec.ImageConfig{Entrypoint: []string{"/app"}},
//		}},
//	}}}.Build()
//	defer b.Close()
//	_, err = b.WriteTo(w)
//
// Layers are spooled to an unlinked temporary file, so that archives of some
// gigabytes need little memory.
package builder

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Format is the arrangement of an archive's members.
type Format int

const (
	// OCI is an image layout: oci-layout, index.json, blobs/sha256/<hex>.
	OCI Format = iota
	// Hybrid is an image layout with a manifest.json beside it that names the
	// same blobs, as `docker save` writes it since Docker 25.
	Hybrid
	// Docker is manifest.json, repositories, <hex>.json and <hex>.tar, as skopeo
	// and podman write docker-archive.
	Docker
	// DockerClassic is manifest.json, repositories, <hex>.json and
	// <id>/layer.tar, as `docker save` wrote it before Docker 25: a layer that an
	// earlier image has is a symlink to it.
	DockerClassic
	// DockerDigest is manifest.json, sha256:<hex> and <hex>.tar.gz, as crane, ko
	// and kaniko write it: layers are named by their own digest, not their diffID.
	DockerDigest
)

// NameStyle says where index.json keeps the names of images.
type NameStyle int

const (
	// NameAndTag is io.containerd.image.name with the full name and
	// org.opencontainers.image.ref.name with the tag (buildkit, ctr).
	NameAndTag NameStyle = iota
	// ImageName is io.containerd.image.name alone.
	ImageName
	// RefName is org.opencontainers.image.ref.name with the full name (podman, skopeo).
	RefName
	// BareTag is org.opencontainers.image.ref.name with the tag alone (umoci, skopeo oci:dir:tag).
	BareTag
	// NoName annotates nothing.
	NoName
)

// Compression of a layer or of a whole archive.
type Compression int

// The compressions that archives use. The zero value is no compression.
const (
	None Compression = iota
	Gzip
	Zstd
)

// Archive is what to write.
type Archive struct {
	Images []Image
	Format Format
	Names  NameStyle
	// Compression and Level of the whole archive; see Layer.Level.
	Compression Compression
	Level       int
	// Directories adds members for blobs/ and blobs/sha256/.
	Directories bool
	// Edits are applied to the members in this order, before they are written.
	Edits []Edit
}

// Image is one target of index.json (or one entry of manifest.json) with its names.
type Image struct {
	Names     []string
	Platforms []PlatformImage
	// Index makes an index also of one platform. Several platforms always have one.
	Index bool
	// Nested is the number of further indexes around the image's own.
	Nested int
	// Attestations adds a manifest of platform unknown/unknown for each platform, as buildkit does.
	Attestations bool
	// AttestationsAbsent leaves the blobs of attestations out.
	AttestationsAbsent bool
	// NoPlatform omits the platform from the descriptors of manifests.
	NoPlatform bool
	// DockerTypes uses docker's schema 2 media types in an image layout.
	DockerTypes bool
}

// PlatformImage is what one platform runs. Docker formats take the first of an image only.
type PlatformImage struct {
	Platform ocispec.Platform
	Layers   []Layer
	Config   ocispec.ImageConfig
	// Absent leaves manifest, config and layers of this platform out of the
	// archive, as `ctr images export` does with platforms that were not asked
	// for. A blob that another platform has too is kept.
	Absent bool
}

// Layer is a file system change set.
type Layer struct {
	Files       []File
	Compression Compression
	// Level of gzip is 1 to 9, of zstd 1 to 22 as its command line has it; 0 is the default.
	Level int
	// MediaType replaces the one that Compression gives.
	MediaType string
}

// File is one member of a layer: a regular file, a directory (Name ends in /),
// or a symlink (Link is set). Its bytes are Data, or of the file at Path, or
// Size bytes from Open.
type File struct {
	Name string
	Mode int64 // permission bits; 0 is 0644, of directories 0755
	Link string
	Data []byte
	Path string
	Size int64
	Open func() (io.ReadCloser, error)
	// Header changes the member's header before it is written, say its owner; nil changes nothing.
	Header func(*tar.Header)
}

// Built is an archive whose blobs and digests are known.
type Built struct {
	// Index is the text of index.json, nil for docker formats.
	Index       []byte
	IndexDigest digest.Digest
	// Images are in the order of Archive.Images.
	Images []BuiltImage
	// Members in the order of writing. They may be changed until WriteTo.
	Members []Member

	archive Archive
	spool   *spool
}

// BuiltImage gives the descriptors of one image.
type BuiltImage struct {
	Names []string
	// Target is what index.json points at. Of docker formats it is the manifest
	// that `ctr images import` makes, as long as no layer is compressed.
	Target ocispec.Descriptor
	// Indexes are the blobs of all indexes below index.json, outermost first.
	Indexes []ocispec.Descriptor
	// Platforms are in the order of Image.Platforms.
	Platforms    []BuiltPlatform
	Attestations []ocispec.Descriptor
}

// BuiltPlatform gives the descriptors of one platform's image.
type BuiltPlatform struct {
	Manifest ocispec.Descriptor
	Config   ocispec.Descriptor
	Layers   []ocispec.Descriptor
	DiffIDs  []digest.Digest
}

// Platform parses os/arch[/variant]; it panics when that cannot be parsed.
func Platform(s string) ocispec.Platform {
	return platforms.MustParse(s)
}

// BlobPath is the member name of a blob in an image layout.
func BlobPath(d digest.Digest) string {
	return ocispec.ImageBlobsDir + "/" + d.Algorithm().String() + "/" + d.Encoded()
}

// Build writes the layers to the spool and computes all metadata. Close frees the spool.
func (a Archive) Build() (*Built, error) {
	s, err := newSpool()
	if err != nil {
		return nil, err
	}
	b := &Built{archive: a, spool: s}
	if err := b.build(); err != nil {
		return nil, fmt.Errorf("build archive: %w", withClose(err, s))
	}
	b.Edit(a.Edits...)
	return b, nil
}

func (b *Built) build() error {
	images := make([]image, 0, len(b.archive.Images))
	for i, img := range b.archive.Images {
		made, err := makeImage(b.spool, img, b.archive.Format)
		if err != nil {
			return fmt.Errorf("image %d: %w", i, err)
		}
		images = append(images, made)
		b.Images = append(b.Images, made.BuiltImage)
	}
	switch b.archive.Format {
	case OCI, Hybrid:
		return b.layOutOCI(images)
	case Docker, DockerClassic, DockerDigest:
		return b.layOutDocker(images)
	default:
		return fmt.Errorf("unknown format %d", b.archive.Format)
	}
}

// Edit changes the members.
func (b *Built) Edit(edits ...Edit) {
	for _, e := range edits {
		b.Members = e(b.Members)
	}
}

// Bytes is the whole archive in memory.
func (b *Built) Bytes() ([]byte, error) {
	var buf bytes.Buffer
	_, err := b.WriteTo(&buf)
	return buf.Bytes(), err
}

// Close frees the spool. Members cannot be read afterwards.
func (b *Built) Close() error {
	return b.spool.Close()
}

// WriteTo builds the archive and writes it.
func (a Archive) WriteTo(w io.Writer) (n int64, err error) {
	b, err := a.Build()
	if err != nil {
		return 0, err
	}
	defer func() { err = withClose(err, b) }()
	return b.WriteTo(w)
}

// Bytes builds the archive in memory.
func (a Archive) Bytes() ([]byte, error) {
	var buf bytes.Buffer
	_, err := a.WriteTo(&buf)
	return buf.Bytes(), err
}

// withClose closes c and gives err, or else the error of closing.
func withClose(err error, c io.Closer) error {
	if cerr := c.Close(); err == nil {
		return cerr
	}
	return err
}
