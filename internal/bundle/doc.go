// Package bundle writes images from anywhere into one archive: an OCI layout in a tar, with docker's manifest.json beside it.
//
//	oci-layout
//	index.json              a descriptor for each name, sorted by name
//	manifest.json           for readers of docker archives: of each image one platform
//	blobs/, blobs/sha256/
//	blobs/sha256/<hex>      indexes, manifests and configs, image by image
//	blobs/sha256/<hex>      layers: by platform, and such as begin alike side by side, what they share first
//
// Whoever reads such an archive once from start to end knows after its first bytes what is in it and what of that
// will be needed. The bytes depend on the images and the choice among them only: not on the order of inputs, the time, the
// machine or its user. Names are full ones, in both annotations that tools look at:
//
//	io.containerd.image.name             registry.example/app:1   containerd, docker, podman
//	org.opencontainers.image.ref.name    registry.example/app:1   skopeo, podman, crane
//
// An index stays whole: where some of its platforms are left out, it is written as it is and their blobs are not, so that the
// digest of a name is the one that the registry had, and name@digest means the same everywhere.
package bundle
