package bundle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive"
)

// planner finds out what is to be written.
type planner struct {
	inputs  []Input
	options Options
	walk    archive.Resolver
	from    int // the input of the image that is looked at
	images  map[digest.Digest]*image
	leaves  map[leafKey]*leaf
}

// leafKey: the same manifest may stand for different platforms in two indexes, of which its config fits one.
type leafKey struct {
	digest   digest.Digest
	platform string // "" of attestations
}

// named is a name that was chosen.
type named struct {
	archive.Named
	input int
	image *image
}

// image is a target of index.json.
type image struct {
	indexes []document
	leaves  []*leaf
	others  []*leaf // attestations
	leftOut []string
}

// document is an index, a manifest or a config.
type document struct {
	digest digest.Digest
	data   []byte
}

// leaf is a manifest with what it names, or why it is not whole.
type leaf struct {
	platform string
	spec     *ocispec.Platform
	manifest document
	config   document
	layers   []layer
	missing  error
}

// names selects from all inputs together, so that a name stands for one image, and one glob need not match in each of them.
func (p *planner) names() ([]named, error) {
	type place struct{ input, number int }
	var all []ocispec.Descriptor
	var places []place
	owner := map[digest.Digest]int{}
	for k, in := range p.inputs {
		for i, d := range in.Manifests {
			all = append(all, d)
			places = append(places, place{k, i})
			if _, ok := owner[d.Digest]; !ok {
				owner[d.Digest] = k
			}
		}
	}
	selection := p.options.Selection
	selection.DigestReferences = false
	list, err := selection.SelectAt(all, func(i int) string {
		in := p.inputs[places[i].input]
		return in.Name + ": " + in.Place(places[i].number)
	})
	if err != nil {
		return nil, err
	}
	out := make([]named, len(list))
	for i, n := range list {
		out[i] = named{Named: n, input: owner[n.Target.Digest]}
	}
	slices.SortFunc(out, func(a, b named) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// fetch reads metadata: from the input of the image that is looked at, else from any.
func (p *planner) fetch(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	data, missing := p.inputs[p.from].ReadBlob(ctx, d, archive.MaxConfigBytes)
	if !errors.Is(missing, archive.ErrMissing) {
		return data, missing
	}
	for k, in := range p.inputs {
		if k == p.from {
			continue
		}
		data, err := in.ReadBlob(ctx, d, archive.MaxConfigBytes)
		if err == nil {
			return data, nil
		}
		if !errors.Is(err, archive.ErrMissing) {
			return nil, fmt.Errorf("in %s: %w", in.Name, err)
		}
	}
	return nil, missing
}

// find locates a layer likewise.
func (p *planner) find(ctx context.Context, d ocispec.Descriptor) (layer, error) {
	order := append([]Input{p.inputs[p.from]}, p.inputs...)
	var missing error
	for _, in := range order {
		blob, err := in.Find(ctx, d.Digest)
		switch {
		case errors.Is(err, archive.ErrMissing):
			if missing == nil {
				missing = err
			}
			continue
		case err != nil:
			return layer{}, err
		case blob.Size != d.Size:
			return layer{}, fmt.Errorf("layer %s: size: its descriptor says %d, it has %d bytes: %w", d.Digest, d.Size, blob.Size, archive.ErrInvalid)
		}
		return layer{Descriptor: ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}, input: in.Name, blob: blob}, nil
	}
	return layer{}, fmt.Errorf("layer %s: %w", d.Digest, missing)
}

// image plans what a name stands for, once.
func (p *planner) image(ctx context.Context, n *named) error {
	if img, ok := p.images[n.Target.Digest]; ok {
		n.image = img
		return nil
	}
	p.from = n.input
	img, err := p.choose(ctx, n.Target)
	if err != nil {
		return fmt.Errorf("%s: image %q: %w", p.inputs[n.input].Name, n.Name, err)
	}
	p.images[n.Target.Digest], n.image = img, img
	return nil
}

// choose takes the platforms of a target, and the indexes above them.
func (p *planner) choose(ctx context.Context, target ocispec.Descriptor) (*image, error) {
	list, err := p.walk.PlatformManifests(ctx, target)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%s (%q) is no image of any platform, leave it out with --exclude: %w", target.Digest, target.MediaType, archive.ErrInvalid)
	}
	img := &image{}
	if len(p.options.Platforms) == 0 {
		err = p.takeWhole(ctx, img, list)
	} else {
		err = p.takeChosen(ctx, img, list)
	}
	if err != nil {
		return nil, err
	}
	return img, p.takeIndexes(ctx, img, list)
}

