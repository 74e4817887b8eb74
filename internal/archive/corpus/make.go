package corpus

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive/builder"
)

const (
	blockSize = 512 // of a tar
	appName   = "registry.example/team/app:1"

	annotationName = "io.containerd.image.name"
	indexType      = ocispec.MediaTypeImageIndex
	manifestType   = ocispec.MediaTypeImageManifest
	configType     = ocispec.MediaTypeImageConfig
	layerType      = ocispec.MediaTypeImageLayer

	layoutText = `{"imageLayoutVersion":"1.0.0"}`
)

// must gives what is made of constants: that always works, or never.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// image has two layers a platform, one of them of all.
func image(name string, platforms ...string) builder.Image {
	img := builder.Image{Names: []string{name}}
	for _, p := range platforms {
		img.Platforms = append(img.Platforms, builder.PlatformImage{
			Platform: builder.Platform(p),
			Layers: []builder.Layer{
				{Compression: builder.Gzip, Files: []builder.File{builder.Noise("base", 1, 6000)}},
				{Files: []builder.File{{Name: "app", Data: []byte(name + " for " + p)}}},
			},
		})
	}
	return img
}

func archiveOf(edits []builder.Edit, images ...builder.Image) []byte {
	return must(builder.Archive{Images: images, Edits: edits}.Bytes())
}

// known is the usual archive's content: an image of two platforms.
type known struct {
	tar   []byte
	index []byte
	Image
	indexDigest digest.Digest
	members     []builder.Member
	manifest    ocispec.Descriptor
	config      ocispec.Descriptor
	layers      []ocispec.Descriptor
}

var usual = sync.OnceValue(func() known {
	b := must(builder.Archive{Images: []builder.Image{image(appName, "linux/amd64", "linux/arm64")}}.Build())
	defer b.Close()
	p := b.Images[0].Platforms[0]
	return known{
		tar: must(b.Bytes()), index: b.Index, Image: published(b, 0, appName), indexDigest: b.IndexDigest, members: b.Members,
		manifest: p.Manifest, config: p.Config, layers: p.Layers,
	}
})

// published is what an import makes of an image that was built.
func published(b *builder.Built, image int, name string) Image {
	img := b.Images[image]
	p := img.Platforms[0]
	out := Image{Name: name, Digest: img.Target.Digest, Blobs: []digest.Digest{p.Manifest.Digest, p.Config.Digest}}
	for _, d := range append(img.Indexes, p.Layers...) {
		out.Blobs = append(out.Blobs, d.Digest)
	}
	return out
}

func path(d ocispec.Descriptor) string { return builder.BlobPath(d.Digest) }

// offset is where the header of a member of the usual archive begins.
func (k known) offset(name string) int {
	at := 0
	for _, m := range k.members {
		if m.Name == name {
			return at
		}
		at += blockSize + (int(m.Size)+blockSize-1)/blockSize*blockSize
	}
	panic("no member " + name)
}

// layout is an OCI archive that is made by hand.
type layout struct {
	members []builder.Member
}

// blob adds a document (a string or bytes as they are, else as JSON).
func (l *layout) blob(mediaType string, v any) ocispec.Descriptor {
	b := encode(v)
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	l.members = append(l.members, builder.FileMember(path(d), b))
	return d
}

// tar has index.json in front, as it comes from tools that write a layout's directory in the order of names.
func (l *layout) tar(index any) []byte {
	front := []builder.Member{builder.FileMember("oci-layout", []byte(layoutText)), builder.FileMember("index.json", encode(index))}
	return must(builder.TarBytes(append(front, l.members...)...))
}

func encode(v any) []byte {
	switch v := v.(type) {
	case []byte:
		return v
	case string:
		return []byte(v)
	}
	return must(json.Marshal(v))
}

func indexOf(children ...ocispec.Descriptor) ocispec.Index {
	idx := ocispec.Index{MediaType: indexType, Manifests: children}
	idx.SchemaVersion = 2
	return idx
}

func manifestOf(config ocispec.Descriptor, layers ...ocispec.Descriptor) ocispec.Manifest {
	m := ocispec.Manifest{MediaType: manifestType, Config: config, Layers: layers}
	m.SchemaVersion = 2
	return m
}

// named is a descriptor with a name, as buildkit gives it.
func named(d ocispec.Descriptor, name string) ocispec.Descriptor {
	d.Annotations = map[string]string{annotationName: name}
	return d
}

// on gives a descriptor its platform.
func on(d ocispec.Descriptor, platform string) ocispec.Descriptor {
	p := builder.Platform(platform)
	d.Platform = &p
	return d
}

// change is what is unusual about an image that is made by hand. Functions rewrite the text of a document; what names
// it then has the digest of the new text.
type change struct {
	layer                   []byte
	layerType, configType   string
	manifestType            string
	config, manifest, index func(string) string
	diffID                  digest.Digest
	descriptor              func(ocispec.Descriptor) ocispec.Descriptor // in index.json
	configPlatform          string
	add                     []builder.Member
}

// made is such an image.
type made struct {
	tar                     []byte
	members                 []builder.Member
	layer, config, manifest ocispec.Descriptor
}

func (m made) image() Image {
	return Image{Name: appName, Digest: m.manifest.Digest, Blobs: []digest.Digest{m.layer.Digest, m.config.Digest, m.manifest.Digest}}
}

func (c change) make() made {
	l, m := &layout{}, made{}
	if c.layer == nil {
		c.layer = must(builder.TarBytes(builder.FileMember("file", []byte("content"))))
	}
	if c.diffID == "" {
		c.diffID = digest.FromBytes(c.layer)
	}
	m.layer = l.blob(or(c.layerType, layerType), c.layer)
	cfg := ocispec.Image{Platform: builder.Platform(or(c.configPlatform, "linux/amd64")), RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{c.diffID}}}
	m.config = l.blob(or(c.configType, configType), rewrite(cfg, c.config))
	m.manifest = l.blob(or(c.manifestType, manifestType), rewrite(manifestOf(m.config, m.layer), c.manifest))
	target := named(m.manifest, appName)
	if c.descriptor != nil {
		target = c.descriptor(target)
	}
	l.members = append(l.members, c.add...)
	m.members, m.tar = l.members, l.tar(rewrite(indexOf(target), c.index))
	return m
}

func (c change) data() *Data { return data(c.make().tar) }

func rewrite(v any, by func(string) string) any {
	if by == nil {
		return v
	}
	return by(string(encode(v)))
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// replaced rewrites one part of a text, which must be there.
func replaced(old, with string) func(string) string {
	return func(s string) string {
		if !strings.Contains(s, old) {
			panic(fmt.Sprintf("no %s in %s", old, s))
		}
		return strings.Replace(s, old, with, 1)
	}
}

// with appends to a text.
func with(tail string) func(string) string { return func(s string) string { return s + tail } }

// header is one of a tar, with its checksum.
func header(h tar.Header) []byte {
	var b bytes.Buffer
	if h.Mode == 0 {
		h.Mode = 0o644
	}
	if err := tar.NewWriter(&b).WriteHeader(&h); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// resum puts the checksum into a header that was changed.
func resum(block []byte) {
	copy(block[148:156], "        ")
	sum := 0
	for _, b := range block[:blockSize] {
		sum += int(b)
	}
	copy(block[148:], fmt.Sprintf("%06o\x00 ", sum))
}

// end is the mark at the end of a tar.
func end() *Data { return zeros(2 * blockSize) }
