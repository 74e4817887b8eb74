package archive

// Bounds on what is taken from an archive. All that an archive can make this package hold in memory is bounded by them,
// so that an agent that reads one as large as they allow, and others beside it, stays below 128 MiB.
const (
	// MaxMembers: an image has 5 to 130 blobs; the largest bundles seen have some thousands. An entry takes about 150
	// bytes: 15 MB.
	MaxMembers = 100_000
	// MaxMetadataBytes is the sum of all indexes, manifests, configs, member names and links. Real archives have less
	// than a tenth of it.
	MaxMetadataBytes = 16 << 20
	// MaxReadBytes of metadata in all, where a document counts each time it is read, with ValueBytes for each of its
	// values. An import reads a document some four times, one that images share as often for each of them: this is
	// twice as much, and takes some seconds.
	MaxReadBytes = 8 * MaxMetadataBytes
	// MaxManifestBytes of one index or manifest. Registries refuse larger ones (OCI distribution spec: "at least 4
	// megabytes").
	MaxManifestBytes = 4 << 20
	// MaxConfigBytes: containerd and registries read configs up to 8 MiB.
	MaxConfigBytes = 8 << 20
	// MaxTarHeaderBytes of the extended headers (PAX, GNU long names) of one member. archive/tar bounds a single one by
	// the same number.
	MaxTarHeaderBytes = 1 << 20
	// MaxMemberName is PATH_MAX of Linux.
	MaxMemberName = 4096
	// MaxPaddingBytes of zeros after the end of a tar. tar fills records of 10 KiB; other tools fill to the block size
	// of a medium, some MiB at most.
	MaxPaddingBytes = 16 << 20
	// MaxValues of JSON in one document: objects, lists, and what is behind a comma. 4,096 descriptors with all that
	// tools write into them have some 60,000. Decoded, a value of two bytes takes up to 120, twice: 24 MB.
	MaxValues = 100_000
	// ValueBytes is how many bytes of a long string are decoded in the time that a value of two takes.
	ValueBytes = 32
	// MaxNames of images in one archive: more than all images of the largest bundles seen, four times over.
	MaxNames = 4096
	// MaxNameBytes of an image's name: host and port of 260, a repository of 255, a tag of 128 and the longest digest
	// come to 780.
	MaxNameBytes = 1024
	// MaxDescriptors of one index.
	MaxDescriptors = 4096
	// MaxPlatformBytes of one descriptor's platform, with 16 for each of its features. The longest in use name a version
	// of Windows and a feature. What is read of a descriptor below a name is little more.
	MaxPlatformBytes = 256
	// MaxLayers of one manifest: overlayfs takes 500 lower directories, Docker 127.
	MaxLayers = 512
	// MaxRepeatedBytes of manifests and indexes below all names of an archive that are visited again, each VisitBytes at
	// least. A thousand names that share all twenty platforms come to 40 MB.
	MaxRepeatedBytes = 4 * MaxMetadataBytes
	VisitBytes       = 640
	// MaxDepth of indexes in indexes. Tools make one or two.
	MaxDepth = 8
	// MaxExpansion is output over input of an outer compression, once the output is past ExpansionGraceBytes. A tar of
	// real images shrinks 2 to 5 times, one of zeros by gzip 1000 times.
	MaxExpansion = 200
	// ExpansionGraceBytes: small archives may have any ratio.
	ExpansionGraceBytes = 64 << 20
	// MaxWindowBytes of zstd (--long=25, what k3s ships): the decoder holds about 1.1 times as much.
	MaxWindowBytes = 32 << 20
	// usualWindow is what zstd uses without --long, at its highest level.
	usualWindow = 8 << 20
	// SmallMetadataBytes and smallMembers are what most archives stay below: a bundle of 100 images has half as much. Larger
	// ones are read one at a time where memory is short, see WithReserve.
	SmallMetadataBytes = 1 << 20
	smallMembers       = 4096
)
