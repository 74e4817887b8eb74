package bundle

import (
	"context"
	"errors"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive"
)

// ErrNoPlatform is returned for an image without any of the chosen platforms.
var ErrNoPlatform = errors.New("no image for these platforms")

// Input is images, and the blobs that they need.
type Input struct {
	// Name in errors: a path, a URL, a namespace of containerd.
	Name string
	// Manifests as an index.json has them.
	Manifests []ocispec.Descriptor
	// Place describes, for errors, where the manifest with this index is.
	Place func(i int) string
	Blobs
}

// Blobs are the content of an input.
type Blobs interface {
	// ReadBlob returns metadata, verified against the digest and size of d. The error is archive.ErrMissing if there is
	// no such blob, and archive.ErrLimit above limit bytes.
	ReadBlob(ctx context.Context, d ocispec.Descriptor, limit int64) ([]byte, error)
	// Find returns a blob. The error is archive.ErrMissing if there is no such blob.
	Find(ctx context.Context, d digest.Digest) (Blob, error)
}

// Blob is bytes that are not verified.
type Blob struct {
	Member string // of an archive; "" if it is from none
	Size   int64
	Open   func(ctx context.Context) (io.ReadCloser, error)
}

// Options say which images of the inputs to write.
type Options struct {
	// Selection selects images by name and gives them their final names. DigestReferences is ignored: imports make them.
	Selection archive.Selection
	// Platforms to take: for each, what a node of that platform would run. None: all whose blobs are in the inputs.
	Platforms []ocispec.Platform
}

// Bundle is an archive to be written.
type Bundle struct {
	Images      []Image // sorted by name
	IndexDigest digest.Digest
	Size        int64 // of the archive in bytes

	head   []member // before the layers
	layers []layer
}

// Image is a name in a bundle.
type Image struct {
	Name      string        `json:"name"`
	Digest    digest.Digest `json:"digest"`
	Platforms []string      `json:"platforms"`
	// LeftOut are platforms of its index whose blobs are not in the bundle.
	LeftOut []string `json:"leftOut,omitempty"`
}

// member is a file of the archive that is in memory, or a directory if its name ends in a slash.
type member struct {
	name string
	data []byte
}

// layer is a blob to be copied.
type layer struct {
	ocispec.Descriptor
	input string
	blob  Blob
}

// Make reads the inputs' metadata and selects images. It takes a blob from the image's own input, else from any other: one
// archive for each platform of an image make a bundle for all of them. The errors are those of package archive,
// ErrNoPlatform, and the inputs' own.
func Make(ctx context.Context, inputs []Input, o Options) (*Bundle, error) {
	p := &planner{inputs: inputs, options: o, images: map[digest.Digest]*image{}, manifests: map[manifestKey]*manifest{}}
	p.resolver.Fetch = p.fetch
	named, err := p.names()
	if err != nil {
		return nil, err
	}
	for i := range named {
		if err := p.image(ctx, &named[i]); err != nil {
			return nil, err
		}
	}
	return p.bundle(named)
}
