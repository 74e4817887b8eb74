package importer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/importer/check"
	"github.com/tarlift/tarlift/internal/importer/unpack"
)

// Plan is what an import of an archive would do here, found without changing anything.
type Plan struct {
	Format      string         `json:"format"` // oci or docker
	IndexDigest digest.Digest  `json:"indexDigest"`
	Images      []PlannedImage `json:"images"` // sorted by name
	Blobs       []PlannedBlob  `json:"blobs"`  // each once, in the order of transfer
	Bytes       PlannedBytes   `json:"bytes"`

	matcher platforms.MatchComparer // of exactly the chosen platforms
	rootfs  []*unpack.Image         // of the images, in the order of transfer
}

// PlannedImage is one name that an import would publish.
type PlannedImage struct {
	Name            string        `json:"name"`
	Source          string        `json:"source,omitempty"` // its name in the archive, where that has one
	DigestReference string        `json:"digestReference,omitempty"`
	Digest          digest.Digest `json:"digest"`   // of the name's target, the index of a multi-platform image
	Platform        string        `json:"platform"` // of the manifest that was chosen
	Manifest        digest.Digest `json:"manifest"`
	Config          digest.Digest `json:"config"`
	ID              string        `json:"id,omitempty"`

	target ocispec.Descriptor
}

// PlannedBlob is one blob that the images need.
type PlannedBlob struct {
	ocispec.Descriptor
	Present bool `json:"present"` // in the content store: it is not moved

	extent archive.Extent
}

// PlannedBytes sums the blobs of a plan, in bytes.
type PlannedBytes struct {
	Total   int64 `json:"total"`
	Present int64 `json:"present"`
	Move    int64 `json:"move"`
}

// planner gathers what the images of one archive need.
type planner struct {
	importer *Importer
	archive  *Archive
	walk     archive.Resolver
	match    platforms.MatchComparer
	needed   map[digest.Digest]bool
	images   map[digest.Digest]image
	plan     *Plan
}

// Plan decides what an import of an archive would do here, and changes nothing. All that it reads of the archive is
// metadata.
func (i *Importer) Plan(ctx context.Context, a *Archive, req Request) (*Plan, error) {
	ctx = i.in(ctx)
	if req.IndexDigest != "" && req.IndexDigest != a.IndexDigest {
		return nil, fmt.Errorf("the archive's index digest is %s, not %s: %w", a.IndexDigest, req.IndexDigest, archive.ErrDigestMismatch)
	}
	if !a.Complete && !a.passing && (req.Digest != "" || req.IndexDigest != "") {
		return nil, fmt.Errorf("the tar has no end marker: %w", archive.ErrTruncated)
	}
	named, err := a.Select(req.Selection)
	if err != nil {
		return nil, err
	}
	p := &planner{
		importer: i, archive: a, match: platforms.Only(i.platform),
		needed: map[digest.Digest]bool{}, images: map[digest.Digest]image{}, plan: &Plan{Format: a.Format, IndexDigest: a.IndexDigest},
	}
	p.walk.Fetch = p.fetch
	var chosen chosenPlatforms
	foreign := map[string]bool{}
	for _, n := range named {
		img, err := p.image(ctx, n.Name, n.Target)
		if err != nil {
			return nil, fmt.Errorf("image %q: %w", n.Name, err)
		}
		if img.leaf == nil {
			for _, other := range img.others {
				foreign[other] = true
			}
			continue
		}
		if !chosen.Match(*img.leaf.Platform) {
			chosen = append(chosen, *img.leaf.Platform)
		}
		p.plan.Images = append(p.plan.Images, PlannedImage{
			Name: n.Name, Source: n.Source, DigestReference: n.DigestReference,
			Digest: n.Target.Digest, Platform: platforms.FormatAll(*img.leaf.Platform), Manifest: img.leaf.Digest,
			// Annotations and embedded data are the archive's business: a pulled image's target has none.
			target: ocispec.Descriptor{MediaType: n.Target.MediaType, Digest: n.Target.Digest, Size: n.Target.Size},
		})
	}
	if len(p.plan.Images) == 0 {
		return nil, fmt.Errorf("the archive has images for %s only, this node needs %q: %w",
			listed(foreign), platforms.FormatAll(i.platform), ErrNoMatchingPlatform)
	}
	configs := map[digest.Digest]digest.Digest{}
	for _, fs := range p.plan.rootfs {
		configs[fs.Manifest.Digest] = fs.Config.Digest
	}
	for k, img := range p.plan.Images {
		p.plan.Images[k].Config, p.plan.Images[k].ID = configs[img.Manifest], configs[img.Manifest].String()
	}
	slices.SortFunc(p.plan.Images, func(a, b PlannedImage) int { return strings.Compare(a.Name, b.Name) })
	p.plan.matcher = chosen
	for _, b := range p.plan.Blobs {
		p.plan.Bytes.Total += b.Size
		if b.Present {
			p.plan.Bytes.Present += b.Size
		}
	}
	p.plan.Bytes.Move = p.plan.Bytes.Total - p.plan.Bytes.Present
	return p.plan, nil
}

