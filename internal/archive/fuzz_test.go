package archive_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"strconv"
	"strings"
	"testing"
	"unicode"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/internal/archive/corpus"
)

// Seeds of the targets are the small archives of the corpus. Whatever the bytes are: no panic, an error is one of this
// package's, and its text can be shown.

func fuzzSeeds(f *testing.F) [][]byte {
	f.Helper()
	_, archives, err := corpus.Small(32 << 10)
	if err != nil {
		f.Fatal(err)
	}
	return archives
}

func checkOurs(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	if !isOurs(err) {
		t.Errorf("not one of this package's: %v", err)
	}
	checkText(t, err, nil)
}

func isOurs(err error) bool {
	for _, ours := range []error{
		archive.ErrInvalid, archive.ErrTruncated, archive.ErrLimit,
		archive.ErrDigestMismatch, archive.ErrMissing, archive.ErrInvalidName,
	} {
		if errors.Is(err, ours) {
			return true
		}
	}
	return false
}

// FuzzTar reads a tar's headers in both ways. What both accept they understand alike.
func FuzzTar(f *testing.F) {
	for _, data := range fuzzSeeds(f) {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		ctx := t.Context()
		random, err := modes[0].tree(ctx, data)
		checkOurs(t, err)
		stream, streamErr := modes[1].tree(ctx, data)
		checkOurs(t, streamErr)
		if err != nil || streamErr != nil {
			if streamErr == nil {
				t.Errorf("a stream passes, random access says %v", err)
			}
			return
		}
		if random.Complete() != stream.Complete() {
			t.Errorf("complete: %v by random access, %v as a stream", random.Complete(), stream.Complete())
		}
		for _, name := range []string{"oci-layout", "index.json", "manifest.json", "repositories", "README", "layer.tar"} {
			if off, size, ok := random.Locate(name); ok && (off < 0 || size < 0 || off+size > int64(len(data))) {
				t.Errorf("%s: %d bytes at %d of %d", name, size, off, len(data))
			}
			a, err := random.ReadFile(ctx, name, archive.MaxManifestBytes)
			b, streamErr := stream.ReadFile(ctx, name, archive.MaxManifestBytes)
			if (err == nil) != (streamErr == nil) || string(a) != string(b) {
				t.Errorf("%s: %q, %v by random access, %q, %v as a stream", name, a, err, b, streamErr)
			}
		}
	})
}

