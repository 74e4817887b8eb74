package corpus

import (
	"fmt"
	"strings"
	"sync"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/builder"
)

// docker is the usual docker archive: two images that share a layer, which is a symlink in the second.
type docker struct {
	images      []Image
	layer, link string // the members of the shared layer
	config      string // the first image's
	manifest    string // manifest.json
	configText  string
}

func dockerImages() []builder.Image {
	return []builder.Image{rawImage(appName), rawImage("registry.example/team/tool:2")}
}

// rawImage has layers without compression, as docker archives have.
func rawImage(name string) builder.Image {
	img := image(name, "linux/amd64")
	img.Platforms[0].Layers[0].Compression = builder.None
	return img
}

var usualDocker = sync.OnceValue(func() docker {
	b := must(builder.Archive{Format: builder.DockerClassic, Images: dockerImages()}.Build())
	defer b.Close()
	d := docker{images: []Image{published(b, 0, b.Images[0].Names[0]), published(b, 1, b.Images[1].Names[0])}}
	d.config = b.Images[0].Platforms[0].Config.Digest.Encoded() + ".json"
	for _, m := range b.Members {
		switch {
		case m.Name == "manifest.json":
			d.manifest = string(must(readAll(contentOf(m))))
		case m.Name == d.config:
			d.configText = string(must(readAll(contentOf(m))))
		case d.layer == "" && strings.HasSuffix(m.Name, "/layer.tar"):
			d.layer = m.Name
		case m.Linkname != "":
			d.link = m.Name
		}
	}
	return d
})

func contentOf(m builder.Member) *Data {
	b := make([]byte, m.Size)
	_ = must(m.Open().Read(b))
	return data(b)
}

// dockers are docker archives.
func dockers() []Case {
	d := usualDocker()
	in := func(verdict Verdict, name string, edit builder.Edit, says ...string) Case {
		return lazy(verdict, "docker: "+name, func() *Data {
			return data(must(builder.Archive{Format: builder.DockerClassic, Images: dockerImages(), Edits: []builder.Edit{edit}}.Bytes()))
		}, says...)
	}
	list := func(verdict Verdict, name, old, with string, says ...string) Case {
		return in(verdict, name, builder.Replace("manifest.json", []byte(replaced(old, with)(d.manifest))), append(says, "manifest.json")...)
	}
	cfg := func(name string, edit func(string) string, says ...string) Case {
		return in(Invalid, name, builder.Replace(d.config, []byte(edit(d.configText))), append(says, d.config)...)
	}
	app := `"` + appName + `"`
	wrong := in(DigestMismatch, "a layer with another content than its diff_id says", builder.Corrupt(d.layer), d.layer)
	wrong.Sight = Bytes
	return append([]Case{
		accepted(in("", "a layer that is a symlink to that of another image", asItWas), d.images...),
		accepted(in("", "a layer that is a hard link", aside(d.layer, hardlink("aside"))), d.images...),
		in(ContentIncomplete, "no config", builder.Omit(d.config), d.config, "manifest.json"),
		in(ContentIncomplete, "no layer", builder.Omit(d.layer), d.layer, "manifest.json", "layer 0"),
		in(ContentIncomplete, "a layer that is a link to nowhere", aside(d.link, symlink("../nowhere")), d.link),
		in(ContentIncomplete, "a layer that is a link out of the archive", aside(d.link, symlink("../../../etc/passwd")), d.link),
		in(ContentIncomplete, "a layer that is an absolute link", aside(d.link, symlink("/etc/passwd")), d.link),
		in(Invalid, "symlinks in a circle", func(ms []builder.Member) []builder.Member {
			return builder.Add(builder.LinkMember(d.layer, "../other"), builder.LinkMember("other", d.layer))(builder.Omit(d.layer)(ms))
		}, d.layer, "circle"),
		in(Invalid, "a symlink to itself", func(ms []builder.Member) []builder.Member {
			return builder.Add(builder.LinkMember(d.layer, "layer.tar"))(builder.Omit(d.layer)(ms))
		}, d.layer, "circle"),
		wrong,
		list(Invalid, "a path out of the archive", d.layer, "../layer.tar", `"../layer.tar"`, "layer 0"),
		list(Invalid, "an absolute path", d.layer, "/etc/passwd", `"/etc/passwd"`, "layer 0"),
		list(Invalid, "no path", d.layer, "", "layer 0"),
		accepted(list("", "a path with ./", d.layer, "./"+d.layer), d.images...),
		list(Invalid, "fewer layers than diff_ids", `"`+d.layer+`",`, "", "diff_ids", d.config),
		list(Invalid, "a key twice", `"Config"`, `"Config":"x","Config"`, "Config"),
		list(Invalid, "keys in the wrong case", `"Layers"`, `"layers"`),
		in(Invalid, "manifest.json is null", builder.Replace("manifest.json", []byte("null")), "manifest.json", "no images"),
		in(Invalid, "no images", builder.Replace("manifest.json", []byte("[]")), "manifest.json", "no images"),
		in(Invalid, "manifest.json with something behind it", builder.Replace("manifest.json", []byte(d.manifest+"[]")), "manifest.json"),
		in(Invalid, "manifest.json twice, different", builder.Add(file("manifest.json", d.manifest+" ")), "manifest.json", "twice"),
		accepted(in("", "manifest.json twice, equal", builder.Add(file("manifest.json", d.manifest))), d.images...),
		list(InvalidName, "a name with capital letters", app, `"App:1"`, "App:1"),
		list(InvalidName, "a name with a control character", app, `"app\u0000:1"`, `app\x00:1`),
		list(InvalidName, "one name of two images", app, `"registry.example/team/tool:2"`, "registry.example/team/tool:2"),
		list(InvalidName, "no name", app, "", "baseName"),
		list(LimitExceeded, "more names than their bound", app, strings.Repeat(app+",", archive.MaxNames)+app, fmt.Sprint(archive.MaxNames)),
		cfg("a config that is a list", func(string) string { return "[]" }),
		cfg("a config without platform", replaced(`"architecture":"amd64"`, `"architecture":""`), "architecture"),
		cfg("a config with a key twice", replaced(`"os"`, `"os":"windows","os"`), `os`),
		cfg("a config with a diff_id that is none", replaced(`"diff_ids":["sha256:`, `"diff_ids":["sha256:0`), "diff_id"),
		in(LimitExceeded, "a config above its bound", builder.Replace(d.config, []byte(strings.Repeat(" ", archive.MaxConfigBytes+1))), d.config, fmt.Sprint(archive.MaxConfigBytes)),
	}, hybrids()...)
}

// hybrids have both oci-layout and manifest.json: the layout counts.
func hybrids() []Case {
	build := func(edits ...builder.Edit) []byte {
		return must(builder.Archive{Format: builder.Hybrid, Images: []builder.Image{image(appName, "linux/amd64")}, Edits: edits}.Bytes())
	}
	b := must(builder.Archive{Format: builder.Hybrid, Images: []builder.Image{image(appName, "linux/amd64")}}.Build())
	defer b.Close()
	last := build(builder.Last("oci-layout"))
	img := published(b, 0, appName)
	return []Case{
		accepted(of("", "a layout with a manifest.json beside it", build()), img),
		accepted(of("", "a layout with a manifest.json beside it that says something else", build(builder.Replace("manifest.json", []byte(`[{"Config":"../x"}]`)))), img),
		of(Truncated, "a layout with a manifest.json beside it, cut before oci-layout", last[:len(last)-4*blockSize], "oci-layout"),
	}
}