// image is what a plan knows of one target; several names may stand for it.
type image struct {
	leaf   *archive.PlatformManifest // for this node's platform, nil if there is none
	others []string                  // the platforms that there are
}

// image plans what one target needs, once.
func (p *planner) image(ctx context.Context, name string, target ocispec.Descriptor) (image, error) {
	if img, ok := p.images[target.Digest]; ok {
		return img, nil
	}
	img, err := p.choose(ctx, target)
	if err == nil && img.leaf != nil {
		err = p.add(ctx, name, *img.leaf)
	}
	p.images[target.Digest] = img
	return img, err
}

// choose finds the manifest below target that the CRI would choose for this platform.
func (p *planner) choose(ctx context.Context, target ocispec.Descriptor) (image, error) {
	leaves, err := p.walk.PlatformManifests(ctx, target)
	if errors.Is(err, archive.ErrMissing) && !errors.Is(err, archive.ErrTruncated) {
		return image{}, fmt.Errorf("%w: %w", ErrContentIncomplete, err)
	}
	if err != nil {
		return image{}, err
	}
	if len(leaves) == 0 {
		// An image of no known platform: an artifact, or one that is not here at all.
		if _, err := p.fetch(ctx, target); errors.Is(err, archive.ErrMissing) {
			return image{}, p.incomplete(target)
		}
	}
	var img image
	matching := false
	for _, l := range leaves {
		img.others = append(img.others, fmt.Sprintf("%.100q", platforms.FormatAll(*l.Platform)))
		matching = matching || p.match.Match(*l.Platform)
	}
	if !matching {
		return img, nil
	}
	// containerd looks at the best child of each index alone. Which one that is only its own code knows.
	seen := &manifestProvider{fetch: p.fetch}
	_, err = images.Manifest(ctx, seen, target, p.match)
	for k, l := range leaves {
		if l.Digest == seen.manifest && p.match.Match(*l.Platform) {
			img.leaf = &leaves[k]
			return img, nil
		}
	}
	switch {
	case errors.Is(err, archive.ErrMissing):
		return img, p.incomplete(target)
	case err != nil && !errdefs.IsNotFound(err):
		return img, fmt.Errorf("choose a platform: %w", err)
	}
	return img, fmt.Errorf("its index has %q, but containerd does not find it behind descriptors without a platform: %w",
		platforms.FormatAll(p.importer.platform), ErrNoMatchingPlatform)
}

// manifestProvider gives containerd the metadata of an archive, and notes which manifest it read last.
type manifestProvider struct {
	fetch    archive.Fetch
	manifest digest.Digest
}

func (m *manifestProvider) ReaderAt(ctx context.Context, d ocispec.Descriptor) (content.ReaderAt, error) {
	if images.IsManifestType(d.MediaType) {
		m.manifest = d.Digest
	}
	data, err := m.fetch(ctx, d)
	return bytesReaderAt{bytes.NewReader(data)}, err
}

type bytesReaderAt struct{ *bytes.Reader }

func (bytesReaderAt) Close() error { return nil }

// add plans the blobs of one image: the indexes above its manifest, the manifest, its config and its layers.
func (p *planner) add(ctx context.Context, name string, leaf archive.PlatformManifest) error {
	m, err := archive.ReadManifest(ctx, p.fetch, leaf.Descriptor)
	if errors.Is(err, archive.ErrMissing) {
		return p.incomplete(leaf.Descriptor)
	}
	if err != nil {
		return err
	}
	for _, d := range slices.Concat(leaf.Parents, []ocispec.Descriptor{leaf.Descriptor, m.Config}) {
		if err := p.need(ctx, d, p.metadata); err != nil {
			return err
		}
	}
	diffIDs, err := archive.ReadConfig(ctx, p.stored, m, *leaf.Platform)
	if err != nil {
		return err
	}
	for _, d := range m.Layers {
		if err := p.need(ctx, d, p.locate); err != nil {
			return err
		}
	}
	p.plan.rootfs = append(p.plan.rootfs, &unpack.Image{Name: name, Manifest: leaf.Descriptor, Config: m.Config, Layers: m.Layers, DiffIDs: diffIDs})
	return nil
}

