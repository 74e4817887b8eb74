package bundle_test

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/testdata/genuine"
	"github.com/tarlift/tarlift/internal/bundle"
)

// refusals that are known, by reader and bundle: "" for any bundle.
var refusals = map[[2]string]string{
	{"skopeo", ""}:            "finds no docker media types in index.json",
	{"buildah", ""}:           "the same",
	{"skopeo--all", "amd64"}:  "copies whole indexes only",
	{"regctl", "amd64"}:       "the same",
	{"crane-layout", "amd64"}: "the same",
	{"crane-tar", "all"}:      "takes a tar with one image only",
	{"crane-tar", "amd64"}:    "the same",
}

// Other tools have read these very bytes, which hack/fixtures/readers.sh recorded: each image under its name and with its
// digest or id, and what they refuse is known.
func TestReaders(t *testing.T) {
	record, err := os.ReadFile("testdata/readers.txt")
	if err != nil {
		t.Fatal(err)
	}
	many := []string{"buildkit-oci-attest.tar", "docker20-images.tar.gz", "skopeo-oci-all.tar", "podman-oci.tar"}
	ids := map[string]map[string]bool{} // of all bundles by name: digests of targets, manifests and configs
	sums := map[string]string{
		"all":   bundleOf(t, ids, bundle.Options{}, many...),
		"amd64": bundleOf(t, ids, bundle.Options{Platforms: parse([]string{"linux/amd64"})}, many...),
		"one":   bundleOf(t, ids, bundle.Options{}, "podman-oci.tar"),
	}
	read := map[string]int{}
	for line := range strings.Lines(string(record)) {
		f := strings.Split(strings.TrimSpace(line), "\t")
		if len(f) != 4 {
			t.Fatalf("line %q", line)
		}
		reader, in, name, id := f[0], f[1], f[2], f[3]
		if !strings.Contains(name, "/") && name != "-" {
			name = "docker.io/library/" + name // as docker shows it
		}
		switch {
		case reader == "bundle":
			if sums[in] != id {
				t.Errorf("bundle %s has digest %s, and %s when others read it", in, sums[in], id)
			}
		case id == "refused":
			if refusals[[2]string{reader, in}] == "" && refusals[[2]string{reader, ""}] == "" {
				t.Errorf("%s refused %s of %s", reader, name, in)
			}
		case name != "-" && !ids[name][id]:
			t.Errorf("%s found %s with id %s in %s", reader, name, id, in)
		default:
			read[reader+" "+in]++
		}
	}
	for _, reader := range []string{"ctr", "docker20", "docker29", "docker29-graph", "podman", "skopeo-docker"} {
		for in, want := range map[string]int{"all": 5, "amd64": 5, "one": 1} {
			if got := read[reader+" "+in]; got != want {
				t.Errorf("%s read %d images of %s, want %d", reader, got, in, want)
			}
		}
	}
	for _, once := range []string{"skopeo one", "buildah one", "regctl all", "crane-tar one", "crane-layout all"} {
		if read[once] == 0 {
			t.Errorf("%s: nothing was read", once)
		}
	}
}

// bundleOf makes a bundle of genuine archives, notes what its images may be called, and gives its digest.
func bundleOf(t *testing.T, ids map[string]map[string]bool, o bundle.Options, files ...string) string {
	t.Helper()
	archives, err := genuine.Archives()
	if err != nil {
		t.Fatal(err)
	}
	var inputs []bundle.Input
	for _, a := range archives {
		for _, f := range files {
			if a.File == f {
				inputs = append(inputs, input(t, f, plainTar(t, a)))
			}
		}
	}
	if len(inputs) != len(files) {
		t.Fatalf("%d of %d archives", len(inputs), len(files))
	}
	made, data := written(t, o, inputs...)
	in := input(t, "the bundle", data)
	fetch := func(ctx context.Context, d ocispec.Descriptor) ([]byte, error) { return in.ReadBlob(ctx, d, d.Size) }
	for i, img := range made.Images {
		if ids[img.Name] == nil {
			ids[img.Name] = map[string]bool{}
		}
		ids[img.Name][img.Digest.String()] = true
		leaves, err := (&archive.Resolver{Fetch: fetch}).PlatformManifests(t.Context(), in.Manifests[i])
		if err != nil {
			t.Fatal(err)
		}
		m, err := archive.ReadManifest(t.Context(), fetch, leaves[0].Descriptor) // for amd64
		if err != nil {
			t.Fatal(err)
		}
		ids[img.Name][m.Config.Digest.String()] = true
	}
	return digest.FromBytes(data).String()
}
