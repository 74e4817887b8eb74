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

// What CRI says reaches the result, under each of its three names, and is compared with the right image.
func TestImportAsksCRI(t *testing.T) {
	built := version(t, "one")
	img := built.Images[0]
	config := img.Platforms[0].Config.Digest
	ref := strings.TrimSuffix(appName, ":1") + "@" + img.Target.Digest.String()
	for name, tc := range map[string]struct {
		known      map[string]digest.Digest
		notVisible []string
	}{
		"all":          {map[string]digest.Digest{appName: config, ref: config, config.String(): config}, nil},
		"no reference": {map[string]digest.Digest{appName: config, config.String(): config}, []string{ref}},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, "linux/amd64")
			n.cri = cri.Client{Images: fakeImages{ids: tc.known}}
			r, err := n.Import(t.Context(), blobOf(t, built, false), wanted(named("a", "1")))
			if err != nil || r.CRI != "" || !slices.Equal(r.NotVisible, tc.notVisible) {
				t.Errorf("notVisible %q, unknown %q, error %v; want %q", r.NotVisible, r.CRI, err, tc.notVisible)
			}
			if n.image(t, appName) == nil {
				t.Error("the image is not there")
			}
		})
	}
	n := newNode(t, "linux/amd64")
	n.options.Namespace, n.cri = "other", cri.Client{Images: fakeImages{}}
	if r, err := n.Import(t.Context(), blobOf(t, built, false), wanted(named("a", "1"))); err != nil || r.CRI != "" || r.NotVisible != nil {
		t.Errorf("in another namespace than the kubelet's: not visible %q, unknown %q, error %v", r.NotVisible, r.CRI, err)
	}
	n = newNode(t, "linux/amd64")
	if r, err := n.Import(t.Context(), blobOf(t, built, false), wanted(named("a", "1"))); err != nil || r.CRI == "" {
		t.Errorf("without CRI: unknown %q, error %v", r.CRI, err)
	}
}
