package plan

import (
	"bytes"
	"errors"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/test/inprocess"
)

// What lies in the store already is bounded like what lies in the archive: a small archive can have the same large config
// read for each of its manifests.
func TestStoredMetadataIsBounded(t *testing.T) {
	ctx, store := namespaces.WithNamespace(t.Context(), "k8s.io"), inprocess.New(t).Content
	config := append([]byte(`{"a":"`), bytes.Repeat([]byte("x"), 7<<20)...)
	config = append(config, `"}`...)
	d := ocispec.Descriptor{Digest: digest.FromBytes(config), Size: int64(len(config))}
	err := content.WriteBlob(ctx, store, "config", bytes.NewReader(config), d)
	if err != nil {
		t.Fatal(err)
	}
	p := &planner{Request: Request{Content: store}, archive: &Archive{Layout: &archive.Layout{}}}
	reads := 0
	for ; err == nil && reads < 100; reads++ {
		_, err = p.fetchStored(ctx, d)
	}
	if !errors.Is(err, archive.ErrLimit) || reads*len(config) > archive.MaxReadBytes+2*len(config) {
		t.Errorf("after %d reads: error %v", reads, err)
	}
}
