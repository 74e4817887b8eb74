package bundle

import (
	"context"
	"errors"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive"
)

// takeIndexes takes the indexes above the chosen leaves, and the attestations that stand in them.
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
			if err := p.takeOthers(ctx, img, d, list); err != nil {
				return err
			}
		}
	}
	return nil
}

// takeOthers takes what is in an index beside platforms: all where no platform is left out, else what is about a chosen
// one. What is not there whole nobody misses: an import does not read it.
func (p *planner) takeOthers(ctx context.Context, img *image, index ocispec.Descriptor, list []archive.PlatformManifest) error {
	idx, err := archive.ReadIndex(ctx, p.fetch, index)
	if err != nil {
		return err
	}
	platform := map[digest.Digest]bool{}
	for _, l := range list {
		platform[l.Digest] = true
	}
	for _, d := range idx.Manifests {
		about := img.has(digest.Digest(archive.Subject(d)))
		if platform[d.Digest] || !archive.IsManifest(d.MediaType) || len(img.leftOut) > 0 && !about {
			continue
		}
		made, err := p.other(ctx, d)
		if err != nil {
			return err
		}
		if made.missing == nil {
			img.others = append(img.others, made)
		}
	}
	return nil
}

// other reads an attestation, once.
func (p *planner) other(ctx context.Context, d ocispec.Descriptor) (*leaf, error) {
	key := leafKey{digest: d.Digest}
	if made, ok := p.leaves[key]; ok {
		return made, nil
	}
	made := &leaf{}
	m, err := archive.ReadReferrer(ctx, p.fetch, d)
	if err == nil {
		err = p.fill(ctx, made, d, m)
	}
	if errors.Is(err, archive.ErrMissing) {
		made.missing, err = err, nil
	}
	p.leaves[key] = made
	return made, err
}
