package archive

import (
	"slices"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Docker's schema 2 media types (distribution, manifest/schema2), and those of layers that OCI has deprecated.
const (
	mediaTypeDockerSchema1    = "application/vnd.docker.distribution.manifest.v1+" // of Docker before 1.10: +json, +prettyjws
	mediaTypeDockerIndex      = "application/vnd.docker.distribution.manifest.list.v2+json"
	mediaTypeDockerManifest   = "application/vnd.docker.distribution.manifest.v2+json"
	mediaTypeDockerConfig     = "application/vnd.docker.container.image.v1+json"
	mediaTypeDockerLayer      = "application/vnd.docker.image.rootfs.diff.tar"
	mediaTypeDockerLayerGzip  = mediaTypeDockerLayer + ".gzip"
	mediaTypeDockerForeign    = "application/vnd.docker.image.rootfs.foreign.diff.tar"
	mediaTypeNonDistributable = "application/vnd.oci.image.layer.nondistributable.v1.tar"
)

// IsIndex says whether a media type is an index's, of OCI or docker.
func IsIndex(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageIndex || mediaType == mediaTypeDockerIndex
}

// IsManifest says whether a media type is a manifest's, of OCI or docker.
func IsManifest(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageManifest || mediaType == mediaTypeDockerManifest
}

func isConfig(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageConfig || mediaType == mediaTypeDockerConfig
}

// isLayer says whether containerd can unpack a layer of this media type.
func isLayer(mediaType string) bool {
	return slices.Contains([]string{
		ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd,
		mediaTypeNonDistributable, mediaTypeNonDistributable + "+gzip", mediaTypeNonDistributable + "+zstd",
		mediaTypeDockerLayer, mediaTypeDockerLayerGzip, mediaTypeDockerLayer + ".zstd",
		mediaTypeDockerForeign, mediaTypeDockerForeign + ".gzip",
	}, mediaType)
}

// AnnotationImageName on a descriptor of index.json is an image's full name (containerd's images.AnnotationImageName).
const AnnotationImageName = "io.containerd.image.name"

// Annotations of referrers: manifests about an image, such as signatures and attestations.
const (
	// buildkit's (docs/attestations/attestation-storage.md).
	annotationReference       = "vnd.docker.reference.type"
	annotationReferenceDigest = "vnd.docker.reference.digest"
	// containerd's images.AnnotationManifestSubject: `ctr images export` puts referrers beside the images.
	annotationSubject = "io.containerd.manifest.subject"
	// unknown is the operating system and architecture of attestations.
	unknown = "unknown"
)

// Subject is the digest of the image that buildkit's attestation d in an index is about; "" for other descriptors.
func Subject(d ocispec.Descriptor) string { return d.Annotations[annotationReferenceDigest] }

// isArtifact: go-containerregistry gives images their config's media type as artifactType.
func isArtifact(artifactType string) bool {
	return artifactType != "" && !isConfig(artifactType)
}

func isReferrer(d ocispec.Descriptor) bool {
	return isArtifact(d.ArtifactType) || d.Annotations[annotationReference] != "" || d.Annotations[annotationSubject] != "" ||
		d.Platform != nil && (d.Platform.OS == unknown || d.Platform.Architecture == unknown)
}
