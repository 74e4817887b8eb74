package archive_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/internal/archive/testdata/genuine"
)

// oneLayer is a docker archive whose only layer has noise of size bytes.
func oneLayer(f builder.Format, c builder.Compression, size int64) builder.Archive {
	return builder.Archive{Format: f, Images: []builder.Image{{
		Names: []string{"example.com/app:1"},
		Platforms: []builder.PlatformImage{{
			Platform: builder.Platform("linux/amd64"),
			Layers:   []builder.Layer{{Files: []builder.File{builder.Noise("noise", 1, size)}, Compression: c}},
		}},
	}}}
}

// rename gives a member of a docker archive another name, in manifest.json too.
func rename(t *testing.T, b *builder.Built, from, to string) {
	t.Helper()
	for _, m := range b.Members {
		if m.Name == "manifest.json" {
			b.Edit(builder.Replace("manifest.json", bytes.ReplaceAll(dataOf(t, m), []byte(from), []byte(to))))
		}
	}
	b.Edit(builder.Rename(from, to))
}

// TestClaims: a layer whose name claims its digest is not read to index it, and
// only exactly such names claim one.
func TestClaims(t *testing.T) {
	const size = 1 << 20
	for _, tc := range []struct {
		name   string
		rename func(d digest.Digest) string
		read   bool
	}{
		{"go-containerregistry, jib", func(d digest.Digest) string { return d.Encoded() + ".tar.gz" }, false},
		{"rules_oci", func(d digest.Digest) string { return builder.BlobPath(d) + ".tar.gz" }, false},
		{"a layout's blob", builder.BlobPath, false},
		{"with ./", func(d digest.Digest) string { return "./" + d.Encoded() + ".tar.gz" }, false},
		{"no suffix", digest.Digest.Encoded, true},
		{"a diffID's suffix", func(d digest.Digest) string { return d.Encoded() + ".tar" }, true},
		{"in upper case", func(d digest.Digest) string { return strings.ToUpper(d.Encoded()) + ".tar.gz" }, true},
		{"with an algorithm", func(d digest.Digest) string { return d.String() + ".tar.gz" }, true},
		{"too short", func(d digest.Digest) string { return d.Encoded()[1:] + ".tar.gz" }, true},
		{"too long", func(d digest.Digest) string { return d.Encoded() + "0.tar.gz" }, true},
		{"two suffixes", func(d digest.Digest) string { return d.Encoded() + ".tar.gz.tar.gz" }, true},
		{"in a directory of its own", func(d digest.Digest) string { return "layers/" + d.Encoded() + ".tar.gz" }, true},
		{"in a directory, as Docker's", func(d digest.Digest) string { return d.Encoded() + "/layer.tar" }, true},
		{"in blobs/ without algorithm", func(d digest.Digest) string { return "blobs/" + d.Encoded() + ".tar.gz" }, true},
		{"with an unknown algorithm", func(d digest.Digest) string { return "blobs/md5/" + d.Encoded() + ".tar.gz" }, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := build(t, oneLayer(builder.DockerDigest, builder.Gzip, size))
			d := b.Images[0].Platforms[0].Layers[0].Digest
			rename(t, b, d.Encoded()+".tar.gz", tc.rename(d))
			data := bytesOf(t, b)
			r := atBytes(data)
			tree, err := archive.ReadTree(t.Context(), r, r.size)
			if err != nil {
				t.Fatal(err)
			}
			l, err := archive.Decode(t.Context(), tree)
			if err != nil {
				t.Fatal(err)
			}
			if l.Manifests[0].Digest != b.Images[0].Target.Digest {
				t.Errorf("manifest %s, want %s", l.Manifests[0].Digest, b.Images[0].Target.Digest)
			}
			if read := r.read >= size; read != tc.read || !read && (r.read > 16<<10 || r.sections > 0) {
				t.Errorf("%d bytes were read, in %d sections", r.read, r.sections)
			}
			wantError(t, open(t.Context(), modes[1].tree, data), nil)
		})
	}
}

