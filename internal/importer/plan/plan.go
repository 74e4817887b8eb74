// Package plan decides what an import of an archive would do on a node: which images serve the node's platform, under which
// names, and which of their blobs are absent. It changes nothing, and of the archive it reads metadata only.
//
//	p, err := plan.Make(ctx, archive, plan.Request{Content: store, Platform: platform, Selection: selection})
package plan

import (
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
	"github.com/tarlift/tarlift/internal/importer/daemon"
	"github.com/tarlift/tarlift/internal/importer/unpack"
)

// What is wrong with an archive or its metadata is said by the errors of package archive, which pass through wrapped.
var (
	// ErrContentIncomplete is an image that lacks a blob which neither the archive nor the store has.
	ErrContentIncomplete = errors.New("content incomplete")
	// ErrNoMatchingPlatform is an archive without any image for this node's platform.
	ErrNoMatchingPlatform = errors.New("no image for this platform")
)

// Archive is an archive whose metadata can be read.
type Archive struct {
	*archive.Layout
	// Compression of the whole archive.
	Compression archive.Compression
	// Digest of the whole archive, when it was read in full.
	Digest digest.Digest
	// Passed are the blobs of a stream that was read and stored nowhere.
	Passed *archive.MemorySink
	// Streaming: the stream has not been read to its end, and what is not in it yet may come.
	Streaming bool
}

// Has says whether a blob is in the archive.
func (a *Archive) Has(d digest.Digest) bool {
	_, ok := a.find(d)
	return ok
}

// find returns where a blob's bytes are, only their number if they have passed in a stream.
func (a *Archive) find(d digest.Digest) (archive.Extent, bool) {
	if e, ok := a.Locate(d); ok {
		return e, true
	}
	size, ok := a.Passed.Size(d)
	return archive.Extent{Size: size}, ok
}

// Plan is what an import of an archive would do here.
type Plan struct {
	Format      string        `json:"format"` // oci or docker
	IndexDigest digest.Digest `json:"indexDigest"`
	Images      []Image       `json:"images"` // sorted by name
	Blobs       []Blob        `json:"blobs"`  // each once, in the order of transfer
	Bytes       Bytes         `json:"bytes"`

	RootFS []*unpack.Image `json:"-"` // of the images, in the order of transfer
}

// Image is an image of the archive, with the names that an import would publish: Name, DigestReference where it is set, and
// ID. Several images may have the same DigestReference or ID: the first in Plan.Images has it.
type Image struct {
	Name            string        `json:"name"`
	Source          string        `json:"source,omitempty"`          // its name in the archive, where that has one
	DigestReference string        `json:"digestReference,omitempty"` // name@digest
	ID              string        `json:"id"`                        // by which the CRI knows an image: sha256:<hex> of Config
	Digest          digest.Digest `json:"digest"`                    // of the names' target, the index of a multi-platform image
	Platform        string        `json:"platform"`                  // of the manifest that was chosen
	Manifest        digest.Digest `json:"manifest"`
	Config          digest.Digest `json:"config"`

	Target ocispec.Descriptor `json:"-"` // of the names
	rootfs unpack.Image
}

// Blob is one blob that the images need.
type Blob struct {
	ocispec.Descriptor
	Present bool `json:"present"` // in the content store: it is not moved

	// Extent is where the bytes are: in Data, or in the archive if Member is set. A blob that is Present has an extent for
	// the case that containerd's garbage collection takes it; neither is set if it is only in the content store, or has
	// passed in a stream.
	Extent archive.Extent `json:"-"`
}

// Bytes sums the blobs of a plan, in bytes.
type Bytes struct {
	Total   int64 `json:"total"`
	Present int64 `json:"present"`
	Move    int64 `json:"move"`
}

func (b *Bytes) add(size int64, present bool) {
	b.Total += size
	if present {
		b.Present += size
	} else {
		b.Move += size
	}
}

// MaxHeld is the size in bytes of what a single pass over an archive keeps in memory until it is known to be needed: an index,
// a manifest, or most configs. To store a blob costs containerd a sync, 100,000 of them would take it many minutes.
const MaxHeld = 32 << 10

// Request says what is wanted of an archive, and where.
type Request struct {
	// Content and Platform are the node's.
	Content   content.Store
	Platform  ocispec.Platform
	Selection archive.Selection
	// Digest of the whole archive and IndexDigest of its index.json: empty where they are not checked. The first is not compared
	// here: whoever gives it wants the archive whole.
	Digest, IndexDigest digest.Digest
}

