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

// planner decides what to write.
type planner struct {
	inputs    []Input
	options   Options
	resolver  archive.Resolver
	from      int // the input of the current image
	images    map[digest.Digest]*image
	manifests map[manifestKey]*manifest
}

// manifestKey has the platform too: two indexes may name one manifest for different platforms, and its config fits one.
type manifestKey struct {
	digest   digest.Digest
	platform string // "" for attestations
}

// named is a selected name.
type named struct {
	archive.Named
	input int
	image *image
}

// image is a target of index.json.
type image struct {
	indexes      []document
	platforms    []*manifest
	attestations []*manifest
	leftOut      []string // platforms
}

// document is an index, a manifest or a config.
type document struct {
	digest digest.Digest
	data   []byte
}

// manifest is an image for one platform, or an attestation.
type manifest struct {
	document
	platform string
	spec     *ocispec.Platform
	config   document
	layers   []layer
	missing  error // archive.ErrMissing if the inputs lack a blob
}

// names selects from all inputs together: a name stands for one image, and a glob need not match in every input.
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

// fetch reads metadata from the current image's input, else from any input.
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

// find locates a layer in the same order.
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
			return layer{}, fmt.Errorf("layer %s: its descriptor says %d bytes, but it has %d: %w", d.Digest, d.Size, blob.Size, archive.ErrInvalid)
		}
		return layer{Descriptor: ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}, input: in.Name, blob: blob}, nil
	}
	return layer{}, fmt.Errorf("layer %s: %w", d.Digest, missing)
}

// image plans the target of a name, once.
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

// choose takes the platforms of a target, and the indexes that name them.
func (p *planner) choose(ctx context.Context, target ocispec.Descriptor) (*image, error) {
	list, err := p.resolver.PlatformManifests(ctx, target)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%s (%.200q) is no image of any platform, leave it out with --exclude: %w",
			target.Digest, target.MediaType, archive.ErrInvalid)
	}
	img := &image{}
	if len(p.options.Platforms) == 0 {
		err = p.takeComplete(ctx, img, list)
	} else {
		err = p.takeChosen(ctx, img, list)
	}
	if err != nil {
		return nil, err
	}
	return img, p.takeIndexes(ctx, img, list)
}

// takeComplete takes all platforms whose blobs are in the inputs. `ctr images export` and a pull leave the others out.
func (p *planner) takeComplete(ctx context.Context, img *image, list []archive.PlatformManifest) error {
	var missing error
	for _, l := range list {
		made, err := p.manifest(ctx, l)
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
	if len(img.platforms) == 0 {
		return missing
	}
	return nil
}

// takeChosen takes for each chosen platform what a node of it would run. All of its blobs must be in the inputs.
func (p *planner) takeChosen(ctx context.Context, img *image, list []archive.PlatformManifest) error {
	for _, platform := range p.options.Platforms {
		best := bestFor(platform, list)
		if best == nil {
			continue
		}
		made, err := p.manifest(ctx, *best)
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
	if len(img.platforms) == 0 {
		return fmt.Errorf("it is for %s: %w", listed(img.leftOut), ErrNoPlatform)
	}
	return nil
}

// bestFor is the manifest that the CRI of a node of this platform would choose; nil if there is none.
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

func (img *image) has(d digest.Digest) bool {
	return slices.ContainsFunc(img.platforms, func(m *manifest) bool { return m.digest == d })
}

func (img *image) take(m *manifest) {
	if !img.has(m.digest) {
		img.platforms = append(img.platforms, m)
	}
}

// manifest reads a platform's manifest and config and finds the layers, once for all images that share them.
func (p *planner) manifest(ctx context.Context, l archive.PlatformManifest) (*manifest, error) {
	made := &manifest{platform: platforms.FormatAll(platforms.Normalize(*l.Platform)), spec: l.Platform}
	return p.once(made, l.Descriptor, func() error {
		m, err := archive.ReadManifest(ctx, p.fetch, l.Descriptor)
		if err != nil {
			return err
		}
		if _, err := archive.ReadConfig(ctx, p.fetch, m, *l.Platform); err != nil {
			return err
		}
		return p.fill(ctx, made, l.Descriptor, m)
	})
}

// attestation reads one likewise.
func (p *planner) attestation(ctx context.Context, d ocispec.Descriptor) (*manifest, error) {
	made := &manifest{}
	return p.once(made, d, func() error {
		m, err := archive.ReadReferrer(ctx, p.fetch, d)
		if err != nil {
			return err
		}
		return p.fill(ctx, made, d, m)
	})
}

// once reads a manifest, unless an earlier image has.
func (p *planner) once(made *manifest, d ocispec.Descriptor, read func() error) (*manifest, error) {
	made.digest = d.Digest
	key := manifestKey{d.Digest, made.platform}
	if earlier, ok := p.manifests[key]; ok {
		return earlier, nil
	}
	err := read()
	if errors.Is(err, archive.ErrMissing) {
		made.missing, err = err, nil
	}
	if err != nil {
		return nil, err
	}
	p.manifests[key] = made
	return made, nil
}

// fill reads the bytes of what was decoded again, which inputs keep in memory, and finds the layers.
func (p *planner) fill(ctx context.Context, made *manifest, d ocispec.Descriptor, m ocispec.Manifest) (err error) {
	made.config.digest = m.Config.Digest
	if made.data, err = p.fetch(ctx, d); err != nil {
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

// takeIndexes takes the indexes that name the chosen platforms, and the attestations in them.
func (p *planner) takeIndexes(ctx context.Context, img *image, list []archive.PlatformManifest) error {
	seen := map[digest.Digest]bool{}
	for _, l := range list {
		if !img.has(l.Digest) {
			continue
		}
		for _, d := range l.Parents {
			if seen[d.Digest] {
				continue
			}
			seen[d.Digest] = true
			data, err := p.fetch(ctx, d)
			if err != nil {
				return err
			}
			img.indexes = append(img.indexes, document{d.Digest, data})
			if err := p.takeAttestations(ctx, img, d, list); err != nil {
				return err
			}
		}
	}
	return nil
}

// takeAttestations takes what an index has beside platforms: everything if no platform is left out, else the attestations
// of chosen platforms. An attestation that lacks a blob is left out: imports do not read it.
func (p *planner) takeAttestations(ctx context.Context, img *image, index ocispec.Descriptor, list []archive.PlatformManifest) error {
	idx, err := archive.ReadIndex(ctx, p.fetch, index)
	if err != nil {
		return err
	}
	for _, d := range idx.Manifests {
		isPlatform := slices.ContainsFunc(list, func(l archive.PlatformManifest) bool { return l.Digest == d.Digest })
		ofChosen := img.has(digest.Digest(archive.Subject(d)))
		if isPlatform || !archive.IsManifest(d.MediaType) || len(img.leftOut) > 0 && !ofChosen {
			continue
		}
		made, err := p.attestation(ctx, d)
		if err != nil {
			return err
		}
		if made.missing == nil {
			img.attestations = append(img.attestations, made)
		}
	}
	return nil
}

// maxListed is how many words a message lists: tools build images for up to 15 platforms.
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
