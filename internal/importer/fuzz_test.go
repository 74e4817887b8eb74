package importer

import (
	"bytes"
	"context"
	"flag"
	"strings"
	"testing"
	"unicode"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive/corpus"
)

// FuzzImport imports whatever the bytes are into containerd's store. When it succeeds, all that was published is complete,
// and each blob has its digest; when it fails, nothing has changed.
func FuzzImport(f *testing.F) {
	// TestCorpus imports them all, with an oracle that knows more.
	most := int64(2 << 10)
	if flag.Lookup("test.fuzz").Value.String() != "" {
		most = 32 << 10
	}
	_, seeds, err := corpus.Small(most)
	if err != nil {
		f.Fatal(err)
	}
	for k, data := range seeds {
		f.Add(data, k%2 == 0) // both of each would take all of a short run
	}
	n := newNode(f, "linux/amd64")
	n.corpusBystander(f)
	before := n.state(f)
	f.Fuzz(func(t *testing.T, data []byte, stream bool) {
		_, err := n.Import(t.Context(), &memory{Reader: bytes.NewReader(data), stream: stream}, wanted(owner))
		if err != nil {
			if text := err.Error(); len(text) > 4096 || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Errorf("not to be shown: %q", text)
			}
			unchanged(t, before, n.state(t))
			return
		}
		n.checkPublished(t, before)
		n.forget(t, before)
	})
}

// checkPublished is the oracle of a success.
func (n *node) checkPublished(t *testing.T, before state) {
	t.Helper()
	ctx, after := n.in(t.Context()), n.state(t)
	if len(after.Images) == len(before.Images) {
		t.Error("nothing was published")
	}
	if len(after.Leases)+len(after.Ingests) > 0 {
		t.Errorf("left behind: leases %v, ingests %v", after.Leases, after.Ingests)
	}
	list, err := n.services.images.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range list {
		name, err := reference.ParseDockerRef(img.Name)
		if id := digest.Digest(img.Name); id.Validate() == nil {
			config, err := images.Config(ctx, n.services.content, img.Target, platforms.Only(n.platform))
			if err != nil || config.Digest != id {
				t.Errorf("id %s stands for an image of %s: %v", id, config.Digest, err)
			}
		} else if err != nil || name.String() != img.Name {
			t.Errorf("name %q: %v", img.Name, err)
		}
		if d, ok := name.(reference.Digested); ok && d.Digest() != img.Target.Digest {
			t.Errorf("name %q stands for %s", img.Name, img.Target.Digest)
		}
		missing, err := n.check.Missing(ctx, img.Target)
		if err != nil || len(missing) > 0 {
			t.Errorf("%s lacks %v (%v)", img.Name, missing, err)
		}
		if err := n.fits(ctx, img.Target); err != nil {
			t.Errorf("%s: %v", img.Name, err)
		}
	}
	for _, d := range after.Content {
		data, err := content.ReadBlob(ctx, n.services.content, ocispec.Descriptor{Digest: digest.Digest(d)})
		if err != nil || digest.Digest(d).Algorithm().FromBytes(data).String() != d {
			t.Errorf("blob %s has other bytes (%v)", d, err)
		}
	}
}

// fits reads an image as whoever runs it does.
func (n *node) fits(ctx context.Context, target ocispec.Descriptor) error {
	config, err := images.Config(ctx, n.services.content, target, platforms.Only(n.platform))
	if err != nil {
		return err
	}
	_, err = images.RootFS(ctx, n.services.content, config)
	return err
}

// forget removes what was published, so that the next import finds the store as it was.
func (n *node) forget(t *testing.T, before state) {
	t.Helper()
	ctx := n.in(t.Context())
	list, err := n.services.images.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range list {
		if img.Name == corpus.BystanderName {
			continue
		}
		if err := n.services.images.Delete(ctx, img.Name); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := n.db.GarbageCollect(ctx); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, n.state(t)); diff != "" {
		t.Fatalf("the store is not as it was (-before +after):\n%s", diff)
	}
}