// Make makes a plan. Errors: those of this package, of archive, and of package daemon.
func Make(ctx context.Context, a *Archive, req Request) (*Plan, error) {
	if req.IndexDigest != "" && req.IndexDigest != a.IndexDigest {
		return nil, fmt.Errorf("the archive's index digest is %s, not %s: %w", a.IndexDigest, req.IndexDigest, archive.ErrDigestMismatch)
	}
	if !a.Complete && !a.Streaming && (req.Digest != "" || req.IndexDigest != "") {
		return nil, fmt.Errorf("the tar has no end marker: %w", archive.ErrTruncated)
	}
	selected, err := a.Select(req.Selection)
	if err != nil {
		return nil, err
	}
	p := &planner{
		Request: req, archive: a, match: platforms.Only(req.Platform),
		targets: map[digest.Digest]*unpack.Image{}, foreign: map[string]bool{}, needed: map[digest.Digest]bool{},
		plan: &Plan{Format: a.Format, IndexDigest: a.IndexDigest},
	}
	p.resolver.Fetch = p.fetch
	for _, n := range selected {
		if err := p.addImage(ctx, n); err != nil {
			return nil, fmt.Errorf("image %q: %w", n.Name, err)
		}
	}
	if len(p.plan.Images) == 0 {
		return nil, p.noMatchingPlatform()
	}
	slices.SortFunc(p.plan.Images, func(a, b Image) int { return strings.Compare(a.Name, b.Name) })
	for _, b := range p.plan.Blobs {
		p.plan.Bytes.add(b.Size, b.Present)
	}
	return p.plan, nil
}

// planner gathers what the images of one archive need.
type planner struct {
	Request
	archive  *Archive
	resolver archive.Resolver
	match    platforms.MatchComparer
	targets  map[digest.Digest]*unpack.Image // by the digest of a target, nil for one without this platform
	foreign  map[string]bool                 // platforms that the archive has, of images without this one
	needed   map[digest.Digest]bool
	plan     *Plan
}

// addImage plans an image, unless it is of other platforms only. Several names may have the same target.
func (p *planner) addImage(ctx context.Context, n archive.Named) error {
	fs, known := p.targets[n.Target.Digest]
	if !known {
		manifest, err := p.choose(ctx, n.Target)
		if err == nil && manifest != nil {
			fs, err = p.addBlobs(ctx, n.Name, *manifest)
		}
		if err != nil {
			return err
		}
		p.targets[n.Target.Digest] = fs
	}
	if fs == nil {
		return nil
	}
	p.plan.Images = append(p.plan.Images, Image{
		Name: n.Name, Source: n.Source, DigestReference: n.DigestReference, ID: fs.Config.Digest.String(),
		Digest: n.Target.Digest, Platform: platforms.FormatAll(*fs.Manifest.Platform), Manifest: fs.Manifest.Digest, Config: fs.Config.Digest,
		// Annotations and embedded data are the archive's business: a pulled image's target has none.
		Target: ocispec.Descriptor{MediaType: n.Target.MediaType, Digest: n.Target.Digest, Size: n.Target.Size},
		rootfs: *fs,
	})
	return nil
}

// choose returns the platform manifest below target that the CRI would choose on this node, nil if there is none.
func (p *planner) choose(ctx context.Context, target ocispec.Descriptor) (*archive.PlatformManifest, error) {
	list, err := p.resolver.PlatformManifests(ctx, target)
	if errors.Is(err, archive.ErrMissing) && !errors.Is(err, archive.ErrTruncated) {
		return nil, fmt.Errorf("%w: %w", ErrContentIncomplete, err)
	}
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		// An image of no known platform: an artifact, or one that is not here at all.
		if _, err := p.fetch(ctx, target); errors.Is(err, archive.ErrMissing) {
			return nil, p.incomplete(target)
		}
	}
	if !slices.ContainsFunc(list, func(m archive.PlatformManifest) bool { return p.match.Match(*m.Platform) }) {
		p.addForeign(ctx, list)
		return nil, nil //nolint:nilnil // none
	}
	// containerd reads only the best child of each index. Which one that is only its own code knows.
	seen := &check.Provider{Fetch: p.fetch}
	_, err = images.Manifest(ctx, seen, target, p.match)
	best := slices.IndexFunc(list, func(m archive.PlatformManifest) bool { return m.Digest == seen.Manifest && p.match.Match(*m.Platform) })
	absent := errors.Is(err, archive.ErrMissing)
	switch {
	case best >= 0 && absent && !errors.Is(err, archive.ErrTruncated) && p.addForeign(ctx, list):
		return nil, nil //nolint:nilnil // none
	case best >= 0:
		return &list[best], nil
	case absent:
		return nil, p.incomplete(target)
	case err != nil && !errdefs.IsNotFound(err):
		return nil, fmt.Errorf("choose a platform: %w", err)
	}
	return nil, fmt.Errorf("its index has %q, but containerd does not find it behind descriptors without a platform: %w",
		platforms.FormatAll(p.Platform), ErrNoMatchingPlatform)
}

// addForeign notes the platforms that the archive has of an image. It says whether these are others only, although the index
// may list this one, too: an archive of one platform keeps the index as it is. If it has a manifest that would serve this
// node, a better one got lost.
func (p *planner) addForeign(ctx context.Context, list []archive.PlatformManifest) bool {
	ours, others := false, false
	for _, m := range list {
		if !p.inArchive(ctx, m.Descriptor) {
			continue
		}
		ours = ours || p.match.Match(*m.Platform)
		others = others || !p.match.Match(*m.Platform)
		p.foreign[platforms.FormatAll(*m.Platform)] = true
	}
	return others && !ours
}

