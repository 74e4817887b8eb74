package corpus

import (
	"archive/tar"
	"strings"

	"github.com/tarlift/tarlift/internal/archive/builder"
)

// aside moves a member away and puts a link in its place.
func aside(name string, link builder.Member) builder.Edit {
	link.Name = name
	return func(ms []builder.Member) []builder.Member {
		return builder.Add(link)(builder.Rename(name, "aside")(ms))
	}
}

func symlink(to string) builder.Member { return builder.LinkMember("", to) }

func hardlink(to string) builder.Member {
	return builder.Member{Typeflag: tar.TypeLink, Linkname: to, Mode: 0o644}
}

// links in layouts: no tool makes them, and readers disagree about them.
func links() []Case {
	k := usual()
	layer, manifest := path(k.layers[0]), path(k.manifest)
	needless := "blobs/sha256/" + strings.Repeat("a", 64)
	return []Case{
		edited(Invalid, "index.json is a symlink", aside("index.json", symlink("aside")), `"index.json"`, "link"),
		edited(Invalid, "index.json is a symlink out of the archive", aside("index.json", symlink("../../../etc/passwd")), `"index.json"`, "link"),
		edited(Invalid, "index.json is a hard link", aside("index.json", hardlink("aside")), `"index.json"`, "link"),
		edited(Invalid, "oci-layout is a symlink", aside("oci-layout", symlink("aside")), `"oci-layout"`, "link"),
		edited(Invalid, "a layer is a symlink", aside(layer, symlink("../../aside")), layer, "link"),
		edited(Invalid, "a layer is a hard link", aside(layer, hardlink("aside")), layer, "link"),
		edited(Invalid, "a manifest is a symlink", aside(manifest, symlink("../../aside")), manifest, "link"),
		edited(Invalid, "a layer is a symlink out of the archive", aside(layer, symlink("/var/lib/containerd/secret")), layer, "link"),
		edited(Invalid, "a blob that nobody needs is a symlink", builder.Add(builder.LinkMember(needless, "../../oci-layout")), needless, "link"),
		edited(Invalid, "blobs/sha256 is a symlink", builder.Add(builder.LinkMember("blobs/sha256", "../elsewhere")), `"blobs/sha256"`, "link"),
	}
}
