package bundle_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/internal/bundle"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// inMemory is an archive with random access.
type inMemory struct{ *bytes.Reader }

func (m inMemory) Section(_ context.Context, off, n int64) (io.ReadCloser, error) {
	return io.NopCloser(io.NewSectionReader(m, off, n)), nil
}

// input opens an archive for random access.
func input(t testing.TB, name string, data []byte) bundle.Input {
	t.Helper()
	r := inMemory{bytes.NewReader(data)}
	tree, err := archive.ReadTree(t.Context(), r, r.Size())
	if err != nil {
		t.Fatal(err)
	}
	layout, err := archive.Decode(t.Context(), tree)
	if err != nil {
		t.Fatal(err)
	}
	return bundle.FromArchive(name, layout, r, nil)
}

// passed opens one that is read once.
func passed(t testing.TB, name string, data []byte) bundle.Input {
	t.Helper()
	spool := bundle.NewSpool(t.TempDir(), nil)
	t.Cleanup(func() { spool.Close() })
	tree, err := archive.StreamTree(t.Context(), bytes.NewReader(data), spool)
	if err != nil {
		t.Fatal(err)
	}
	layout, err := archive.Decode(t.Context(), tree)
	if err != nil {
		t.Fatal(err)
	}
	return bundle.FromArchive(name, layout, nil, spool)
}

func built(t testing.TB, a builder.Archive) (*builder.Built, []byte) {
	t.Helper()
	b, err := a.Build()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	data, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return b, data
}

// written makes a bundle and writes it.
func written(t testing.TB, o bundle.Options, inputs ...bundle.Input) (*bundle.Bundle, []byte) {
	t.Helper()
	b, err := bundle.Make(t.Context(), inputs, o)
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	d, err := b.Write(t.Context(), &buf, nil)
	if err != nil {
		t.Fatal(err)
	}
	if int64(buf.Len()) != b.Size || d != digest.FromBytes(buf.Bytes()) {
		t.Errorf("%d bytes with digest %s were written, %d and %s were said", buf.Len(), digest.FromBytes(buf.Bytes()), b.Size, d)
	}
	return b, buf.Bytes()
}

// layer has one file of some bytes.
func layer(seed uint64) builder.Layer {
	return builder.Layer{Compression: builder.Gzip, Files: []builder.File{builder.Noise("file", seed, int64(1000*seed+1))}}
}

func image(name string, platforms ...builder.PlatformImage) builder.Image {
	return builder.Image{Names: []string{name}, Platforms: platforms}
}

func platform(p string, layers ...builder.Layer) builder.PlatformImage {
	return builder.PlatformImage{Platform: builder.Platform(p), Layers: layers}
}

// family are images of two platforms that begin alike, in an order that parts them.
func family() []builder.Image {
	return []builder.Image{
		image("z.example/child:1", platform("linux/amd64", layer(1), layer(2), layer(3)), platform("linux/arm64", layer(11), layer(12))),
		image("m.example/other:1", platform("linux/amd64", layer(5))),
		image("a.example/base:1", platform("linux/amd64", layer(1)), platform("linux/arm64", layer(11))),
		image("n.example/sibling:1", platform("linux/amd64", layer(1), layer(2), layer(4))),
	}
}

// members are a tar's names in their order; their headers must tell nothing.
func members(t testing.TB, data []byte) []string {
	t.Helper()
	var out []string
	tr := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.ModTime.Unix() != 0 || h.Uid != 0 || h.Gid != 0 || h.Uname+h.Gname != "" {
			t.Errorf("%s: %+v", h.Name, h)
		}
		out = append(out, h.Name)
	}
}

// The same images give the same bytes, whatever order they come in, whoever wrote them, and however they are read.
func TestBytesAreReproducible(t *testing.T) {
	images := family()
	_, data := built(t, builder.Archive{Images: images})
	_, want := written(t, bundle.Options{}, input(t, "one", data))

	_, again := written(t, bundle.Options{}, input(t, "one", data))
	slices.Reverse(images)
	_, other := built(t, builder.Archive{Images: images, Names: builder.RefName, Directories: true})
	_, reversed := written(t, bundle.Options{}, input(t, "two", other))
	_, stream := written(t, bundle.Options{}, passed(t, "three", data))
	_, first := built(t, builder.Archive{Images: images[:2]})
	_, second := built(t, builder.Archive{Images: images[1:]})
	_, parts := written(t, bundle.Options{}, input(t, "four", first), passed(t, "five", second))
	_, swapped := written(t, bundle.Options{}, passed(t, "five", second), input(t, "four", first))
	_, itself := written(t, bundle.Options{}, input(t, "six", want))
	for name, got := range map[string][]byte{
		"again": again, "reversed, with other annotations": reversed, "as a stream": stream, "in two parts": parts,
		"in two parts, swapped": swapped, "the bundle itself": itself,
	} {
		if !bytes.Equal(got, want) {
			t.Errorf("%s: other bytes", name)
		}
	}
}

