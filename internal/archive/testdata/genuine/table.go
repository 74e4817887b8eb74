package genuine

const (
	oci    = "oci"
	docker = "docker"

	// Names that several tools wrote.
	nameless = BaseName + "@"
	web      = "docker.io/library/web:1.0"
	localWeb = "localhost/web:1.0"
	app      = "localhost:5000/team/app:1.0"
	tool     = "localhost:5000/team/tool:2.1"
	attested = "localhost:5000/team/attested:1.0"
	appCopy  = "registry.example/team/app:1.0"
	webCopy  = "registry.example/team/web:1.0"

	// Platforms of app, and of what buildkit built.
	appPlatforms = "linux/amd64 linux/arm64 linux/arm/v7"
	webPlatforms = "linux/amd64 linux/arm64"
)

// dockerImages are what docker29 saved in one archive.
var dockerImages = []Image{
	{Name: web}, {Name: "docker.io/library/web:latest"}, {Name: "registry.example:5000/team/web:1.0"}, {Name: "docker.io/library/web-child:1.0"},
}

var table = []Archive{
	{File: "docker20-one.tar", Why: "the classic layout: a directory a layer, a config named by its digest", Format: docker,
		Images: []Image{{Name: web}}},
	{File: "docker20-repository.tar", Why: "a repository without tag means all its tags", Format: docker,
		Images: []Image{{Name: web}, {Name: "docker.io/library/web:latest"}}},
	{File: "docker20-images.tar", Why: "a shared layer is a symlink that comes before its target; a registry with a port", Format: docker,
		Images: []Image{{Name: web}, {Name: "registry.example:5000/team/web:1.0"}, {Name: "docker.io/library/web-child:1.0"}}},
	{File: "docker20-id.tar", Why: "saved by id: RepoTags is null", Format: docker, NeedsBaseName: true,
		Images: []Image{{Name: nameless}}},
	{File: "docker20-images.tar.gz", Why: "compressed as a whole, as a pipe from docker save is", Format: docker,
		Images: []Image{{Name: web}, {Name: "docker.io/library/web-child:1.0"}}},
	{File: "docker20-images.tar.zst", Why: "compressed as a whole, as k3s ships its images", Format: docker,
		Images: []Image{{Name: web}, {Name: "docker.io/library/web-child:1.0"}}},

	{File: "docker29-one.tar", Why: "both layouts in one, from containerd's store", Format: oci,
		Images: []Image{{Name: web}}},
	{File: "docker29-images.tar", Why: "several names and images", Format: oci, Images: dockerImages},
	{File: "docker29-id.tar", Why: "saved by id: RepoTags is null and index.json has no annotations", Format: oci, NeedsBaseName: true,
		Images: []Image{{Name: nameless}}},
	{File: "docker29-multi.tar", Why: "two platforms with attestations; manifest.json names one of them", Format: oci,
		Images: []Image{{Name: webCopy, Platforms: webPlatforms}}},
	{File: "docker29-platform.tar", Why: "the attestation is beside the image in index.json, without a name", Format: oci, Node: "linux/arm64",
		Images: []Image{{Name: webCopy, Platforms: "linux/arm64"}}},
	{File: "docker29-graph-one.tar", Why: "both layouts in one, from a graph driver: uncompressed layers, legacy configs as blobs", Format: oci,
		Images: []Image{{Name: web}}},
	{File: "docker29-graph-images.tar", Why: "several names and images", Format: oci, Images: dockerImages},
	{File: "docker29-graph-id.tar", Why: "saved by id", Format: oci, NeedsBaseName: true,
		Images: []Image{{Name: nameless}}},

	{File: "podman-docker.tar", Why: "layers by digest, and links to them in the classic place", Format: docker,
		Images: []Image{{Name: localWeb}}},
	{File: "podman-docker-tags.tar", Why: "two names of one image", Format: docker,
		Images: []Image{{Name: localWeb}, {Name: webCopy}}},
	{File: "podman-docker-images.tar", Why: "several images", Format: docker,
		Images: []Image{{Name: localWeb}, {Name: webCopy}, {Name: "localhost/web-child:1.0"}}},
	{File: "podman-oci.tar", Why: "the full name is in org.opencontainers.image.ref.name", Format: oci,
		Images: []Image{{Name: localWeb}}},
	{File: "podman-oci-id.tar", Why: "saved by id: no annotation at all", Format: oci, NeedsBaseName: true,
		Images: []Image{{Name: nameless}}},
	{File: "podman-manifest.tar", Why: "a manifest list that podman made", Format: oci,
		Images: []Image{{Name: "registry.example/team/multi:1.0", Platforms: appPlatforms}}},

	{File: "skopeo-oci-tag.tar", Why: "only a tag in org.opencontainers.image.ref.name", Format: oci, NeedsBaseName: true,
		Images: []Image{{Name: BaseName + ":1.0"}}},
	{File: "skopeo-oci-name.tar", Why: "a full name there", Format: oci,
		Images: []Image{{Name: appCopy}}},
	{File: "skopeo-oci-nameless.tar", Why: "no name", Format: oci, NeedsBaseName: true,
		Images: []Image{{Name: nameless}}},
	{File: "skopeo-oci-all.tar", Why: "an index with all its platforms", Format: oci,
		Images: []Image{{Name: appCopy, Platforms: appPlatforms}}},
	{File: "skopeo-oci-zstd.tar", Why: "layers in zstd", Format: oci,
		Images: []Image{{Name: "registry.example/team/tool:2.1"}}},
	{File: "skopeo-layout-mixed.tar", Why: "a layout directory in a tar, ./ before names; a bare tag beside a full name", Format: oci, NeedsBaseName: true,
		Images: []Image{{Name: BaseName + ":1.0"}, {Name: "registry.example/team/tool:2.1"}}},
	{File: "skopeo-docker.tar", Why: "two tags by skopeo", Format: docker,
		Images: []Image{{Name: appCopy}, {Name: "registry.example/team/app:latest"}}},
	{File: "skopeo-docker-nameless.tar", Why: "RepoTags is an empty list", Format: docker, NeedsBaseName: true,
		Images: []Image{{Name: nameless}}},

	{File: "buildah-oci-tag.tar", Why: "only a tag", Format: oci, NeedsBaseName: true,
		Images: []Image{{Name: BaseName + ":1.0"}}},
	{File: "buildah-oci-name.tar", Why: "a familiar name, web:1.0, that ctr does not complete", Format: oci,
		Images: []Image{{Name: web, CtrName: "web:1.0"}}},
	{File: "buildah-docker.tar", Why: "the name that was asked for and the one in buildah's store", Format: docker,
		Images: []Image{{Name: web}, {Name: localWeb}}},

	{File: "umoci-tags.tar", Why: "bare tags, two of one image; ./ before names", Format: oci, NeedsBaseName: true,
		Images: []Image{{Name: BaseName + ":1.0"}, {Name: BaseName + ":latest"}, {Name: BaseName + ":1.1"}}},

	{File: "crane-tarball.tar", Why: "compressed layers at the top, a config named sha256:<digest>", Format: docker,
		Images: []Image{{Name: app}}},
	{File: "crane-tarball-images.tar", Why: "images that share a layer", Format: docker,
		Images: []Image{{Name: app}, {Name: tool}}},
	{File: "crane-legacy.tar", Why: "the classic layout as go-containerregistry writes it", Format: docker,
		Images: []Image{{Name: app}}},
	{File: "crane-append.tar", Why: "an image with a layer more, never in a registry", Format: docker,
		Images: []Image{{Name: "registry.example/team/appended:1.0"}}},
	{File: "crane-append-empty.tar", Why: "its config names no platform; ctr too says that it might be filtered out", Refused: true,
		Images: []Image{{Name: "registry.example/team/appended:1.0"}}},
	{File: "crane-oci-nameless.tar", Why: "an index without name", Format: oci, NeedsBaseName: true,
		Images: []Image{{Name: nameless, Platforms: appPlatforms}}},
	{File: "crane-oci-images.tar", Why: "artifactType is set on images, to the media type of their config", Format: oci,
		Images: []Image{{Name: app, Platforms: appPlatforms}, {Name: "localhost:5000/team/app:amd64"}, {Name: tool}}},

	{File: "regctl-single.tar", Why: "both layouts in one; manifest.json names blobs/sha256/…", Format: oci,
		Images: []Image{{Name: tool}}},
	{File: "regctl-name.tar", Why: "another name than the source's", Format: oci,
		Images: []Image{{Name: appCopy}}},
	{File: "regctl-index.tar", Why: "an index, so no manifest.json", Format: oci,
		Images: []Image{{Name: app, Platforms: appPlatforms}}},
	{File: "regctl-compress.tar.gz", Why: "compressed by the tool itself", Format: oci,
		Images: []Image{{Name: app, Platforms: appPlatforms}}},
	{File: "regctl-platform.tar", Why: "io.containerd.image.name is name:tag@digest", Format: oci, Node: "linux/arm64",
		Images: []Image{{Name: "localhost:5000/team/app@", CtrName: app + "@", Platforms: "linux/arm64"}}},
	{File: "regctl-ocidir.tar", Why: "a layout directory with bare tags", Format: oci, NeedsBaseName: true,
		Images: []Image{{Name: BaseName + ":1.0", Platforms: appPlatforms}, {Name: BaseName + ":2.1"}}},

	{File: "buildkit-oci.tar", Why: "the full name is in io.containerd.image.name, the tag in org.opencontainers.image.ref.name", Format: oci,
		Images: []Image{{Name: webCopy}}},
	{File: "buildkit-oci-nameless.tar", Why: "no name", Format: oci, NeedsBaseName: true,
		Images: []Image{{Name: nameless}}},
	{File: "buildkit-oci-names.tar", Why: "two names of one image", Format: oci,
		Images: []Image{{Name: webCopy}, {Name: "docker.io/library/web:latest"}}},
	{File: "buildkit-oci-multi.tar", Why: "two platforms", Format: oci,
		Images: []Image{{Name: webCopy, Platforms: webPlatforms}}},
	{File: "buildkit-oci-attest.tar", Why: "attestations beside the platforms", Format: oci,
		Images: []Image{{Name: webCopy, Platforms: webPlatforms}}},
	{File: "buildkit-oci-dockertypes.tar", Why: "docker's media types in an OCI layout", Format: oci,
		Images: []Image{{Name: webCopy, Platforms: webPlatforms}}},
	{File: "buildkit-oci-zstd.tar", Why: "layers in zstd", Format: oci,
		Images: []Image{{Name: webCopy}}},
	{File: "buildkit-oci-uncompressed.tar", Why: "layers without compression", Format: oci,
		Images: []Image{{Name: webCopy}}},
	{File: "buildkit-docker.tar", Why: "both layouts in one", Format: oci,
		Images: []Image{{Name: webCopy}}},
	{File: "buildkit-docker-nameless.tar", Why: "both layouts, RepoTags is null", Format: oci, NeedsBaseName: true,
		Images: []Image{{Name: nameless}}},

	{File: "ctr-single.tar", Why: "both layouts in one, docker's media types", Format: oci,
		Images: []Image{{Name: tool}}},
	{File: "ctr-all-platforms.tar", Why: "an index with all its platforms", Format: oci,
		Images: []Image{{Name: app, Platforms: appPlatforms}}},
	{File: "ctr-one-platform.tar", Why: "an index with the content of one platform, through the transfer service", Format: oci, Node: "linux/arm64",
		Images: []Image{{Name: app, Platforms: appPlatforms, Present: "linux/arm64"}}},
	{File: "ctr-one-platform-local.tar", Why: "the same by the client", Format: oci, Node: "linux/arm64",
		Images: []Image{{Name: app, Platforms: appPlatforms, Present: "linux/arm64"}}},
	{File: "ctr-pulled-one-platform.tar", Why: "the same of an image that was pulled for one platform", Format: oci, Node: "linux/arm64",
		Images: []Image{{Name: app, Platforms: appPlatforms, Present: "linux/arm64"}}},
	{File: "ctr-attested.tar", Why: "attestations beside the platforms", Format: oci,
		Images: []Image{{Name: attested, Platforms: webPlatforms}}},
	{File: "ctr-attested-one-platform.tar", Why: "one platform of an index with attestations", Format: oci,
		Images: []Image{{Name: attested, Platforms: webPlatforms, Present: "linux/amd64"}}},
	{File: "ctr-images.tar", Why: "several images, one of them partial, without manifest.json", Format: oci,
		Images: []Image{{Name: app, Platforms: appPlatforms, Present: "linux/amd64"}, {Name: tool}, {Name: "registry.example/team/tool:2.1"}}},
}
