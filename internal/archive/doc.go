// Package archive reads image archives: OCI layouts and docker archives in a tar. It knows what the bytes mean, not where
// they come from and not where they go.
//
// # An OCI layout
//
// Written by podman, skopeo, buildah, umoci, buildkit, ctr, crane, regctl (OCI image specification, image-layout.md):
//
//	oci-layout             {"imageLayoutVersion":"1.0.0"}
//	index.json             an index: one descriptor for each name
//	blobs/sha256/<hex>     manifests, nested indexes, configs, layers
//
// index.json names images by annotations. Tools disagree about them:
//
//	io.containerd.image.name             example.com/app:1   buildkit, ctr
//	org.opencontainers.image.ref.name    example.com/app:1   podman, skopeo, crane
//	org.opencontainers.image.ref.name    1                   umoci, skopeo oci:dir:1: needs Selection.BaseName
//	none                                                     needs Selection.BaseName
//
// Blobs may be absent: `ctr images export` leaves out those of platforms that were not asked for, but keeps the index that
// names them.
//
// # A docker archive
//
//	manifest.json          [{"Config":"<hex>.json","RepoTags":["app:1"],"Layers":["<id>/layer.tar"]}]
//	<hex>.json             the config; its rootfs.diff_ids are the layers' digests
//	<id>/layer.tar         Docker before 25; a layer that is there already is a symlink
//	<hex>.tar              podman, skopeo
//	<hex>.tar.gz           crane, ko, kaniko, jib: a compressed layer and its digest
//	blobs/…/<hex>.tar.gz   rules_oci of Bazel: the same
//	blobs/sha256/<hex>     Docker since 25, regctl: with oci-layout beside it, which wins
//
// It has neither manifests nor an index, so Decode makes them, with the bytes that containerd makes. After that all
// archives are layouts:
//
//	tree, err := archive.ReadTree(ctx, blob, size)    // or StreamTree
//	layout, err := archive.Decode(ctx, tree)
//	images, err := layout.Select(selection)
//	resolver := &archive.Resolver{Fetch: fetch}
//	platforms, err := resolver.PlatformManifests(ctx, images[0].Target)
//	manifest, err := archive.ReadManifest(ctx, fetch, platforms[0].Descriptor)
//	extent, ok := layout.Locate(manifest.Layers[0].Digest)
//
// With random access it reads headers and metadata only, and compressed layers of docker archives whose names claim no
// digest. It reads a stream in one pass, and puts all blobs into a Sink.
//
// What an archive says is not trusted: metadata is bounded (limits.go) and verified by digest, documents that two readers
// could understand differently are refused, and text from the archive is quoted and shortened in errors.
package archive
