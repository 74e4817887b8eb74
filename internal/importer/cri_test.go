package importer

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/tarlift/tarlift/internal/importer/cri"
)

// fakeImages are a CRI that knows images by name.
type fakeImages struct {
	runtimeapi.ImageServiceClient
	ids map[string]digest.Digest
}

func (f fakeImages) ImageStatus(
	_ context.Context, r *runtimeapi.ImageStatusRequest, _ ...grpc.CallOption,
) (*runtimeapi.ImageStatusResponse, error) {
	id, ok := f.ids[r.GetImage().GetImage()]
	if !ok {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	return &runtimeapi.ImageStatusResponse{Image: &runtimeapi.Image{Id: id.String()}}, nil
}

// What CRI says reaches the result, under the name and under name@digest, and is compared with the right image.
func TestImportAsksCRI(t *testing.T) {
	built := version(t, "one")
	img := built.Images[0]
	config := img.Platforms[0].Config.Digest
	ref := strings.TrimSuffix(appName, ":1") + "@" + img.Target.Digest.String()
	for name, tc := range map[string]struct {
		known  map[string]digest.Digest
		unseen []string
	}{
		"both":         {map[string]digest.Digest{appName: config, ref: config}, nil},
		"no reference": {map[string]digest.Digest{appName: config}, []string{ref}},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, "linux/amd64")
			n.cri = cri.Client{Images: fakeImages{ids: tc.known}}
			r, err := n.Import(t.Context(), blobOf(t, built, false), wanted(named("a", "1")))
			if err != nil || r.CRI != "" || !slices.Equal(r.Unseen, tc.unseen) {
				t.Errorf("unseen %q, unknown %q, error %v; want %q", r.Unseen, r.CRI, err, tc.unseen)
			}
			if n.image(t, appName) == nil {
				t.Error("the image is not there")
			}
		})
	}
	n := newNode(t, "linux/amd64")
	n.namespace, n.cri = "other", cri.Client{Images: fakeImages{}}
	if r, err := n.Import(t.Context(), blobOf(t, built, false), wanted(named("a", "1"))); err != nil || r.CRI != "" || r.Unseen != nil {
		t.Errorf("in another namespace than the kubelet's: unseen %q, unknown %q, error %v", r.Unseen, r.CRI, err)
	}
	n = newNode(t, "linux/amd64")
	if r, err := n.Import(t.Context(), blobOf(t, built, false), wanted(named("a", "1"))); err != nil || r.CRI == "" {
		t.Errorf("without CRI: unknown %q, error %v", r.CRI, err)
	}
}
