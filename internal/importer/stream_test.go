package importer

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/tarlift/tarlift/internal/archive"
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

// sink is a stream's in a session of its own.
func (n *node) sink(t *testing.T) *streamSink {
	t.Helper()
	a, ctx, err := n.begin(n.in(t.Context()), &memory{stream: true}, wanted(owner))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.end(ctx, errInjected); !errors.Is(err, context.Canceled) { // the test has ended
			t.Error(err)
		}
	})
	return &streamSink{attempt: a, held: map[digest.Digest][]byte{}}
}

// The errors of Get are those that archive.Sink promises.
func TestStreamSinkGet(t *testing.T) {
	n := newNode(t, "linux/amd64")
	sink := n.sink(t)
	const data = `{"some":"metadata"}`
	d, err := sink.Put(n.in(t.Context()), digest.FromString(data), int64(len(data)), strings.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		digest digest.Digest
		limit  int64
		want   error
	}{
		"as large as may be": {d, int64(len(data)), nil},
		"too large":          {d, int64(len(data)) - 1, archive.ErrLimit},
		"not stored":         {digest.FromString("nobody's"), 100, fs.ErrNotExist},
	} {
		got, err := sink.Get(n.in(t.Context()), tc.digest, tc.limit)
		if !errors.Is(err, tc.want) || (err == nil) != (string(got) == data) {
			t.Errorf("%s: %q, error %v", name, got, err)
		}
	}
}
