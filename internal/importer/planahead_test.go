package importer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/builder"
)

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
	return &streamSink{attempt: a}
}

// Each image of a stream ends the hope that all metadata has passed. What is needed is found out after the last of as
// many as there are early plans, and not any more with one image more.
func TestEarlyPlansAreBounded(t *testing.T) {
	for _, more := range []int{0, 1} {
		images := maxEarlyPlans + more
		a := builder.Archive{}
		for k := range images {
			a.Images = append(a.Images, builder.Image{
				Names:     []string{fmt.Sprintf("registry.example/team/app-%d:1", k)},
				Platforms: []builder.PlatformImage{platformImage("linux/amd64", layer(fmt.Sprint("layer-", k), 64<<10))},
			})
		}
		b := build(t, a)
		order := []string{"oci-layout", "index.json"}
		for _, img := range b.Images {
			p := img.Platforms[0]
			for _, d := range []digest.Digest{p.Manifest.Digest, p.Config.Digest, p.Layers[0].Digest} {
				order = append(order, builder.BlobPath(d))
			}
		}
		b.Edit(builder.First(order...))
		n := newNode(t, "linux/amd64")
		sink := n.sink(t)
		if _, err := openStream(n.in(t.Context()), blobOf(t, b, true), sink, "", func(int64) error { return nil }); err != nil {
			t.Fatal(err)
		}
		if sink.tried != maxEarlyPlans {
			t.Errorf("%d images: %d early plans, want %d", images, sink.tried, maxEarlyPlans)
		}
		if known := sink.needed != nil; known != (more == 0) {
			t.Errorf("%d images: what is needed is known: %v", images, known)
		}
	}
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