// inArchive says whether the archive has a manifest, whatever the content store has.
func (p *planner) inArchive(ctx context.Context, d ocispec.Descriptor) bool {
	if p.archive.Has(d.Digest) {
		return true
	}
	_, err := p.archive.ReadBlob(ctx, d, archive.MaxManifestBytes) // a single pass has kept it
	return !errors.Is(err, archive.ErrMissing)
}

// noMatchingPlatform names the platforms that the archive has.
func (p *planner) noMatchingPlatform() error {
	names := "no platform"
	if len(p.foreign) > 0 {
		names = archive.Quoted(slices.Sorted(maps.Keys(p.foreign))) + " only"
	}
	return fmt.Errorf("the archive has images for %s, this node needs %q: %w", names, platforms.FormatAll(p.Platform), ErrNoMatchingPlatform)
}

// addBlobs plans the blobs of one image: the indexes above its manifest, the manifest, its config and its layers.
func (p *planner) addBlobs(ctx context.Context, name string, d archive.PlatformManifest) (*unpack.Image, error) {
	m, err := archive.ReadManifest(ctx, p.fetch, d.Descriptor)
	if errors.Is(err, archive.ErrMissing) {
		return nil, p.incomplete(d.Descriptor)
	}
	if err != nil {
		return nil, err
	}
	diffIDs, err := archive.ReadConfig(ctx, p.fetchStored, m, *d.Platform)
	if errors.Is(err, archive.ErrMissing) {
		return nil, p.incomplete(m.Config)
	}
	if err != nil {
		return nil, err
	}
	for _, blob := range slices.Concat(d.Parents, []ocispec.Descriptor{d.Descriptor, m.Config}, m.Layers) {
		if err := p.addBlob(ctx, blob); err != nil {
			return nil, err
		}
	}
	fs := &unpack.Image{Name: name, Manifest: d.Descriptor, Config: m.Config, Layers: m.Layers, DiffIDs: diffIDs}
	p.plan.RootFS = append(p.plan.RootFS, fs)
	return fs, nil
}

// addBlob plans a blob, once.
func (p *planner) addBlob(ctx context.Context, d ocispec.Descriptor) error {
	if p.needed[d.Digest] {
		return nil
	}
	p.needed[d.Digest] = true
	b := Blob{Descriptor: ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}}
	info, err := p.Content.Info(ctx, d.Digest)
	switch {
	case err == nil:
		b.Present = true
		if e, ok := p.archive.find(d.Digest); ok && e.Size == d.Size {
			b.Extent = e
		}
	case errdefs.IsNotFound(err):
		if b.Extent, err = p.locate(ctx, d); err != nil {
			return err
		}
		info.Size = b.Extent.Size
	default:
		return daemon.Error("look up "+d.Digest.String(), err)
	}
	if info.Size != d.Size {
		return fmt.Errorf("descriptor of %s: size is %d, the blob has %d bytes: %w", d.Digest, d.Size, info.Size, archive.ErrInvalid)
	}
	p.plan.Blobs = append(p.plan.Blobs, b)
	return nil
}

// locate finds a blob that is not in the content store: metadata in memory, since it has been read, and layers without
// reading them.
func (p *planner) locate(ctx context.Context, d ocispec.Descriptor) (archive.Extent, error) {
	if e, ok := p.archive.find(d.Digest); ok {
		return e, nil
	}
	if d.Size <= MaxHeld {
		data, err := p.archive.ReadBlob(ctx, d, MaxHeld) // a single pass has kept it
		if !errors.Is(err, archive.ErrMissing) {
			return archive.Extent{Size: int64(len(data)), Data: data}, err
		}
	}
	if p.archive.Streaming {
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

// fetch reads metadata from the archive, else from the content store: a partial archive may count on content that its
// receiver has.
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

// fetchStored reads metadata from the content store, else from the archive.
func (p *planner) fetchStored(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	data, err := p.readStored(ctx, d)
	if errdefs.IsNotFound(err) {
		return p.fetch(ctx, d)
	}
	return data, err
}

// readStored reads metadata from the content store. It counts as if the archive had it: a single pass has stored it
// there.
func (p *planner) readStored(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	data, err := check.ReadBlob(ctx, p.Content, d.Digest, archive.MaxConfigBytes)
	if err == nil {
		err = p.archive.CountDecoded(data)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", d.Digest, err)
	}
	return data, nil
}

// ImageBytes are the sums of the images of a plan, in their order, but for indexes between their own and their manifests, of
// which there are hardly any. A blob that several need is moved for the first of them, and present for the others.
func (p *Plan) ImageBytes() []Bytes {
	present := map[digest.Digest]bool{}
	for _, b := range p.Blobs {
		present[b.Digest] = b.Present
	}
	sums := make([]Bytes, len(p.Images))
	for k, img := range p.Images {
		counted := map[digest.Digest]bool{}
		for _, d := range slices.Concat([]ocispec.Descriptor{img.Target, img.rootfs.Manifest, img.rootfs.Config}, img.rootfs.Layers) {
			if !counted[d.Digest] {
				sums[k].add(d.Size, present[d.Digest])
				counted[d.Digest], present[d.Digest] = true, true
			}
		}
	}
	return sums
}
