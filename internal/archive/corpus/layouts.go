package corpus

import (
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/tarlift/tarlift/internal/archive/builder"
)

// layouts lack something, or have other bytes than are named.
func layouts() []Case {
	k := usual()
	manifest, config, layer := path(k.manifest), path(k.config), path(k.layers[0])
	otherLayer := edited(DigestMismatch, "a layer with other bytes", builder.Corrupt(layer), layer)
	otherLayer.Sight = Bytes
	onlyThis := image(appName, "linux/amd64")
	onlyThis.Index = true
	return []Case{
		edited(Invalid, "no oci-layout", builder.Omit("oci-layout"), "index.json", "oci-layout"),
		edited(Invalid, "no index.json", builder.Omit("index.json"), "index.json"),
		edited(Invalid, "neither", builder.Omit("oci-layout", "index.json"), "oci-layout", "manifest.json"),
		of(ContentIncomplete, "no manifest", archiveOf([]builder.Edit{builder.Omit(manifest)}, onlyThis), k.manifest.Digest.String()),
		edited(ContentIncomplete, "no config", builder.Omit(config), k.config.Digest.String()),
		edited(ContentIncomplete, "no layer", builder.Omit(layer), k.layers[0].Digest.String()),
		edited(ContentIncomplete, "no index of the image", builder.Omit(builder.BlobPath(k.Digest)), k.Digest.String()),
		edited(DigestMismatch, "a manifest with other bytes", builder.Corrupt(manifest), manifest),
		edited(DigestMismatch, "a config with other bytes", builder.Corrupt(config), config),
		edited(DigestMismatch, "an index with other bytes", builder.Corrupt(builder.BlobPath(k.Digest)), k.Digest.Encoded()),
		edited(DigestMismatch, "a manifest with a space more", builder.Replace(manifest, []byte("{} ")), manifest),
		otherLayer,
		edited(Invalid, "another version of the layout", builder.Replace("oci-layout", []byte(`{"imageLayoutVersion":"2.0.0"}`)), "oci-layout", "imageLayoutVersion", "2.0.0"),
		edited(Invalid, "oci-layout is no JSON", builder.Replace("oci-layout", []byte(`1.0.0`)), "oci-layout"),
	}
}

