package archive

import (
	"context"
	"fmt"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// AnnotationImageName of a descriptor in index.json is an image's full name, as containerd has it (images.AnnotationImageName).
const AnnotationImageName = annotationImageName

// Place tells, for errors, where the manifest of a number in Manifests stands.
func (l *Layout) Place(i int) string {
	if l.Format == FormatDocker {
		return fmt.Sprintf("read %s: image %d", dockerManifestFile, l.images[i])
	}
	return inIndex(i)
}

// ReadIndex fetches an index and checks it.
func ReadIndex(ctx context.Context, fetch Fetch, d ocispec.Descriptor) (ocispec.Index, error) {
	data, err := fetchBounded(ctx, fetch, d, MaxManifestBytes)
	if err != nil {
		return ocispec.Index{}, err
	}
	idx, err := decodeIndex(data, d.MediaType)
	if err != nil {
		return idx, fmt.Errorf("read index %s: %w", d.Digest, err)
	}
	return idx, nil
}

// ReadReferrer fetches the manifest of an attestation or artifact: its config and layers may be of any type.
func ReadReferrer(ctx context.Context, fetch Fetch, d ocispec.Descriptor) (ocispec.Manifest, error) {
	data, err := fetchBounded(ctx, fetch, d, MaxManifestBytes)
	if err != nil {
		return ocispec.Manifest{}, err
	}
	m, err := decodeManifest(data, d.MediaType)
	if err != nil {
		return m, fmt.Errorf("read manifest %s: %w", d.Digest, err)
	}
	return m, nil
}

// Subject is the digest of the image that buildkit's attestation d in an index is about; "" for other descriptors.
func Subject(d ocispec.Descriptor) string { return d.Annotations[annotationReferenceDigest] }

// annotationReferenceDigest stands beside annotationReference.
const annotationReferenceDigest = "vnd.docker.reference.digest"

// IsIndex tells whether a media type is an index's, OCI's or docker's.
func IsIndex(mediaType string) bool { return isIndex(mediaType) }

// IsManifest tells whether a media type is a manifest's, OCI's or docker's.
func IsManifest(mediaType string) bool { return isManifest(mediaType) }
