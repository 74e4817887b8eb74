package corpus

import (
	"archive/tar"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/builder"
)

// bounds of limits.go are passed, by a little or by far.
func bounds() []Case {
	layoutFile := file("oci-layout", layoutText)
	perManifest := fmt.Sprint(archive.MaxManifestBytes)
	alone := func(m builder.Member) func() *Data {
		return func() *Data { return data(must(builder.TarBytes(layoutFile, m))) }
	}
	spaced := func(name string, size int64, head, tail string) func() *Data {
		return func() *Data { return large(name, size, head, tail, layoutFile) }
	}
	annotated := `{"schemaVersion":2,"manifests":[{"annotations":{"x":"`
	return slices.Concat([]Case{
		lazy(LimitExceeded, "index.json of a GiB", spaced("index.json", 1<<30, `{"schemaVersion":2,`, `"manifests":[]}`), `"index.json"`, perManifest),
		lazy(LimitExceeded, "index.json a byte above its bound", spaced("index.json", archive.MaxManifestBytes+1, "{", "}"), `"index.json"`, perManifest),
		lazy(LimitExceeded, "an annotation of 64 MiB", spaced("index.json", 64<<20, annotated, `"}}]}`), `"index.json"`, perManifest),
		lazy(LimitExceeded, "manifest.json of 25 MiB", func() *Data { return large("manifest.json", 25<<20, "[", "]") }, `"manifest.json"`, perManifest),
		lazy(LimitExceeded, "oci-layout of a GiB", func() *Data { return large("oci-layout", 1<<30, layoutText, "") }, `"oci-layout"`, perManifest),
		lazy(LimitExceeded, "index.json five times, equal, of 4 MiB each", func() *Data {
			one := must(readAll(large("index.json", archive.MaxManifestBytes, "{", "}", layoutFile)))
			one = one[:len(one)-2*blockSize]
			return join(repeat(one, 5*int64(len(one))), end())
		}, "index.json"),
		lazy(LimitExceeded, "a manifest of 5 MiB", change{manifest: with(strings.Repeat(" ", 5<<20))}.data, perManifest),
		lazy(LimitExceeded, "a config of 9 MiB", change{config: with(strings.Repeat(" ", 9<<20))}.data, fmt.Sprint(archive.MaxConfigBytes)),
		lazy(LimitExceeded, "three configs of 6 MiB", manyConfigs, "more than"),
		lazy(LimitExceeded, "JSON 5 million deep in index.json", alone(file("index.json", strings.Repeat("[", 5_000_000))), `"index.json"`, perManifest),
		lazy(LimitExceeded, "JSON 4 million deep in index.json", alone(file("index.json", strings.Repeat("[", 4_000_000))), "index.json", "values"),
		lazy(Invalid, "JSON 20,000 deep in index.json", alone(file("index.json", strings.Repeat("[", 20_000))), "index.json", "depth"),
		lazy(LimitExceeded, "JSON 5 million deep in a config", change{config: replaced(`"rootfs"`, `"x":`+strings.Repeat("[", 5_000_000)+`,"rootfs"`)}.data, "config", "values"),
		lazy(LimitExceeded, "a million empty descriptors in index.json", alone(file("index.json", `{"schemaVersion":2,"manifests":[{}`+strings.Repeat(",{}", 1_000_000)+`]}`)), "index.json", "values"),
		lazy(LimitExceeded, "a million empty images in manifest.json", func() *Data {
			return data(must(builder.TarBytes(file("manifest.json", `[{}`+strings.Repeat(",{}", 1_000_000)+`]`))))
		}, "manifest.json", "values"),
		lazy(LimitExceeded, "300,000 annotations", alone(file("index.json", manyAnnotations(300_000))), "index.json", "values"),
	}, numbers(), fans())
}

// large is a tar with a member of size bytes: head, spaces and tail.
func large(name string, size int64, head, tail string, before ...builder.Member) *Data {
	front := must(builder.TarBytes(before...))
	h := header(tar.Header{Name: name, Size: size, Format: tar.FormatUSTAR})
	body := size - int64(len(head)+len(tail))
	return join(data(front[:len(front)-2*blockSize]), data(h), text(head), repeat([]byte(strings.Repeat(" ", blockSize)), body), text(tail),
		zeros((blockSize-size%blockSize)%blockSize), end())
}

func manyAnnotations(n int) string {
	var b strings.Builder
	b.WriteString(`{"schemaVersion":2,"manifests":[],"annotations":{"":""`)
	for k := range n {
		fmt.Fprintf(&b, `,"%x":""`, k)
	}
	b.WriteString("}}")
	return b.String()
}

// manyConfigs are each below their bound, but not together.
func manyConfigs() *Data {
	l := &layout{}
	var targets []ocispec.Descriptor
	for k := range 3 {
		cfg := ocispec.Image{Platform: builder.Platform("linux/amd64"), RootFS: ocispec.RootFS{Type: "layers"}, Author: strings.Repeat(fmt.Sprint(k), 6<<20)}
		targets = append(targets, named(l.blob(manifestType, manifestOf(l.blob(configType, cfg))), fmt.Sprint("registry.example/config:", k)))
	}
	return data(l.tar(indexOf(targets...)))
}

