package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/bundle"
	"github.com/tarlift/tarlift/internal/source"
)

// layoutDirectory is the path of a directory with an OCI layout. Its files are opened when they are needed, and no link is
// followed.
type layoutDirectory string

// openLayoutDir reads oci-layout and index.json.
func openLayoutDir(ctx context.Context, path string) (bundle.Input, error) {
	dir := layoutDirectory(path)
	manifests, err := dir.manifests(ctx)
	if err != nil {
		return bundle.Input{}, fmt.Errorf("directory %q: %w", path, err)
	}
	return bundle.Input{Name: path, Manifests: manifests, Place: archive.PlaceInIndex, Blobs: dir}, nil
}

func (dir layoutDirectory) manifests(ctx context.Context) ([]ocispec.Descriptor, error) {
	var files [2][]byte
	for i, name := range []string{ocispec.ImageLayoutFile, ocispec.ImageIndexFile} {
		var err error
		files[i], err = dir.read(ctx, name, archive.MaxManifestBytes)
		if errors.Is(err, source.ErrNotFound) {
			return nil, fmt.Errorf("it is no OCI layout, since it has no file %s: %w", name, archive.ErrInvalid)
		}
		if err != nil {
			return nil, err
		}
	}
	return archive.DecodeOCI(files[0], files[1])
}

func (dir layoutDirectory) open(ctx context.Context, name string) (source.Blob, error) {
	file, err := source.OpenUnder(ctx, string(dir), name)
	if errors.Is(err, source.ErrInvalid) { // a link, or no regular file
		return nil, fmt.Errorf("%s: %w", err.Error(), archive.ErrInvalid)
	}
	return file, err
}

// read returns a file of at most limit bytes.
func (dir layoutDirectory) read(ctx context.Context, name string, limit int64) ([]byte, error) {
	file, err := dir.open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if file.Size() > limit {
		return nil, fmt.Errorf("file %q has %d bytes, at most %d are read: %w", name, file.Size(), limit, archive.ErrLimit)
	}
	return io.ReadAll(io.NewSectionReader(file, 0, file.Size())) //nolint:wrapcheck // the file names itself
}

// blobFile is the path of a blob in the directory.
func blobFile(d digest.Digest) string {
	return path.Join(ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

// ReadBlob implements bundle.Blobs.
func (dir layoutDirectory) ReadBlob(ctx context.Context, d ocispec.Descriptor, limit int64) ([]byte, error) {
	data, err := dir.read(ctx, blobFile(d.Digest), limit)
	if errors.Is(err, source.ErrNotFound) {
		return nil, archive.ErrMissing
	}
	if err != nil {
		return nil, err
	}
	if got := d.Digest.Algorithm().FromBytes(data); got != d.Digest {
		return nil, fmt.Errorf("blob %s has digest %s: %w", d.Digest, got, archive.ErrDigestMismatch)
	}
	if int64(len(data)) != d.Size {
		return nil, fmt.Errorf("blob %s: size: its descriptor says %d, it has %d bytes: %w", d.Digest, d.Size, len(data), archive.ErrInvalid)
	}
	return data, nil
}

// Find implements bundle.Blobs. A layout may have thousands of files: none stays open.
func (dir layoutDirectory) Find(ctx context.Context, d digest.Digest) (bundle.Blob, error) {
	name := blobFile(d)
	file, err := dir.open(ctx, name)
	if errors.Is(err, source.ErrNotFound) {
		return bundle.Blob{}, archive.ErrMissing
	}
	if err != nil {
		return bundle.Blob{}, err
	}
	defer file.Close()
	return bundle.Blob{Member: name, Size: file.Size(), Open: func(ctx context.Context) (io.ReadCloser, error) {
		file, err := dir.open(ctx, name)
		if err != nil {
			return nil, err
		}
		return struct {
			io.Reader
			io.Closer
		}{io.NewSectionReader(file, 0, file.Size()), file}, nil
	}}, nil
}