// documents are index.json files and manifests whose fields are wrong.
func documents() []Case {
	k := usual()
	index := string(k.index)
	idx := func(verdict Verdict, name, text string, says ...string) Case {
		return edited(verdict, name, builder.Replace("index.json", []byte(text)), append(says, "index.json")...)
	}
	changed := func(verdict Verdict, name, old, with string, says ...string) Case {
		return idx(verdict, name, replaced(old, with)(index), says...)
	}
	out := []Case{
		idx(Invalid, "index.json is empty", ""),
		idx(Invalid, "index.json is null", "null", "schemaVersion"),
		idx(Invalid, "index.json is a list", "[]"),
		idx(Invalid, "index.json is cut", index[:len(index)/2]),
		idx(Invalid, "index.json with something behind it", index+"{}"),
		changed(Invalid, "index.json with a key twice", `"manifests"`, `"manifests":[],"manifests"`, "manifests"),
		changed(Invalid, "index.json with a key twice, once escaped", `"manifests"`, `"m\u0061nifests":[],"manifests"`, "manifests"),
		changed(Invalid, "index.json with a name twice", `"annotations":{`, `"annotations":{"`+annotationName+`":"other.example/x:1",`, annotationName),
		changed(Invalid, "index.json with a key that containerd takes for another", `"manifests"`, `"Manifests"`),
		idx(Invalid, "index.json with two keys that containerd takes for one", strings.TrimSuffix(index, "}")+`,"Manifests":[]}`),
		changed(Invalid, "index.json with schemaVersion 1", `"schemaVersion":2`, `"schemaVersion":1`, "schemaVersion"),
		changed(Invalid, "index.json with layers", `"manifests"`, `"layers":[],"manifests"`, "layers"),
		changed(Invalid, "index.json with another media type", "index.v1", "index.v9", "mediaType", "index.v9"),
		idx(Invalid, "index.json without images", `{"schemaVersion":2,"manifests":[]}`, "manifests"),
		changed(Invalid, "a digest that is none", `"sha256:`, `"sha256:../../`, "manifests[0].digest"),
		changed(Invalid, "a digest of an algorithm that is none", `"sha256:`, `"md5:`, "manifests[0].digest"),
		changed(Invalid, "a digest with capital letters", k.Digest.String(), strings.ToUpper(k.Digest.String()), "manifests[0].digest"),
		changed(Invalid, "no digest", `"digest":"`+k.Digest.String()+`",`, "", "manifests[0].digest"),
		changed(Invalid, "no media type", `{"mediaType":"`+indexType+`","digest"`, `{"digest"`, "manifests[0].mediaType"),
		changed(Invalid, "a negative size of a descriptor", `"size":`, `"size":-`, "manifests[0].size"),
		changed(Invalid, "a size of 2^63 in a descriptor", `"size":`, `"size":9223372036854775808,"x":`, "manifests.size"),
		changed(Invalid, "a size that is a fraction", `"size":`, `"size":1.5,"x":`, "manifests.size"),
	}
	for _, c := range []Case{
		changed(LimitExceeded, "a size of almost 2^63 in a descriptor", `"size":`, `"size":9223372036854775807,"x":`),
		changed(Invalid, "a wrong size in a descriptor", `"size":`, `"size":1`),
	} {
		c.Says = []string{k.Digest.String(), "size"} // the digest is in one descriptor only
		out = append(out, c)
	}
	return append(out, descriptors()...)
}

// descriptors in manifests.
func descriptors() []Case {
	plain := change{}.make()
	in := func(verdict Verdict, name string, d string, size string, says ...string) Case {
		m := change{manifest: func(s string) string {
			head, tail, _ := strings.Cut(s, `"digest":"`+d+`"`)
			return head + `"digest":"` + d + `"` + replaced(`"size":`, size)(tail)
		}}.make()
		return of(verdict, name, m.tar, append(says, m.manifest.Digest.String())...)
	}
	config, layer := plain.config.Digest.String(), plain.layer.Digest.String()
	wrong := in(Invalid, "a wrong size of a layer", layer, `"size":1`)
	wrong.Sight, wrong.Says = Node, []string{layer, "size"}
	wrongConfig := in(Invalid, "a wrong size of a config", config, `"size":1`)
	wrongConfig.Says = []string{config, "size"}
	large := in(LimitExceeded, "a size of a config above its bound", config, `"size":999999`)
	large.Says = []string{config, "size"}
	return []Case{
		accepted(of("", "an image by hand", plain.tar), plain.image()),
		in(Invalid, "a negative size of a layer", layer, `"size":-`, "layers[0].size"),
		in(Invalid, "a size of 2^63 of a layer", layer, `"size":9223372036854775808,"x":`, "layers.size"),
		in(Invalid, "a negative size of a config", config, `"size":-`, "config.size"),
		wrong, wrongConfig, large,
	}
}

