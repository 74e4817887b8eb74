// Package stored reads images out of containerd, to be written into an archive. It changes nothing.
//
//	s, err := stored.Find(ctx, stored.Containerd{Namespace: "k8s.io", Content: content, Images: images}, "app:1", "team/*")
//	data, err := s.ReadBlob(ctx, s.Manifests[0], archive.MaxManifestBytes)
package stored

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/importer/check"
	"github.com/tarlift/tarlift/internal/importer/daemon"
	"github.com/tarlift/tarlift/internal/source"
)

// Containerd is where images are.
type Containerd struct {
	Namespace string
	Content   content.Store
	Images    images.Store
}

// Images are those of containerd's namespace that were asked for.
type Images struct {
	// Manifests have the images' names as containerd's annotation.
	Manifests []ocispec.Descriptor

	from Containerd
	mu   sync.Mutex
	read int64 // bytes of metadata so far
}

// Find finds images: by a name, as it is there or as the short form of it, or by a glob on names, as archive.Selection has
// them. Of names below a glob the ids that CRI keeps are left out, and name@digest where another name tells as much. The
// error is source.ErrNotFound for what matches none.
func Find(ctx context.Context, from Containerd, refs ...string) (*Images, error) {
	s := &Images{from: from}
	list, err := from.Images.List(s.in(ctx))
	if err != nil {
		return nil, daemon.Error("list images", err)
	}
	slices.SortFunc(list, func(a, b images.Image) int { return strings.Compare(a.Name, b.Name) })
	for _, ref := range refs {
		found, err := matching(list, ref)
		if err != nil {
			return nil, err
		}
		if len(found) == 0 {
			return nil, fmt.Errorf("image %.200q is not in namespace %q of containerd: %w", ref, from.Namespace, source.ErrNotFound)
		}
		s.Manifests = append(s.Manifests, found...)
	}
	return s, nil
}

func matching(list []images.Image, ref string) ([]ocispec.Descriptor, error) {
	if strings.Contains(ref, "*") {
		return matchingGlob(list, ref)
	}
	full := ref
	if named, err := reference.ParseDockerRef(ref); err == nil {
		full = named.String()
	}
	for _, name := range []string{ref, full} {
		for _, img := range list {
			if img.Name == name {
				return []ocispec.Descriptor{namedTarget(img)}, nil
			}
		}
	}
	return nil, nil
}

// matchingGlob leaves out what no name of an archive can be.
func matchingGlob(list []images.Image, glob string) ([]ocispec.Descriptor, error) {
	selection := archive.Selection{Include: []string{glob}}
	if err := selection.Validate(); err != nil {
		return nil, err
	}
	var found []ocispec.Descriptor
	tagged := map[string]bool{} // repositories with digests that a tag has
	for _, img := range list {
		d := namedTarget(img)
		if named, err := selection.Select([]ocispec.Descriptor{d}); err != nil || len(named) == 0 {
			continue
		}
		found = append(found, d)
		if repository, ok := repositoryOf(img.Name); ok {
			tagged[repository+"@"+d.Digest.String()] = true
		}
	}
	return slices.DeleteFunc(found, func(d ocispec.Descriptor) bool { return tagged[d.Annotations[archive.AnnotationImageName]] }), nil
}

// repositoryOf a name that has no digest.
func repositoryOf(name string) (string, bool) {
	named, err := reference.ParseDockerRef(name)
	if err != nil {
		return "", false
	}
	_, byDigest := named.(reference.Digested)
	return named.Name(), !byDigest
}

func namedTarget(img images.Image) ocispec.Descriptor {
	return ocispec.Descriptor{
		MediaType: img.Target.MediaType, Digest: img.Target.Digest, Size: img.Target.Size, Platform: img.Target.Platform,
		Annotations: map[string]string{archive.AnnotationImageName: img.Name},
	}
}

func (s *Images) in(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, s.from.Namespace)
}

// String names where they are.
func (s *Images) String() string {
	return fmt.Sprintf("containerd (namespace %q)", s.from.Namespace)
}

// absent is archive.ErrMissing for a blob that containerd lacks.
type absent digest.Digest

func (a absent) Error() string {
	return fmt.Sprintf("blob %s is not in containerd, which keeps no blobs of other platforms, "+
		"and may keep no layers that it has unpacked (discard_unpacked_layers)", string(a))
}

func (absent) Is(target error) bool { return target == archive.ErrMissing }

// ReadBlob gives metadata of at most limit bytes, verified.
func (s *Images) ReadBlob(ctx context.Context, d ocispec.Descriptor, limit int64) ([]byte, error) {
	data, err := check.ReadBlob(s.in(ctx), s.from.Content, d.Digest, limit)
	if errdefs.IsNotFound(err) {
		return nil, absent(d.Digest)
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
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.read += int64(len(data)); s.read > archive.MaxReadBytes {
		return nil, fmt.Errorf("more than %d MiB of indexes, manifests and configs, choose fewer images: %w",
			archive.MaxReadBytes>>20, archive.ErrLimit)
	}
	return data, nil
}

// Size of a blob in bytes. The error is archive.ErrMissing when it is not there.
func (s *Images) Size(ctx context.Context, d digest.Digest) (int64, error) {
	info, err := s.from.Content.Info(s.in(ctx), d)
	if errdefs.IsNotFound(err) {
		return 0, absent(d)
	}
	if err != nil {
		return 0, daemon.Error("look up "+d.String(), err)
	}
	return info.Size, nil
}

// Open reads a blob; what is read is not verified.
func (s *Images) Open(ctx context.Context, d digest.Digest) (io.ReadCloser, error) {
	ra, err := s.from.Content.ReaderAt(s.in(ctx), ocispec.Descriptor{Digest: d})
	if errdefs.IsNotFound(err) {
		return nil, absent(d)
	}
	if err != nil {
		return nil, daemon.Error("read blob "+d.String(), err)
	}
	return reader{content.NewReader(ra), ra}, nil
}

type reader struct {
	io.Reader
	io.Closer
}

// Read tells what an error of containerd means.
func (r reader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != nil && err != io.EOF { //nolint:errorlint // a reader's end is io.EOF itself
		err = daemon.Error("read", err)
	}
	return n, err
}