// TestGenuineClaims: no real tool's docker archive has layers that must be hashed.
func TestGenuineClaims(t *testing.T) {
	archives, err := genuine.Archives()
	if err != nil {
		t.Fatal(err)
	}
	compressed := 0
	for _, a := range archives {
		if a.Refused {
			continue
		}
		r := atBytes(plainTar(t, a))
		tree, err := archive.ReadTree(t.Context(), r, r.size)
		if err != nil {
			t.Fatal(err)
		}
		l, err := archive.Decode(t.Context(), tree)
		if err != nil {
			t.Fatal(err)
		}
		if l.Format != archive.FormatDocker {
			continue
		}
		if bytes.Contains(dataAt(t, l, l.Manifests[0].Digest), []byte(".tar.gzip")) {
			compressed++
		}
		if r.sections > 0 {
			t.Errorf("%s: %d members were read", a.File, r.sections)
		}
	}
	if compressed == 0 {
		t.Error("none has compressed layers")
	}
}

// dataAt is a blob that was made.
func dataAt(t *testing.T, l *archive.Layout, d digest.Digest) []byte {
	t.Helper()
	e, ok := l.Locate(d)
	if !ok {
		t.Fatalf("no blob %s", d)
	}
	return e.Data
}

// TestFalseClaims: what random access can see without reading a layer it refuses,
// as a stream does; the rest is found when the blob is written under its name.
func TestFalseClaims(t *testing.T) {
	other := digest.FromString("other").Encoded()
	for _, tc := range []struct {
		name        string
		compression builder.Compression
		edit        func(t *testing.T, b *builder.Built, name string)
		random      error
	}{
		{"a compressed layer", builder.Gzip, func(t *testing.T, b *builder.Built, name string) {
			rename(t, b, name, other+".tar.gz")
		}, nil},
		{"a corrupt one", builder.Gzip, func(_ *testing.T, b *builder.Built, name string) {
			b.Edit(builder.Corrupt(name))
		}, nil},
		{"a raw layer, but not the config's", builder.None, func(t *testing.T, b *builder.Built, name string) {
			rename(t, b, name, other+".tar.gz")
		}, archive.ErrDigestMismatch},
		{"two layers of different size", builder.Gzip, func(t *testing.T, b *builder.Built, name string) {
			twin := builder.FileMember("blobs/sha256/"+strings.TrimSuffix(name, ".tar.gz"), []byte("\x1f\x8b short"))
			b.Edit(builder.Add(twin))
			twice(t, b, name, twin.Name)
		}, archive.ErrDigestMismatch},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := build(t, oneLayer(builder.DockerDigest, tc.compression, 1000))
			tc.edit(t, b, b.Images[0].Platforms[0].Layers[0].Digest.Encoded()+".tar.gz")
			data := bytesOf(t, b)
			wantError(t, open(t.Context(), modes[0].tree, data), tc.random)
			wantError(t, open(t.Context(), modes[1].tree, data), archive.ErrDigestMismatch)
		})
	}
}

// twice makes of an image's only layer two, with the same diffID.
func twice(t *testing.T, b *builder.Built, name, twin string) {
	t.Helper()
	p := b.Images[0].Platforms[0]
	config, diffID := p.Config.Digest.String(), `"`+p.DiffIDs[0].String()+`"`
	for _, m := range b.Members {
		switch m.Name {
		case config:
			b.Edit(builder.Replace(config, bytes.Replace(dataOf(t, m), []byte(diffID), []byte(diffID+","+diffID), 1)))
		case "manifest.json":
			b.Edit(builder.Replace("manifest.json", bytes.Replace(dataOf(t, m), []byte(`"`+name+`"`), []byte(`"`+name+`","`+twin+`"`), 1)))
		}
	}
}