// configs of images, whose digests are right.
func configs() []Case {
	in := func(name string, edit func(string) string, says ...string) Case {
		m := change{config: edit}.make()
		return of(Invalid, name, m.tar, append(says, m.config.Digest.String())...)
	}
	other := change{diffID: digest.FromString("other content")}.make()
	lies := of(DigestMismatch, "a layer with another content than its diff_id says", other.tar, other.layer.Digest.String(), "diff_id")
	lies.Sight, lies.Published = Layers, []Image{other.image()}
	noTar := change{layer: []byte(strings.Repeat("no tar archive ", 1000))}.make()
	junk := of(Invalid, "a layer that is no tar", noTar.tar, appName, "no tar archive")
	junk.Sight, junk.Published = Layers, []Image{noTar.image()}
	deep := strings.Repeat("[", 20_000)
	return []Case{
		in("a config with something behind it", with("{}")),
		in("a config with a key twice", replaced(`"architecture"`, `"architecture":"arm64","architecture"`), "architecture"),
		in("a config with diff_ids twice", replaced(`"diff_ids"`, `"diff_ids":[],"diff_ids"`), "diff_ids"),
		in("a config with keys of the wrong case", replaced(`"rootfs"`, `"RootFS"`)),
		in("a config that is a list", func(string) string { return "[]" }),
		in("a config without architecture", replaced(`"architecture":"amd64"`, `"architecture":""`), "architecture"),
		in("a config with another rootfs than layers", replaced(`"type":"layers"`, `"type":"layers+base"`), "rootfs.type"),
		in("a config without diff_ids", replaced(`"diff_ids"`, `"ids"`), "rootfs.diff_ids"),
		in("a config with a diff_id that is none", replaced(`"sha256:`, `"sha256:0`), "rootfs.diff_ids"),
		in("a config of great depth", replaced(`"rootfs"`, `"x":`+deep+strings.Repeat("]", len(deep))+`,"rootfs"`), "depth"),
		lies, junk,
	}
}

// unreadable are configs that encoding/json does not decode into the type that containerd's CRI has for them: it does not
// list such an image, and no pod can use its name.
func unreadable() []Case {
	in := func(field, config, value string) Case {
		m := change{config: replaced(`"config":{}`, config)}.make()
		return of(Invalid, "a config with "+value, m.tar, m.config.Digest.String(), field+": ")
	}
	key := func(key, what, value string) Case {
		return in("config."+key, `"config":{"`+key+`":`+value+`}`, key+" "+what)
	}
	others := change{config: replaced(`"config":{}`, `"config":{"Hostname":"","AttachStdin":false,"OnBuild":null,"Image":"sha256:1",`+
		`"Healthcheck":{"Test":["NONE"]},"Env":null,"cmd":["sh"],"ExposedPorts":{"80/tcp":{}},"Labels":null},`+
		`"container":"","container_config":{"Cmd":"any"},"created":"0001-01-01T00:00:00Z","docker_version":"20.10","id":"",`+
		`"history":[{"created":"2026-01-31T12:00:00.123456789+01:00"},{}]`)}.make()
	null := change{config: replaced(`"config":{}`, `"config":null,"created":null,"author":null,"history":null`)}.make()
	return []Case{
		in("created", `"created":""`, "created empty"),
		in("created", `"created":1700000000`, "created a number"),
		in("created", `"created":"yesterday"`, "created no time"),
		in("history.created", `"history":[{"created":""}]`, "history with created empty"),
		in("history.empty_layer", `"history":[{"empty_layer":"true"}]`, "history with empty_layer a string"),
		in("author", `"author":["a"]`, "author a list"),
		in("config", `"config":[]`, "config a list"),
		key("Cmd", "a string", `"sh"`),
		key("Entrypoint", "a string", `"sh"`),
		key("Env", "an object", `{"A":"b"}`),
		key("Env", "a list of numbers", `[1]`),
		key("ExposedPorts", "a list", `["80/tcp"]`),
		key("ExposedPorts", "with a number", `{"80/tcp":1}`),
		key("Volumes", "a list", `["/data"]`),
		key("Labels", "a list", `["a=b"]`),
		key("Labels", "with a number", `{"a":1}`),
		key("WorkingDir", "a list", `["/"]`),
		key("User", "a number", `0`),
		key("StopSignal", "a number", `9`),
		key("ArgsEscaped", "a string", `"true"`),
		in("variant", `"variant":8`, "variant a number"),
		accepted(of("", "a config as Docker writes it", others.tar), others.image()),
		accepted(of("", "a config with null in place of all", null.tar), null.image()),
	}
}
