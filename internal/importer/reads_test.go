package importer

import (
	"bytes"
	"errors"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive"
)

// What lies in the store already is bounded like what lies in the archive: a small archive can have the same large config
// read for each of its manifests.
func TestStoredMetadataIsBounded(t *testing.T) {
	n := newNode(t, "linux/amd64")
	config := append([]byte(`{"a":"`), bytes.Repeat([]byte("x"), 7<<20)...)
	config = append(config, `"}`...)
	d := ocispec.Descriptor{Digest: digest.FromBytes(config), Size: int64(len(config))}
	a, ctx, err := n.begin(n.in(t.Context()), &memory{}, wanted(owner))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := a.end(ctx, errInjected); !errors.Is(err, errInjected) {
			t.Error(err)
		}
	}()
	if err := a.writeInline(ctx, heldBlob(d.Digest, config)); err != nil {
		t.Fatal(err)
	}
	p := &planner{importer: n.Importer, archive: &Archive{Layout: &archive.Layout{}}}
	reads := 0
	for ; err == nil && reads < 100; reads++ {
		_, err = p.fetchStored(ctx, d)
	}
	if !errors.Is(err, archive.ErrLimit) || reads*len(config) > archive.MaxReadBytes+2*len(config) {
		t.Errorf("after %d reads: error %v", reads, err)
	}
}
