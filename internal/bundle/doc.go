// Package bundle writes images from anywhere into one archive: an OCI layout in a tar, with docker's manifest.json beside it.
//
//	oci-layout
//	index.json              a descriptor for each name, sorted by name
//	manifest.json           for readers of docker archives: of each image one platform
//	blobs/, blobs/sha256/
//	blobs/sha256/<hex>      indexes, manifests and configs, image by image
//	blobs/sha256/<hex>      layers: by platform; images that begin alike follow each other, shared layers first
//
// A reader of the stream knows after the first bytes what the archive has and what of that it needs. The bytes depend only
// on the images and the options: not on the order of inputs, the time, the machine or its user. Names are full ones, in both
// annotations that tools read:
//
//	io.containerd.image.name             registry.example/app:1   containerd, docker, podman
//	org.opencontainers.image.ref.name    registry.example/app:1   skopeo, podman, crane
//
// An index stays whole: if some of its platforms are left out, their blobs are not written, but the index is written as it
// is. So a name has the digest that it has in the registry, and name@digest means the same everywhere.
package bundle