// FuzzLayout makes layouts and docker archives of documents, with the digests that they then have, and reads them.
func FuzzLayout(f *testing.F) {
	const config = `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["` + layerDigest + `"]}}`
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"$M","size":$m,"annotations":{"io.containerd.image.name":"a:1"}}]}`),
		[]byte(`{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"$C","size":$c},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"`+layerDigest+`","size":1}]}`),
		[]byte(config))
	f.Add([]byte(`[{"Config":"config.json","RepoTags":["a:1"],"Layers":["layer.tar"]}]`), []byte(nil), []byte(config))
	for _, data := range fuzzSeeds(f) {
		for _, doc := range documentsIn(data) {
			f.Add(doc, doc, doc)
		}
	}
	f.Fuzz(func(t *testing.T, index, manifest, config []byte) {
		for _, format := range []string{archive.FormatOCI, archive.FormatDocker} {
			data, err := withDocuments(format, index, manifest, config)
			if err != nil {
				t.Fatal(err)
			}
			random := openAndSelect(t.Context(), modes[0].tree, data)
			stream := openAndSelect(t.Context(), modes[1].tree, data)
			checkOurs(t, random)
			checkOurs(t, stream)
			// Only a stream has seen the layer's bytes; otherwise both are of one opinion.
			if (random == nil) != (stream == nil) && (random != nil || !errors.Is(stream, archive.ErrDigestMismatch)) {
				t.Errorf("%s: random access says %v, a stream %v", format, random, stream)
			}
		}
	})
}

// layerDigest is that of the only layer: x.
const layerDigest = "sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"

// withDocuments is an archive of these documents. In the first two, $M, $C, $m and $c stand for digests and sizes.
func withDocuments(format string, index, manifest, config []byte) ([]byte, error) {
	fill := func(doc []byte, d, s string, of []byte) []byte {
		out := strings.ReplaceAll(string(doc), d, digest.FromBytes(of).String())
		return []byte(strings.ReplaceAll(out, s, strconv.Itoa(len(of))))
	}
	if format == archive.FormatDocker {
		return builder.TarBytes(builder.FileMember("manifest.json", index), builder.FileMember("config.json", config), builder.FileMember("layer.tar", []byte("x")))
	}
	manifest = fill(manifest, "$C", "$c", config)
	index = fill(index, "$M", "$m", manifest)
	members := []builder.Member{builder.FileMember("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)), builder.FileMember("index.json", index)}
	for _, blob := range [][]byte{manifest, config, []byte("x")} {
		members = append(members, builder.FileMember(builder.BlobPath(digest.FromBytes(blob)), blob))
	}
	return builder.TarBytes(members...)
}

// documentsIn are the JSON objects and lists in a tar.
func documentsIn(data []byte) (docs [][]byte) {
	for tr := tar.NewReader(bytes.NewReader(data)); ; {
		if _, err := tr.Next(); err != nil {
			return docs
		}
		doc, err := io.ReadAll(io.LimitReader(tr, 8<<10))
		if err == nil && (bytes.HasPrefix(doc, []byte("{")) || bytes.HasPrefix(doc, []byte("["))) {
			docs = append(docs, doc)
		}
	}
}

// FuzzNames selects an image of any annotations, with any base name and renaming. A name that comes out is in its normal
// form, and one with a digest has the image's.
func FuzzNames(f *testing.F) {
	target := digest.FromString("x")
	for _, name := range []string{
		"a:1", "registry.example/team/app:1", "docker.io/library/a", "a@" + target.String(), "a:1@" + target.String(), target.String(), target.Encoded(),
		"a@sha256:" + strings.Repeat("a", 64), "[::1]:5000/a:b", "localhost/a", "A:1", "a b", "a\x00", "../a", "https://a/b", "sha256:", strings.Repeat("n", 300),
	} {
		f.Add(name, "", "", "", "")
		f.Add("", "1", name, "", "")
		f.Add("a:1", "", "", "a:1", name)
		f.Add("registry.example/team/app:1", "", "", "registry.example/", "mirror.example/"+name+"/")
	}
	f.Fuzz(func(t *testing.T, name, ref, base, from, to string) {
		d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: target, Size: 1, Annotations: map[string]string{
			"io.containerd.image.name": name, ocispec.AnnotationRefName: ref,
		}}
		s := archive.Selection{BaseName: base, DigestReferences: true}
		if from != "" || to != "" {
			s.Rename = []archive.Rename{{From: from, To: to}}
		}
		got, err := s.Select([]ocispec.Descriptor{d})
		checkOurs(t, err)
		for _, n := range got {
			for _, name := range []string{n.Name, n.DigestReference} {
				if name == "" && name != n.Name {
					continue
				}
				parsed, err := reference.ParseDockerRef(name)
				if err != nil || parsed.String() != name || len(name) > archive.MaxNameBytes+100 || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > unicode.MaxASCII }) {
					t.Errorf("%q is published (%v)", name, err)
				}
				if c, ok := parsed.(reference.Digested); ok && c.Digest() != target {
					t.Errorf("%q stands for %s", name, target)
				}
			}
		}
	})
}

func openAndSelect(ctx context.Context, tree func(context.Context, []byte) (*archive.Tree, error), data []byte) error {
	t, err := tree(ctx, data)
	if err != nil {
		return err
	}
	l, err := archive.Decode(ctx, t)
	if err != nil {
		return err
	}
	if _, err := (archive.Selection{DigestReferences: true}).Select(l.Manifests); err != nil {
		return err
	}
	return use(ctx, t)
}
