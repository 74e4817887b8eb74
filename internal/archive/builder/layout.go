package builder

import (
	"encoding/json"
	"errors"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// annotationImageName is containerd's images.AnnotationImageName.
const annotationImageName = "io.containerd.image.name"

// layOutOCI makes the members of an image layout in the order of `ctr images
// export`: blobs by digest, then the files that name them.
func (b *Built) layOutOCI(images []image) error {
	if b.archive.Directories {
		b.Members = append(b.Members, DirMember("blobs/"), DirMember("blobs/sha256/"))
	}
	seen := map[digest.Digest]bool{}
	for _, img := range images {
		for _, bl := range img.blobs {
			if !seen[bl.digest] {
				seen[bl.digest] = true
				b.Members = append(b.Members, bl.member(BlobPath(bl.digest)))
			}
		}
	}
	idx, err := jsonBlob(b.indexJSON())
	if err != nil {
		return err
	}
	b.Index, err = readBlob(idx)
	if err != nil {
		return err
	}
	b.IndexDigest = idx.digest
	layout, err := jsonBlob(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return err
	}
	b.Members = append(b.Members, idx.member(ocispec.ImageIndexFile))
	if b.archive.Format == Hybrid {
		layerPath := func(l layer) string { return BlobPath(l.digest) }
		configPath := func(p platformImage) string { return BlobPath(p.config.digest) }
		if err := b.addDockerFiles(images, layerPath, configPath); err != nil {
			return err
		}
	}
	b.Members = append(b.Members, layout.member(ocispec.ImageLayoutFile))
	return nil
}

func (b *Built) indexJSON() ocispec.Index {
	idx := ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{},
	}
	for _, img := range b.Images {
		if len(img.Names) == 0 || b.archive.Names == NoName {
			idx.Manifests = append(idx.Manifests, img.Target)
			continue
		}
		for _, name := range img.Names {
			d := img.Target
			d.Annotations = b.archive.Names.annotations(name)
			idx.Manifests = append(idx.Manifests, d)
		}
	}
	return idx
}

func (s NameStyle) annotations(name string) map[string]string {
	tag := name
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		tag = name[i+1:]
	}
	switch s {
	case NameAndTag:
		return map[string]string{annotationImageName: name, ocispec.AnnotationRefName: tag}
	case ImageName:
		return map[string]string{annotationImageName: name}
	case RefName:
		return map[string]string{ocispec.AnnotationRefName: name}
	default:
		return map[string]string{ocispec.AnnotationRefName: tag}
	}
}

// layOutDocker makes the members of a docker archive.
func (b *Built) layOutDocker(images []image) error {
	seen := map[string]string{} // digest or name of a member -> name of the member that has the bytes
	layerName := func(l layer) string { return l.diffID.Encoded() + ".tar" }
	configName := func(p platformImage) string { return p.config.digest.Encoded() + ".json" }
	if b.archive.Format == DockerDigest {
		layerName = func(l layer) string { return l.digest.Encoded() + ".tar.gz" }
		configName = func(p platformImage) string { return p.config.digest.String() }
	}
	for _, img := range images {
		p := img.platforms[0]
		names := classicNames(p)
		for i, l := range p.layers {
			name := layerName(l)
			if b.archive.Format == DockerClassic {
				name = names[i]
				b.addOnce(seen, DirMember(path.Dir(name)+"/"))
				b.addOnce(seen, FileMember(path.Dir(name)+"/VERSION", []byte("1.0")))
				b.addOnce(seen, FileMember(path.Dir(name)+"/json", []byte("{}")))
			}
			b.addLayer(seen, name, l)
		}
		b.addOnce(seen, p.config.member(configName(p)))
	}
	if b.archive.Format == DockerClassic {
		return b.addClassicFiles(images, configName)
	}
	return b.addDockerFiles(images, layerName, configName)
}

func (b *Built) addOnce(seen map[string]string, m Member) {
	if _, ok := seen[m.Name]; !ok {
		seen[m.Name] = m.Name
		b.Members = append(b.Members, m)
	}
}

// addLayer adds a layer, as a symlink when its bytes are there under another name.
func (b *Built) addLayer(seen map[string]string, name string, l layer) {
	first, ok := seen[l.digest.String()]
	if !ok {
		seen[l.digest.String()] = name
		b.addOnce(seen, l.member(name))
		return
	}
	if first != name {
		b.addOnce(seen, LinkMember(name, "../"+first))
	}
}

// classicNames are the paths of a platform's layers: a directory a layer whose
// name depends on all layers below, as the ids of Docker's v1 images did.
func classicNames(p platformImage) []string {
	names := make([]string, len(p.layers))
	chain := digest.FromString(p.config.digest.String())
	for i, l := range p.layers {
		chain = digest.FromString(chain.String() + " " + l.diffID.String())
		names[i] = chain.Encoded() + "/layer.tar"
	}
	return names
}

type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func (b *Built) addClassicFiles(images []image, configName func(platformImage) string) error {
	list := make([]dockerImage, 0, len(images))
	for _, img := range images {
		p := img.platforms[0]
		list = append(list, dockerImage{configName(p), slices.Clone(img.Names), classicNames(p)})
	}
	return b.addDockerJSON(list)
}

func (b *Built) addDockerFiles(images []image, layerName func(layer) string, configName func(platformImage) string) error {
	list := make([]dockerImage, 0, len(images))
	for _, img := range images {
		p := img.platforms[0]
		e := dockerImage{Config: configName(p), RepoTags: slices.Clone(img.Names)}
		for _, l := range p.layers {
			e.Layers = append(e.Layers, layerName(l))
		}
		list = append(list, e)
	}
	return b.addDockerJSON(list)
}

// addDockerJSON adds manifest.json and repositories.
func (b *Built) addDockerJSON(list []dockerImage) error {
	repositories := map[string]map[string]string{}
	for i := range list {
		if b.archive.Names == NoName {
			list[i].RepoTags = nil
		}
		for _, name := range list[i].RepoTags {
			repo, tag, ok := cutTag(name)
			if !ok {
				return errors.New("a name in a docker archive needs a tag: " + name)
			}
			if repositories[repo] == nil {
				repositories[repo] = map[string]string{}
			}
			repositories[repo][tag] = strings.TrimSuffix(path.Base(list[i].Config), ".json")
		}
	}
	manifest, err := json.Marshal(list)
	if err != nil {
		return err
	}
	repos, err := json.Marshal(repositories)
	if err != nil {
		return err
	}
	b.Members = append(b.Members, FileMember("manifest.json", manifest))
	if b.archive.Format != DockerDigest {
		b.Members = append(b.Members, FileMember("repositories", repos))
	}
	return nil
}

func cutTag(name string) (repo, tag string, ok bool) {
	i := strings.LastIndexByte(name, ':')
	if i <= strings.LastIndexByte(name, '/') {
		return name, "", false
	}
	return name[:i], name[i+1:], true
}
