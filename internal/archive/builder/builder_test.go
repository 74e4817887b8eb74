package builder_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive/builder"
)

func twoImages(f builder.Format) builder.Archive {
	base := builder.Layer{Files: []builder.File{{Name: "etc/"}, {Name: "etc/os", Data: []byte("x")}, builder.Noise("noise", 1, 3<<20)}}
	platform := func(p string, c builder.Compression) builder.PlatformImage {
		base := base
		base.Compression = c
		return builder.PlatformImage{
			Platform: builder.Platform(p),
			Layers:   []builder.Layer{base, {Files: []builder.File{{Name: "bin/app", Mode: 0o755, Data: []byte(p)}}, Compression: c}},
			Config:   ocispec.ImageConfig{Entrypoint: []string{"/bin/app"}},
		}
	}
	second := platform("linux/amd64", builder.Gzip)
	second.Config.Cmd = []string{"serve"}
	return builder.Archive{Format: f, Images: []builder.Image{
		{Names: []string{"example.com/a:1", "example.com/a:2"}, Platforms: []builder.PlatformImage{platform("linux/amd64", builder.Gzip), platform("linux/arm64", builder.Zstd)}, Attestations: true},
		{Names: []string{"example.com/b:1"}, Platforms: []builder.PlatformImage{second}},
	}}
}

func members(t *testing.T, data []byte) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for tr := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if out[h.Name], err = io.ReadAll(tr); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSameValuesGiveSameBytes(t *testing.T) {
	for _, f := range []builder.Format{builder.OCI, builder.Hybrid, builder.Docker, builder.DockerClassic, builder.DockerDigest} {
		a, err := twoImages(f).Bytes()
		if err != nil {
			t.Fatal(err)
		}
		b, err := twoImages(f).Bytes()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a, b) {
			t.Errorf("format %d: bytes differ", f)
		}
	}
}

func TestBlobsHaveTheirDigests(t *testing.T) {
	b, err := twoImages(builder.OCI).Build()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	data, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	ms := members(t, data)
	var want []ocispec.Descriptor
	for _, img := range b.Images {
		want = append(append(want, img.Target), img.Attestations...)
		for _, p := range img.Platforms {
			want = append(append(want, p.Manifest, p.Config), p.Layers...)
		}
	}
	for _, d := range want {
		got := ms[builder.BlobPath(d.Digest)]
		if digest.FromBytes(got) != d.Digest || int64(len(got)) != d.Size {
			t.Errorf("blob %s: got %s of %d bytes", d.Digest, digest.FromBytes(got), len(got))
		}
	}
	if digest.FromBytes(ms["index.json"]) != b.IndexDigest {
		t.Error("index.json has not the digest that was reported")
	}
}

func TestClassicDockerLinksEqualLayers(t *testing.T) {
	b, err := twoImages(builder.DockerClassic).Build()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	links := 0
	for _, m := range b.Members {
		if m.Typeflag == tar.TypeSymlink {
			links++
		}
	}
	if links == 0 {
		t.Error("no layer is a symlink")
	}
}

func TestAbsentPlatformLeavesItsBlobsOut(t *testing.T) {
	a := twoImages(builder.OCI)
	a.Images[0].Platforms[1].Absent = true
	b, err := a.Build()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	absent := builder.BlobPath(b.Images[0].Platforms[1].Manifest.Digest)
	if slices.ContainsFunc(b.Members, func(m builder.Member) bool { return m.Name == absent }) {
		t.Error("the manifest of an absent platform is there")
	}
}

func TestEdits(t *testing.T) {
	f := func(n string) builder.Member { return builder.FileMember(n, []byte(n)) }
	in := []builder.Member{f("a"), f("b"), f("c")}
	for _, tc := range []struct {
		name string
		edit builder.Edit
		want map[string]string
		last string
	}{
		{"omit", builder.Omit("a"), map[string]string{"b": "b", "c": "c"}, "c"},
		{"replace", builder.Replace("a", []byte("z")), map[string]string{"a": "z", "b": "b", "c": "c"}, "c"},
		{"corrupt", builder.Corrupt("c"), map[string]string{"a": "a", "b": "b", "c": "\x9c"}, "c"},
		{"rename", builder.Rename("c", "d"), map[string]string{"a": "a", "b": "b", "d": "c"}, "d"},
		{"prefix", builder.Prefix("./"), map[string]string{"./a": "a", "./b": "b", "./c": "c"}, "./c"},
		{"first", builder.First("c"), map[string]string{"a": "a", "b": "b", "c": "c"}, "b"},
		{"last", builder.Last("b", "a"), map[string]string{"a": "a", "b": "b", "c": "c"}, "a"},
		{"add", builder.Add(f("d")), map[string]string{"a": "a", "b": "b", "c": "c", "d": "d"}, "d"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out := tc.edit(in)
			data, err := builder.TarBytes(out...)
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			for n, b := range members(t, data) {
				got[n] = string(b)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
			if last := out[len(out)-1].Name; last != tc.last {
				t.Errorf("last member is %q, want %q", last, tc.last)
			}
		})
	}
}
