package bundle

import (
	"context"
	"errors"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive"
)

// ErrNoPlatform is an image without any of the platforms that were asked for.
var ErrNoPlatform = errors.New("no image for these platforms")

// Input is images and where their blobs are.
type Input struct {
	// Name for errors: a path, a URL, containerd's namespace.
	Name string
	// Manifests as an index.json has them.
	Manifests []ocispec.Descriptor
	// Place tells where the manifest of a number stands.
	Place func(i int) string
	Blobs
}

// Blobs are the content of an input.
type Blobs interface {
	// ReadBlob gives metadata, verified against digest and size of d. The error is archive.ErrMissing when it is not
	// there, archive.ErrLimit above limit bytes.
	ReadBlob(ctx context.Context, d ocispec.Descriptor, limit int64) ([]byte, error)
	// Find tells where a blob is. The error is archive.ErrMissing when it is nowhere.
	Find(ctx context.Context, d digest.Digest) (Blob, error)
}

// Blob is bytes that nobody has verified yet.
type Blob struct {
	Member string // of an archive; "" where there is none
	Size   int64
	Open   func(ctx context.Context) (io.ReadCloser, error)
}

// Options choose.
type Options struct {
	// Selection chooses images by name and gives them their final names. There are no digest references: an import makes
	// them.
	Selection archive.Selection
	// Platforms to take: for each what a node of that platform would run. None: all that are in the inputs whole.
	Platforms []ocispec.Platform
}

// Bundle is an archive that can be written.
type Bundle struct {
	Images      []Image // sorted by name
	IndexDigest digest.Digest
	Size        int64 // of the archive in bytes

	head   []member // what comes before the layers
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

// member is a file of the archive that is in memory; without data a directory if its name ends in a slash.
type member struct {
	name string
	data []byte
}

// layer is a blob that is copied.
type layer struct {
	ocispec.Descriptor
	input string
	blob  Blob
}

// Make reads the inputs' metadata and chooses. What several inputs have is taken from the first of them, and what an image
// lacks in its own input may be in another: archives of an image for a platform each make one for all. The errors are those
// of package archive, ErrNoPlatform, and the inputs' own.
func Make(ctx context.Context, inputs []Input, o Options) (*Bundle, error) {
	p := &planner{inputs: inputs, options: o, images: map[digest.Digest]*image{}, leaves: map[leafKey]*leaf{}}
	p.walk.Fetch = p.fetch
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
