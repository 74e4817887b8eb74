package corpus

import (
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const schema1Type = "application/vnd.docker.distribution.manifest.v1+prettyjws"

// media are documents that are not what their media type says, or of types that cannot be imported.
func media() []Case {
	plain := change{}.make()
	as := func(name, mediaType string, says ...string) Case {
		c := change{descriptor: func(d ocispec.Descriptor) ocispec.Descriptor { d.MediaType = mediaType; return d }}
		return of(Invalid, name, c.make().tar, says...)
	}
	layerOf := func(name, mediaType string) Case {
		m := change{layerType: mediaType}.make()
		return of(Invalid, name, m.tar, m.manifest.Digest.String(), "layers[0].mediaType", mediaType)
	}
	both := func(s string) string {
		return strings.TrimSuffix(s, "}") + `,"manifests":[]}`
	}
	bothIndex := func(s string) string {
		return strings.TrimSuffix(s, "}") + `,"layers":[],"config":{}}`
	}
	l := &layout{members: plain.members}
	asManifest := l.blob(manifestType, indexOf(on(plain.manifest, "linux/amd64")))
	inIndex := &layout{}
	twofold := inIndex.blob(indexType, bothIndex(string(encode(indexOf(on(plain.manifest, "linux/amd64"))))))
	unnamed := change{manifest: func(s string) string { return replaced(`"mediaType":"`+manifestType+`",`, "")(both(s)) }}.make()
	config := change{configType: "application/vnd.cncf.helm.config.v1+json", descriptor: func(d ocispec.Descriptor) ocispec.Descriptor { return on(d, "linux/amd64") }}.make()
	schema1 := change{manifestType: schema1Type, manifest: func(string) string {
		return `{"schemaVersion":1,"name":"team/app","tag":"1","architecture":"amd64","fsLayers":[{"blobSum":"` + plain.layer.Digest.String() + `"}],"history":[]}`
	}}
	asSchema2 := schema1
	asSchema2.manifestType = ""
	return []Case{
		as("a manifest that is called an index", indexType, plain.manifest.Digest.String(), "mediaType"),
		of(Invalid, "an index that is called a manifest", l.tar(indexOf(named(asManifest, appName))), asManifest.Digest.String(), "mediaType"),
		of(Invalid, "a manifest that is an index too (CVE-2021-41190)", change{manifest: both}.make().tar, "manifests"),
		of(Invalid, "a manifest that is an index too, without media type", unnamed.tar, unnamed.manifest.Digest.String(), "manifests"),
		of(Invalid, "an index that is a manifest too (CVE-2021-41190)", inIndex.tar(indexOf(named(twofold, appName))), twofold.Digest.String(), "config or layers"),
		as("an unknown media type", "application/vnd.example.image", "application/vnd.example.image", plain.manifest.Digest.String()),
		as("a media type with control characters", "text/\x1b[31m", `\x1b[31m`, plain.manifest.Digest.String()),
		of(Invalid, "a manifest of schema 1", schema1.make().tar, schema1Type, "schema 1"),
		of(Invalid, "a manifest of schema 1 that is called one of schema 2", asSchema2.make().tar, "schemaVersion"),
		of(Invalid, "a Helm chart", config.tar, config.manifest.Digest.String(), "config.mediaType", "helm"),
		layerOf("an encrypted layer", layerType+"+gzip+encrypted"),
		layerOf("an unknown layer", "application/vnd.example.layer"),
		layerOf("a layer of xz", layerType+"+xz"),
	}
}
