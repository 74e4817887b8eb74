package importer

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/importer/check"
	"github.com/tarlift/tarlift/internal/importer/daemon"
	"github.com/tarlift/tarlift/internal/source"
)

// Stored are images of containerd's namespace, to be written into an archive.
type Stored struct {
	// Manifests have the images' names as containerd's annotation.
	Manifests []ocispec.Descriptor

	importer *Importer
	read     atomic.Int64 // bytes of metadata so far
}

// Stored finds images: by a name, as it is there or as the short form of it, or by a glob on names, as archive.Selection has
// them. Of names below a glob the ids that CRI keeps are left out, and name@digest where a tag of the same repository has that
// digest. The error is source.ErrNotFound for what matches none.
func (i *Importer) Stored(ctx context.Context, ref string) (*Stored, error) {
	list, err := i.services.images.List(i.in(ctx))
	if err != nil {
		return nil, daemon.Error("list images", err)
	}
	s := &Stored{importer: i}
	if strings.Contains(ref, "*") {
		s.Manifests, err = matchingGlob(list, ref)
	} else {
		s.Manifests = matchingName(list, ref)
	}
	if err == nil && len(s.Manifests) == 0 {
		err = fmt.Errorf("image %.200q is not in namespace %q of containerd: %w", ref, i.options.Namespace, source.ErrNotFound)
	}
	return s, err
}

func matchingName(list []images.Image, ref string) []ocispec.Descriptor {
	names := []string{ref}
	if named, err := reference.ParseDockerRef(ref); err == nil {
		names = append(names, named.String())
	}
	for _, name := range names {
		if k := slices.IndexFunc(list, func(img images.Image) bool { return img.Name == name }); k >= 0 {
			return []ocispec.Descriptor{namedTarget(list[k])}
		}
	}
	return nil
}

// matchingGlob leaves out what no name of an archive can be.
func matchingGlob(list []images.Image, glob string) ([]ocispec.Descriptor, error) {
	selection := archive.Selection{Include: []string{glob}}
	if err := selection.Validate(); err != nil {
		return nil, err
	}
	slices.SortFunc(list, func(a, b images.Image) int { return strings.Compare(a.Name, b.Name) })
	var found []ocispec.Descriptor
	tagged := map[string]bool{} // name@digest for each tag
	for _, img := range list {
		d := namedTarget(img)
		if selected, err := selection.Select([]ocispec.Descriptor{d}); err != nil || len(selected) == 0 {
			continue
		}
		found = append(found, d)
		if named, err := reference.ParseDockerRef(img.Name); err == nil {
			if _, ok := named.(reference.Digested); !ok {
				tagged[named.Name()+"@"+d.Digest.String()] = true
			}
		}
	}
	return slices.DeleteFunc(found, func(d ocispec.Descriptor) bool { return tagged[d.Annotations[archive.AnnotationImageName]] }), nil
}

func namedTarget(img images.Image) ocispec.Descriptor {
	return ocispec.Descriptor{
		MediaType: img.Target.MediaType, Digest: img.Target.Digest, Size: img.Target.Size, Platform: img.Target.Platform,
		Annotations: map[string]string{archive.AnnotationImageName: img.Name},
	}
}

// String names where the images are.
func (s *Stored) String() string {
	return fmt.Sprintf("containerd (namespace %q)", s.importer.options.Namespace)
}

// storedError is archive.ErrMissing for a blob that containerd lacks.
func storedError(d digest.Digest, err error) error {
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("blob %s is not in containerd, which keeps no blobs of other platforms, "+
			"and may keep no layers that it has unpacked (discard_unpacked_layers): %w", d, archive.ErrMissing)
	}
	return daemon.Error("read blob "+d.String(), err)
}

// ReadBlob gives metadata of at most limit bytes, verified.
func (s *Stored) ReadBlob(ctx context.Context, d ocispec.Descriptor, limit int64) ([]byte, error) {
	data, err := check.ReadBlob(s.importer.in(ctx), s.importer.services.content, d.Digest, limit)
	switch {
	case err != nil:
		return nil, storedError(d.Digest, err)
	case d.Digest.Algorithm().FromBytes(data) != d.Digest:
		return nil, fmt.Errorf("blob %s has another digest: %w", d.Digest, archive.ErrDigestMismatch)
	case int64(len(data)) != d.Size:
		return nil, fmt.Errorf("blob %s: size: its descriptor says %d, it has %d bytes: %w", d.Digest, d.Size, len(data), archive.ErrInvalid)
	case s.read.Add(d.Size) > archive.MaxReadBytes:
		return nil, fmt.Errorf("more than %d MiB of indexes, manifests and configs, choose fewer images: %w",
			archive.MaxReadBytes>>20, archive.ErrLimit)
	}
	return data, nil
}

// Size of a blob in bytes. The error is archive.ErrMissing when it is not there.
func (s *Stored) Size(ctx context.Context, d digest.Digest) (int64, error) {
	info, err := s.importer.services.content.Info(s.importer.in(ctx), d)
	return info.Size, storedError(d, err)
}

// Open reads a blob; what is read is not verified.
func (s *Stored) Open(ctx context.Context, d digest.Digest) (io.ReadCloser, error) {
	ra, err := s.importer.services.content.ReaderAt(s.importer.in(ctx), ocispec.Descriptor{Digest: d})
	if err != nil {
		return nil, storedError(d, err)
	}
	return struct {
		io.Reader
		io.Closer
	}{content.NewReader(ra), ra}, nil
}