// Metadata comes first, and then each layer once: by platform, what images share before what they do not.
func TestOrder(t *testing.T) {
	b, data := built(t, builder.Archive{Images: family()})
	_, out := written(t, bundle.Options{}, input(t, "in", data))
	want := []string{"oci-layout", "index.json", "manifest.json", "blobs/", "blobs/sha256/"}
	add := func(d ocispec.Descriptor) {
		if p := builder.BlobPath(d.Digest); !slices.Contains(want, p) {
			want = append(want, p)
		}
	}
	byName := []int{2, 1, 3, 0}
	for _, i := range byName {
		for _, d := range b.Images[i].Indexes {
			add(d)
		}
		for _, p := range b.Images[i].Platforms {
			add(p.Manifest)
			add(p.Config)
		}
	}
	child, other, sibling := b.Images[0].Platforms, b.Images[1].Platforms, b.Images[3].Platforms
	for _, d := range []ocispec.Descriptor{
		child[0].Layers[0], child[0].Layers[1], sibling[0].Layers[2], child[0].Layers[2], // one stack
		other[0].Layers[0],
		child[1].Layers[0], child[1].Layers[1], // the other platform
	} {
		add(d)
	}
	if diff := cmp.Diff(want, members(t, out)); diff != "" {
		t.Errorf("members (-want +got):\n%s", diff)
	}
}

// reads opens what was written, and tells names, digests and platforms that are whole in it.
func reads(t testing.TB, data []byte) map[string]string {
	t.Helper()
	in := input(t, "the bundle", data)
	out := map[string]string{}
	named, err := archive.Selection{}.Select(in.Manifests)
	if err != nil {
		t.Fatal(err)
	}
	fetch := func(ctx context.Context, d ocispec.Descriptor) ([]byte, error) { return in.ReadBlob(ctx, d, d.Size) }
	for _, n := range named {
		leaves, err := (&archive.Resolver{Fetch: fetch}).PlatformManifests(t.Context(), n.Target)
		if err != nil {
			t.Fatal(err)
		}
		found := []string{n.Target.Digest.String()}
		for _, l := range leaves {
			m, err := archive.ReadManifest(t.Context(), fetch, l.Descriptor)
			if errors.Is(err, archive.ErrMissing) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range append(m.Layers, m.Config) {
				blob, err := in.Find(t.Context(), d.Digest)
				if err != nil || blob.Size != d.Size {
					t.Errorf("%s: blob %s of %d bytes: %v, %d", n.Name, d.Digest, d.Size, err, blob.Size)
				}
			}
			found = append(found, l.Platform.Architecture+l.Platform.Variant)
		}
		out[n.Name] = strings.Join(found, " ")
	}
	return out
}