// stored reads metadata from the content store, else from the archive.
func (p *planner) stored(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	data, err := p.readStored(ctx, d)
	if errdefs.IsNotFound(err) {
		return p.fetch(ctx, d)
	}
	return data, err
}

// readStored reads metadata from the content store. It counts as if the archive held it: in a single pass that has been
// stored already.
func (p *planner) readStored(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	data, err := check.ReadBlob(ctx, p.importer.services.content, d.Digest, archive.MaxConfigBytes)
	if err == nil {
		err = p.archive.CountDecoded(data)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", d.Digest, err)
	}
	return data, nil
}

// need plans a blob, once: as present in the store, or where find says that it is in the archive.
func (p *planner) need(ctx context.Context, d ocispec.Descriptor, find func(context.Context, ocispec.Descriptor) (archive.Extent, error)) error {
	if p.needed[d.Digest] {
		return nil
	}
	p.needed[d.Digest] = true
	b := PlannedBlob{Descriptor: ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}}
	info, err := p.importer.services.content.Info(ctx, d.Digest)
	switch {
	case err == nil:
		b.Present, b.extent.Size = true, info.Size
	case errdefs.IsNotFound(err):
		if b.extent, err = find(ctx, d); err != nil {
			return err
		}
	default:
		return runtimeError("look up "+d.Digest.String(), err)
	}
	if b.extent.Size != d.Size {
		return fmt.Errorf("descriptor of %s: size is %d, the blob has %d bytes: %w", d.Digest, d.Size, b.extent.Size, archive.ErrInvalid)
	}
	p.plan.Blobs = append(p.plan.Blobs, b)
	return nil
}

// metadata reads an index, manifest or config: most have been read already, and they lie side by side.
func (p *planner) metadata(ctx context.Context, d ocispec.Descriptor) (archive.Extent, error) {
	data, err := p.archive.ReadBlob(ctx, d, archive.MaxConfigBytes)
	if errors.Is(err, archive.ErrMissing) {
		err = p.incomplete(d)
	}
	return archive.Extent{Size: int64(len(data)), Data: data}, err
}

// locate finds a layer without reading it.
func (p *planner) locate(ctx context.Context, d ocispec.Descriptor) (archive.Extent, error) {
	if e, ok := p.archive.locate(d.Digest); ok {
		return e, nil
	}
	if d.Size <= maxHeld {
		data, err := p.archive.ReadBlob(ctx, d, maxHeld) // a single pass has kept it
		if !errors.Is(err, archive.ErrMissing) {
			return archive.Extent{Size: int64(len(data)), Data: data}, err
		}
	}
	if p.archive.passing {
		return archive.Extent{Size: d.Size}, nil
	}
	return archive.Extent{}, p.incomplete(d)
}

// incomplete says that a needed blob is nowhere; an archive without an end was most likely cut before it.
func (p *planner) incomplete(d ocispec.Descriptor) error {
	reason := ErrContentIncomplete
	if !p.archive.Complete {
		reason = archive.ErrTruncated
	}
	return fmt.Errorf("blob %s (%q) is neither in the archive nor in containerd: %w", d.Digest, d.MediaType, reason)
}

// fetch reads metadata from the archive, else from the content store: a partial archive may count on content
// that its receiver has.
func (p *planner) fetch(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	data, err := p.archive.ReadBlob(ctx, d, archive.MaxConfigBytes)
	if !errors.Is(err, archive.ErrMissing) {
		return data, err
	}
	stored, storeErr := p.readStored(ctx, d)
	if errdefs.IsNotFound(storeErr) {
		return nil, err
	}
	return stored, storeErr
}

// maxListed words of a message: tools build images for up to 15 platforms.
const maxListed = 20

// listed joins words in order, for messages.
func listed(words map[string]bool) string {
	list := slices.Sorted(maps.Keys(words))
	switch {
	case len(list) == 0:
		return "no platform"
	case len(list) > maxListed:
		list = append(list[:maxListed], fmt.Sprintf("%d more", len(list)-maxListed))
	}
	return strings.Join(list, ", ")
}

// chosenPlatforms matches exactly the platforms that a plan chose. platforms.Only would also want lesser ones,
// for example 386 on amd64, whose blobs are not there.
type chosenPlatforms []ocispec.Platform

func (c chosenPlatforms) Match(p ocispec.Platform) bool {
	return slices.ContainsFunc(c, func(q ocispec.Platform) bool {
		return platforms.FormatAll(platforms.Normalize(q)) == platforms.FormatAll(platforms.Normalize(p))
	})
}

func (c chosenPlatforms) Less(ocispec.Platform, ocispec.Platform) bool { return false }