// numbers of descriptors.
func numbers() []Case {
	plain := change{}.make()
	id := `"` + plain.layer.Digest.String() + `"`
	return []Case{
		lazy(LimitExceeded, "more descriptors in index.json than their bound", func() *Data {
			return data((&layout{}).tar(indexOf(slices.Repeat([]ocispec.Descriptor{plain.manifest}, archive.MaxDescriptors+1)...)))
		}, "index.json", "manifests", fmt.Sprint(archive.MaxDescriptors)),
		lazy(LimitExceeded, "9,000 names", func() *Data {
			var targets []ocispec.Descriptor
			for k := range 9_000 {
				targets = append(targets, named(plain.manifest, fmt.Sprint("registry.example/name:", k)))
			}
			return data((&layout{}).tar(indexOf(targets...)))
		}, "index.json", "manifests", fmt.Sprint(archive.MaxDescriptors)),
		lazy(LimitExceeded, "20,000 layers", func() *Data {
			l := &layout{}
			m := l.blob(manifestType, manifestOf(plain.config, slices.Repeat([]ocispec.Descriptor{{MediaType: "x", Digest: plain.layer.Digest}}, 20_000)...))
			return data(l.tar(indexOf(named(on(m, "linux/amd64"), appName))))
		}, "manifest", "layers", fmt.Sprint(archive.MaxLayers)),
		lazy(LimitExceeded, "20,000 diff_ids", change{config: replaced(id, id+strings.Repeat(","+id, 19_999))}.data, "rootfs.diff_ids", fmt.Sprint(archive.MaxLayers)),
	}
}

// fans are indexes in indexes.
func fans() []Case {
	forged := "sha256:" + strings.Repeat("ab", 32)
	circle := &layout{members: []builder.Member{file("blobs/sha256/"+forged[len("sha256:"):], `{"schemaVersion":2,"manifests":[{"mediaType":"`+indexType+`","digest":"`+forged+`","size":200}]}`)}}
	deepest, image := nested(archive.MaxDepth)
	return []Case{
		lazy(LimitExceeded, "indexes 9,000 deep", func() *Data { d, _ := nested(9_000); return d }, "index sha256:", fmt.Sprint(archive.MaxDepth)),
		lazy(LimitExceeded, "indexes one deeper than their bound", func() *Data { d, _ := nested(archive.MaxDepth + 1); return d }, "index sha256:", fmt.Sprint(archive.MaxDepth)),
		accepted(lazy("", "indexes as deep as their bound", func() *Data { return deepest }), image),
		lazy(LimitExceeded, "a fan-out of 10^9: three indexes of a thousand descriptors each", fanOut, "manifests and indexes"),
		lazy(LimitExceeded, "a large index below each of 4,000 names", sharedFanOut, "manifests and indexes"),
		of(DigestMismatch, "an index that names itself, so by a forged digest", circle.tar(indexOf(named(ocispec.Descriptor{MediaType: indexType, Digest: digest.Digest(forged), Size: 200}, appName))), forged[len("sha256:"):]),
	}
}

// nested is an image below so many indexes.
func nested(depth int) (*Data, Image) {
	m := change{}.make()
	l := &layout{members: m.members}
	out := m.image()
	d := on(m.manifest, "linux/amd64")
	for range depth {
		d = l.blob(indexType, indexOf(d))
		out.Blobs = append(out.Blobs, d.Digest)
	}
	out.Digest = d.Digest
	return data(l.tar(indexOf(named(d, appName)))), out
}

func fanOut() *Data {
	l := &layout{}
	d := on(change{}.make().manifest, "linux/s390x")
	for range 3 {
		d = l.blob(indexType, indexOf(slices.Repeat([]ocispec.Descriptor{d}, 1000)...))
	}
	return data(l.tar(indexOf(named(d, appName))))
}

// sharedFanOut has 16 million ways to a platform, each of which a message could name.
func sharedFanOut() *Data {
	l := &layout{}
	const n = 4000
	var children, targets []ocispec.Descriptor
	for k := range n {
		d := ocispec.Descriptor{MediaType: manifestType, Digest: digest.FromString(fmt.Sprint(k)), Size: 1}
		d.Platform = &ocispec.Platform{OS: "linux", Architecture: fmt.Sprint("cpu", k)}
		children = append(children, d)
	}
	shared := l.blob(indexType, indexOf(children...))
	for k := range n {
		own := indexOf(shared)
		own.Annotations = map[string]string{"k": fmt.Sprint(k)}
		targets = append(targets, named(l.blob(indexType, own), fmt.Sprint("registry.example/shared:", k)))
	}
	return data(l.tar(indexOf(targets...)))
}
