package importer

import (
	"testing"

	"github.com/tarlift/tarlift/internal/archive/builder"
)

// A single pass whose metadata comes first stores no layer that is not needed.
func TestStreamWithMetadataInFront(t *testing.T) {
	b := build(t, twoImages())
	metadata, layers, foreign := []string{"oci-layout", "index.json"}, []string{}, int64(0)
	for _, img := range b.Images {
		metadata = append(metadata, builder.BlobPath(img.Target.Digest))
		for k, p := range img.Platforms {
			metadata = append(metadata, builder.BlobPath(p.Manifest.Digest), builder.BlobPath(p.Config.Digest))
			for _, l := range p.Layers {
				layers = append(layers, builder.BlobPath(l.Digest))
				if k == 1 {
					foreign += l.Size
				}
			}
		}
	}
	needed := sum(blobsFor(b, 0))
	for name, tc := range map[string]struct {
		first []string
		all   bool
	}{"metadata in front": {metadata, false}, "layers in front": {layers, true}} {
		b.Edit(builder.First(tc.first...))
		n := newNode(t, "linux/amd64")
		got, err := n.Import(t.Context(), blobOf(t, b, true), wanted(owner))
		if err != nil {
			t.Fatal(err)
		}
		if all := got.Bytes.Written >= needed+foreign; all != tc.all {
			t.Errorf("%s: written %d bytes; %d are needed, and foreign layers have %d", name, got.Bytes.Written, needed, foreign)
		}
		if got.Bytes.Skipped != 0 {
			t.Errorf("%s: skipped %d bytes of an empty store", name, got.Bytes.Skipped)
		}
	}
}

// Nothing is known before a needed manifest has passed: what follows the index of a nested one may be wanted.
func TestStreamWithLateManifest(t *testing.T) {
	for _, last := range []int{0, 1} { // the manifest for this platform, and the other one
		b := build(t, twoImages())
		b.Edit(builder.First("oci-layout", "index.json"), builder.Last(builder.BlobPath(b.Images[0].Platforms[last].Manifest.Digest)))
		n := newNode(t, "linux/amd64")
		if _, err := n.Import(t.Context(), blobOf(t, b, true), wanted(owner)); err != nil {
			t.Fatal(err)
		}
		for d := range blobsFor(b, 0) {
			if !n.has(t, d) {
				t.Errorf("manifest %d last: no blob %s", last, d)
			}
		}
	}
}
