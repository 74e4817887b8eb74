package corpus

import (
	"github.com/tarlift/tarlift/internal/archive/builder"
)

// platformCases are images that are not, or not only, of the node's platform.
func platformCases() []Case {
	node := func(c Case) Case { c.Sight = Node; return c }
	foreign := node(of(NoMatchingPlatform, "only other platforms", archiveOf(nil, image(appName, "linux/arm64", "linux/s390x")), "linux/arm64", "linux/s390x", "linux/amd64"))
	windows := node(of(NoMatchingPlatform, "only another system", archiveOf(nil, image(appName, "windows/amd64")), "windows", "linux/amd64"))
	return []Case{
		foreign, windows, mixed(), partial(), node(absentPlatform()), absentConfig(),
		lying("an index that says linux/amd64 of an image of linux/arm64", true),
		lying("index.json that says linux/amd64 of an image of linux/arm64", false),
	}
}

// mixed has images of this platform and of others: what is of this one is published.
func mixed() Case {
	const other, both = "registry.example/team/arm:1", "registry.example/team/both:1"
	b := must(builder.Archive{Images: []builder.Image{image(appName, "linux/amd64"), image(other, "linux/arm64"), image(both, "linux/amd64", "linux/arm64")}}.Build())
	defer b.Close()
	return accepted(of("", "images of this platform, of another, and of both", must(b.Bytes())), published(b, 0, appName), published(b, 2, both))
}

// partial lacks the other platform's blobs, as `ctr images export` leaves them out.
func partial() Case {
	img := image(appName, "linux/amd64", "linux/arm64")
	img.Platforms[1].Absent = true
	b := must(builder.Archive{Images: []builder.Image{img}}.Build())
	defer b.Close()
	return accepted(of("", "an index whose other platform is absent", must(b.Bytes())), published(b, 0, appName))
}

// absentPlatform has only blobs of linux/arm64, below an index of linux/amd64 too: `bundle --platform linux/arm64` makes it.
func absentPlatform() Case {
	img := image(appName, "linux/amd64", "linux/s390x", "linux/arm64")
	img.Platforms[0].Absent, img.Platforms[1].Absent = true, true
	return of(NoMatchingPlatform, "an index of this platform too, whose blobs are those of another alone", archiveOf(nil, img),
		`for "linux/arm64" only`, `"linux/amd64"`)
}

// absentConfig has lost a blob of this platform.
func absentConfig() Case {
	config := usual().config
	return edited(ContentIncomplete, "an image of two platforms whose config for this one is absent", builder.Omit(path(config)), config.Digest.String())
}

// lying is an image whose config says linux/arm64, below a descriptor that says linux/amd64.
func lying(name string, index bool) Case {
	m := change{configPlatform: "linux/arm64"}.make()
	l := &layout{members: m.members}
	d := on(m.manifest, "linux/amd64")
	if index {
		d = l.blob(indexType, indexOf(d))
	}
	return of(Invalid, name, l.tar(indexOf(named(d, appName))), m.config.Digest.String(), "architecture", "arm64", "amd64")
}