// takeWhole takes all platforms of which everything is there. `ctr images export` and a pull leave the others out.
func (p *planner) takeWhole(ctx context.Context, img *image, list []archive.PlatformManifest) error {
	var missing error
	for _, l := range list {
		made, err := p.leaf(ctx, l)
		switch {
		case err != nil:
			return err
		case made.missing == nil:
			img.take(made)
			continue
		case errors.Is(made.missing, archive.ErrTruncated):
			return made.missing
		case missing == nil:
			missing = made.missing
		}
		img.leftOut = append(img.leftOut, made.platform)
	}
	if len(img.leaves) == 0 {
		return missing
	}
	return nil
}

// takeChosen takes for each platform what a node of it would run. It must be whole.
func (p *planner) takeChosen(ctx context.Context, img *image, list []archive.PlatformManifest) error {
	for _, platform := range p.options.Platforms {
		best := bestFor(platform, list)
		if best == nil {
			continue
		}
		made, err := p.leaf(ctx, *best)
		if err == nil {
			err = made.missing
		}
		if err != nil {
			return fmt.Errorf("platform %s: %w", platforms.FormatAll(platform), err)
		}
		img.take(made)
	}
	for _, l := range list {
		if !img.has(l.Digest) {
			img.leftOut = append(img.leftOut, platforms.FormatAll(*l.Platform))
		}
	}
	if len(img.leaves) == 0 {
		return fmt.Errorf("it is for %s: %w", listed(img.leftOut), ErrNoPlatform)
	}
	return nil
}

// bestFor is the leaf that the CRI of a node would choose; nil where there is none.
func bestFor(platform ocispec.Platform, list []archive.PlatformManifest) *archive.PlatformManifest {
	match := platforms.Only(platform)
	var best *archive.PlatformManifest
	for i := range list {
		l := &list[i]
		if match.Match(*l.Platform) && (best == nil || match.Less(*l.Platform, *best.Platform)) {
			best = l
		}
	}
	return best
}

func (img *image) has(manifest digest.Digest) bool {
	return slices.ContainsFunc(img.leaves, func(l *leaf) bool { return l.manifest.digest == manifest })
}

func (img *image) take(l *leaf) {
	if !img.has(l.manifest.digest) {
		img.leaves = append(img.leaves, l)
	}
}

// leaf reads a manifest and config and finds the layers, once for all images that share them.
func (p *planner) leaf(ctx context.Context, l archive.PlatformManifest) (*leaf, error) {
	made := &leaf{platform: platforms.FormatAll(platforms.Normalize(*l.Platform)), spec: l.Platform}
	key := leafKey{l.Digest, made.platform}
	if made, ok := p.leaves[key]; ok {
		return made, nil
	}
	err := p.readLeaf(ctx, l, made)
	if errors.Is(err, archive.ErrMissing) {
		made.missing, err = err, nil
	}
	if err != nil {
		return nil, err
	}
	p.leaves[key] = made
	return made, nil
}

func (p *planner) readLeaf(ctx context.Context, l archive.PlatformManifest, made *leaf) error {
	m, err := archive.ReadManifest(ctx, p.fetch, l.Descriptor)
	if err != nil {
		return err
	}
	if _, err := archive.ReadConfig(ctx, p.fetch, m, *l.Platform); err != nil {
		return err
	}
	return p.fill(ctx, made, l.Descriptor, m)
}

// fill reads again what was decoded, which inputs keep in memory, and finds the layers.
func (p *planner) fill(ctx context.Context, made *leaf, d ocispec.Descriptor, m ocispec.Manifest) (err error) {
	made.manifest.digest, made.config.digest = d.Digest, m.Config.Digest
	if made.manifest.data, err = p.fetch(ctx, d); err != nil {
		return err
	}
	if made.config.data, err = p.fetch(ctx, m.Config); err != nil {
		return err
	}
	made.layers = make([]layer, len(m.Layers))
	for i, d := range m.Layers {
		if made.layers[i], err = p.find(ctx, d); err != nil {
			return err
		}
	}
	return nil
}

// maxListed words of a message: tools build images for up to 15 platforms.
const maxListed = 20

func listed(words []string) string {
	quoted := make([]string, 0, min(len(words), maxListed+1))
	for i, w := range words {
		if i == maxListed {
			quoted = append(quoted, fmt.Sprintf("%d more", len(words)-i))
			break
		}
		quoted = append(quoted, fmt.Sprintf("%.100q", w))
	}
	return strings.Join(quoted, ", ")
}