// The chosen platforms are there whole and no others, and an index keeps its digest.
func TestPlatforms(t *testing.T) {
	all := []builder.Image{
		image("a.example/app:1", platform("linux/amd64", layer(1)), platform("linux/arm64", layer(2)), platform("linux/arm/v6", layer(3))),
		image("a.example/tool:1", platform("linux/amd64", layer(4))),
	}
	b, data := built(t, builder.Archive{Images: all})
	app, tool := b.Images[0].Target.Digest.String(), b.Images[1].Target.Digest.String()
	for name, tc := range map[string]struct {
		platforms []string
		app, tool string
	}{
		"all that there are":        {nil, "amd64 arm64 armv6", "amd64"},
		"one":                       {[]string{"linux/amd64"}, "amd64", "amd64"},
		"two":                       {[]string{"linux/arm64", "linux/amd64"}, "amd64 arm64", "amd64"},
		"a node takes a lesser one": {[]string{"linux/arm/v7", "linux/amd64/v3"}, "amd64 armv6", "amd64"},
		"one twice":                 {[]string{"linux/amd64", "linux/amd64"}, "amd64", "amd64"},
	} {
		t.Run(name, func(t *testing.T) {
			made, out := written(t, bundle.Options{Platforms: parse(tc.platforms)}, input(t, "in", data))
			want := map[string]string{"a.example/app:1": app + " " + tc.app, "a.example/tool:1": tool + " " + tc.tool}
			if diff := cmp.Diff(want, reads(t, out)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if n := len(made.Images[0].Platforms) + len(made.Images[0].LeftOut); n != 3 {
				t.Errorf("%d platforms: %+v", n, made.Images[0])
			}
		})
	}
	arm64 := bundle.Options{Platforms: parse([]string{"linux/arm64"})}
	if _, err := bundle.Make(t.Context(), []bundle.Input{input(t, "in", data)}, arm64); !errors.Is(err, bundle.ErrNoPlatform) {
		t.Errorf("a tool for amd64 alone: %v", err)
	}
}

func parse(list []string) []ocispec.Platform {
	var out []ocispec.Platform
	for _, s := range list {
		out = append(out, builder.Platform(s))
	}
	return out
}

// Two archives with an image's platform each make one for both. What is in neither is left out, unless it was asked for.
func TestPartialInputs(t *testing.T) {
	part := func(absent ...int) []byte {
		img := image("a.example/app:1", platform("linux/amd64", layer(1)), platform("linux/arm64", layer(2)), platform("linux/riscv64", layer(3)))
		for _, i := range absent {
			img.Platforms[i].Absent = true
		}
		_, data := built(t, builder.Archive{Images: []builder.Image{img}})
		return data
	}
	whole, _ := built(t, builder.Archive{Images: []builder.Image{image("a.example/app:1",
		platform("linux/amd64", layer(1)), platform("linux/arm64", layer(2)), platform("linux/riscv64", layer(3)))}})
	amd64, arm64 := input(t, "amd64", part(1, 2)), input(t, "arm64", part(0, 2))
	made, out := written(t, bundle.Options{}, amd64, arm64)
	want := map[string]string{"a.example/app:1": whole.Images[0].Target.Digest.String() + " amd64 arm64"}
	if diff := cmp.Diff(want, reads(t, out)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if diff := cmp.Diff([]string{"linux/riscv64"}, made.Images[0].LeftOut); diff != "" {
		t.Errorf("left out: %s", diff)
	}
	_, err := bundle.Make(t.Context(), []bundle.Input{amd64, arm64}, bundle.Options{Platforms: parse([]string{"linux/riscv64"})})
	if !errors.Is(err, archive.ErrMissing) {
		t.Errorf("a platform that is nowhere: %v", err)
	}
	nothing := input(t, "nothing", part(0, 1, 2))
	if _, err := bundle.Make(t.Context(), []bundle.Input{nothing}, bundle.Options{}); !errors.Is(err, archive.ErrMissing) {
		t.Errorf("an index alone: %v", err)
	}
}

// Attestations go with their images, and all of an index with all of its platforms.
func TestAttestations(t *testing.T) {
	img := image("a.example/app:1", platform("linux/amd64", layer(1)), platform("linux/arm64", layer(2)))
	img.Attestations = true
	b, data := built(t, builder.Archive{Images: []builder.Image{img}})
	has := func(out []byte, d ocispec.Descriptor) bool {
		return slices.Contains(members(t, out), builder.BlobPath(d.Digest))
	}
	_, all := written(t, bundle.Options{}, input(t, "in", data))
	if n := len(members(t, all)); n != 5+1+2*3+2*3 {
		t.Errorf("%d members of an index, two images of three blobs and two attestations of three", n)
	}
	_, one := written(t, bundle.Options{Platforms: parse([]string{"linux/arm64"})}, input(t, "in", data))
	if has(one, b.Images[0].Attestations[0]) || !has(one, b.Images[0].Attestations[1]) {
		t.Error("the attestation must be that of the platform")
	}
	img.AttestationsAbsent = true
	_, data = built(t, builder.Archive{Images: []builder.Image{img}})
	if _, out := written(t, bundle.Options{}, input(t, "in", data)); has(out, b.Images[0].Attestations[0]) {
		t.Error("an attestation from nowhere")
	}
}
