package bundle

import (
	"cmp"
	"encoding/json"
	"fmt"
	"path"
	"slices"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive"
)

// bundle puts the archive's members in order.
func (p *planner) bundle(list []named) (*Bundle, error) {
	index, err := indexJSON(list)
	if err != nil {
		return nil, err
	}
	docker, err := dockerManifest(list)
	if err != nil {
		return nil, err
	}
	layout, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", ocispec.ImageLayoutFile, err)
	}
	documents := allDocuments(list)
	b := &Bundle{IndexDigest: digest.FromBytes(index), layers: orderLayers(list, documents)}
	for _, n := range list {
		b.Images = append(b.Images, n.summary())
	}
	b.head = append(b.head, member{ocispec.ImageLayoutFile, layout}, member{ocispec.ImageIndexFile, index}, member{dockerManifestFile, docker})
	b.head = append(b.head, directories(documents, b.layers)...)
	for _, d := range documents {
		b.head = append(b.head, member{blobPath(d.digest), d.data})
	}
	if err := b.check(len(index)); err != nil {
		return nil, err
	}
	b.Size, err = b.size()
	return b, err
}

const dockerManifestFile = "manifest.json"

func blobPath(d digest.Digest) string {
	return path.Join(ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

func (n *named) summary() Image {
	img := Image{Name: n.Name, Digest: n.Target.Digest, LeftOut: n.image.leftOut}
	for _, l := range n.image.platforms {
		img.Platforms = append(img.Platforms, l.platform)
	}
	return img
}

// check refuses a bundle that exceeds the bounds of imports.
func (b *Bundle) check(index int) error {
	metadata := 0
	for _, m := range b.head {
		metadata += len(m.data)
	}
	for _, bound := range []struct {
		is, most int
		of       string
	}{
		{metadata, archive.MaxMetadataBytes, "bytes of indexes, manifests and configs"},
		{index, archive.MaxManifestBytes, "bytes of index.json"},
		{len(b.Images), archive.MaxDescriptors, "names"},
		{len(b.head) + len(b.layers), archive.MaxMembers, "members"},
	} {
		if bound.is > bound.most {
			return fmt.Errorf("the bundle would have %d %s, and imports take %d: make two bundles: %w",
				bound.is, bound.of, bound.most, archive.ErrLimit)
		}
	}
	return nil
}

// indexJSON returns index.json. Of a descriptor's annotations it keeps only names: others depend on the tool that wrote them.
func indexJSON(list []named) ([]byte, error) {
	idx := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, n := range list {
		d := ocispec.Descriptor{MediaType: n.Target.MediaType, Digest: n.Target.Digest, Size: n.Target.Size}
		if !archive.IsIndex(d.MediaType) {
			d.Platform = n.image.platforms[0].spec
		}
		d.Annotations = map[string]string{archive.AnnotationImageName: n.Name, ocispec.AnnotationRefName: n.Name}
		idx.Manifests = append(idx.Manifests, d)
	}
	data, err := json.Marshal(idx)
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", ocispec.ImageIndexFile, err)
	}
	return data, nil
}

// dockerImage is an entry of manifest.json.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// dockerManifest returns manifest.json, as `ctr images export` writes it: docker archives have no platforms, so each image has
// its first one. Names with a digest are not possible there, and short names are not used: podman reads app:1 as
// localhost/app:1.
func dockerManifest(list []named) ([]byte, error) {
	var images []*dockerImage
	byManifest := map[digest.Digest]*dockerImage{}
	for _, n := range list {
		l := n.image.platforms[0]
		img, ok := byManifest[l.digest]
		if !ok {
			img = &dockerImage{Config: blobPath(l.config.digest), RepoTags: []string{}, Layers: []string{}}
			for _, d := range l.layers {
				img.Layers = append(img.Layers, blobPath(d.Digest))
			}
			byManifest[l.digest] = img
			images = append(images, img)
		}
		ref, err := reference.ParseNormalizedNamed(n.Name)
		if err != nil {
			return nil, fmt.Errorf("name %.200q: %w: %w", n.Name, err, archive.ErrInvalidName)
		}
		if _, tagged := ref.(reference.Tagged); tagged {
			img.RepoTags = append(img.RepoTags, n.Name)
		}
	}
	data, err := json.Marshal(images)
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", dockerManifestFile, err)
	}
	return data, nil
}

// allDocuments are all indexes, manifests and configs, image by image.
func allDocuments(list []named) []document {
	var out []document
	seen := map[digest.Digest]bool{}
	add := func(d document) {
		if !seen[d.digest] {
			seen[d.digest] = true
			out = append(out, d)
		}
	}
	for _, n := range list {
		for _, d := range n.image.indexes {
			add(d)
		}
		for _, m := range slices.Concat(n.image.platforms, n.image.attestations) {
			add(m.document)
			add(m.config)
		}
	}
	return out
}

// directories of blobs, for tools that unpack an archive without creating directories.
func directories(documents []document, layers []layer) []member {
	algorithms := map[string]bool{}
	for _, d := range documents {
		algorithms[d.digest.Algorithm().String()] = true
	}
	for _, l := range layers {
		algorithms[l.Digest.Algorithm().String()] = true
	}
	out := []member{{name: ocispec.ImageBlobsDir + "/"}}
	for a := range algorithms {
		out = append(out, member{name: ocispec.ImageBlobsDir + "/" + a + "/"})
	}
	slices.SortFunc(out, func(a, b member) int { return cmp.Compare(a.name, b.name) })
	return out
}
