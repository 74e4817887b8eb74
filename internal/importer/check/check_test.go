package check

import (
	"bytes"
	"context"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/test/inprocess"
)

const heldLayer = "containerd.io/gc.ref.content.l.0"

// A layer that its manifest no longer holds was discarded, as nodes do that keep unpacked layers only; one that it holds was
// lost. Only an unpacked image can do without.
func TestDiscardedLayers(t *testing.T) {
	for name, tc := range map[string]struct {
		unpacked, discarded, gone bool
		lost                      string // a part of it
	}{
		"whole":                   {unpacked: true},
		"discarded":               {unpacked: true, discarded: true, gone: true},
		"lost":                    {unpacked: true, gone: true, lost: "lacks "},
		"not unpacked":            {lost: "is not unpacked"},
		"discarded, not unpacked": {discarded: true, gone: true, lost: "is not unpacked"},
	} {
		t.Run(name, func(t *testing.T) {
			layers, err := native.NewSnapshotter(filepath.Join(t.TempDir(), "native"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { layers.Close() })
			n := inprocess.NewWith(t, map[string]snapshots.Snapshotter{"native": layers})
			ctx := namespaces.WithNamespace(t.Context(), "k8s.io")
			write := func(mediaType string, value any, labels map[string]string) ocispec.Descriptor {
				t.Helper()
				data, err := json.Marshal(value)
				if err != nil {
					t.Fatal(err)
				}
				d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
				if err := content.WriteBlob(ctx, n.Content, "x", bytes.NewReader(data), d, content.WithLabels(labels)); err != nil {
					t.Fatal(err)
				}
				return d
			}
			layer := write(ocispec.MediaTypeImageLayer, "layer", nil)
			config := write(ocispec.MediaTypeImageConfig, ocispec.Image{
				Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
				RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.Digest}},
			}, nil)
			holds := map[string]string{heldLayer: layer.Digest.String()}
			if tc.discarded {
				holds = nil
			}
			target := write(ocispec.MediaTypeImageManifest, ocispec.Manifest{
				Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
				Config: config, Layers: []ocispec.Descriptor{layer},
			}, holds)
			s := n.DB.Snapshotter("native")
			if tc.unpacked {
				unpack(ctx, t, s, identity.ChainID([]digest.Digest{layer.Digest}).String())
			}
			if tc.gone {
				if err := n.Content.Delete(ctx, layer.Digest); err != nil {
					t.Fatal(err)
				}
			}
			c := Checker{
				Content: n.Content, Containers: n.Containers, Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
				Snapshotter: func(string) snapshots.Snapshotter { return s },
			}
			lost, err := c.Lost(ctx, target, "native")
			if err != nil || !strings.Contains(lost, tc.lost) || (lost == "") != (tc.lost == "") {
				t.Errorf("lost %q, %v", lost, err)
			}
		})
	}
}

func unpack(ctx context.Context, t *testing.T, s snapshots.Snapshotter, name string) {
	t.Helper()
	if _, err := s.Prepare(ctx, "key", ""); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(ctx, name, "key"); err != nil {
		t.Fatal(err)
	}
}
