package archive_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/builder"
)

func special(typeflag byte) builder.Edit {
	return builder.Add(builder.Member{Name: "special", Typeflag: typeflag, Mode: 0o644})
}

func file(name, data string) builder.Edit {
	return builder.Add(builder.FileMember(name, []byte(data)))
}

// TestDefects: what is wrong with an archive is told by the same error in both modes.
func TestDefects(t *testing.T) {
	good := build(t, simple())
	manifest := builder.BlobPath(good.Images[0].Platforms[0].Manifest.Digest)
	layer := builder.BlobPath(good.Images[0].Platforms[0].Layers[0].Digest)
	config := builder.BlobPath(good.Images[0].Platforms[0].Config.Digest)
	index := string(good.Index)
	for _, tc := range []struct {
		name string
		edit builder.Edit
		want error
	}{
		{"as it was", nil, nil},
		{"./ before names, as GNU tar writes", builder.Prefix("./"), nil},
		{"directories", builder.Add(builder.DirMember("./"), builder.DirMember("blobs/"), builder.DirMember("blobs/sha256/")), nil},
		{"a file that nobody knows", file("README", "hello"), nil},
		{"a link that nobody needs", builder.Add(builder.LinkMember("latest", "../../etc/passwd")), nil},
		{"index.json twice, equal", file("index.json", index), nil},
		{"index.json twice, different", file("index.json", index+" "), archive.ErrInvalid},
		{"index.json twice, different but as long", file("index.json", strings.Replace(index, "app:1", "app:2", 1)), archive.ErrInvalid},
		{"index.json also as ./index.json", file("./index.json", index+"\n"), archive.ErrInvalid},
		{"index.json also as a link", builder.Add(builder.LinkMember("index.json", "other")), archive.ErrInvalid},
		{"a device", special(tar.TypeChar), archive.ErrInvalid},
		{"a block device", special(tar.TypeBlock), archive.ErrInvalid},
		{"a FIFO", special(tar.TypeFifo), archive.ErrInvalid},
		{"a contiguous file: nobody makes these", special(tar.TypeCont), archive.ErrInvalid},
		{"an absolute name", file("/index.json", index), archive.ErrInvalid},
		{"a name with ..", file("blobs/../index.json", index), archive.ErrInvalid},
		{"a name above PATH_MAX", file(strings.Repeat("x/", 2048)+"y", ""), archive.ErrLimit},
		{"a blob that is a link", builder.Add(builder.LinkMember("blobs/sha256/"+strings.Repeat("a", 64), "../../oci-layout")), archive.ErrInvalid},
		{"a needed blob that is a link", linkTo(layer), archive.ErrInvalid},
		{"oci-layout is a link", builder.Edit(func(ms []builder.Member) []builder.Member {
			return builder.Add(builder.LinkMember("oci-layout", "layout"))(builder.Rename("oci-layout", "layout")(ms))
		}), archive.ErrInvalid},
		{"another version of the layout", builder.Replace("oci-layout", []byte(`{"imageLayoutVersion":"2.0.0"}`)), archive.ErrInvalid},
		{"oci-layout is no JSON", builder.Replace("oci-layout", []byte(`1.0.0`)), archive.ErrInvalid},
		{"no oci-layout", builder.Omit("oci-layout"), archive.ErrInvalid},
		{"no index.json", builder.Omit("index.json"), archive.ErrInvalid},
		{"neither", builder.Omit("oci-layout", "index.json"), archive.ErrInvalid},
		{"no member at all", func([]builder.Member) []builder.Member { return nil }, archive.ErrInvalid},
		{"no manifest", builder.Omit(manifest), archive.ErrMissing},
		{"no layer", builder.Omit(layer), archive.ErrMissing},
		{"no config", builder.Omit(config), archive.ErrMissing},
		{"other bytes in the manifest", builder.Corrupt(manifest), archive.ErrDigestMismatch},
		{"a manifest with a byte more", builder.Replace(manifest, []byte("{}")), archive.ErrDigestMismatch},
		{"index.json is empty", builder.Replace("index.json", nil), archive.ErrInvalid},
		{"index.json is null", builder.Replace("index.json", []byte("null")), archive.ErrInvalid},
		{"index.json is a list", builder.Replace("index.json", []byte("[]")), archive.ErrInvalid},
		{"index.json with something behind it", builder.Replace("index.json", []byte(index+"{}")), archive.ErrInvalid},
		{"index.json with a key twice", builder.Replace("index.json", []byte(strings.Replace(index, `"manifests"`, `"manifests":[],"manifests"`, 1))), archive.ErrInvalid},
		{"index.json with a key that containerd would take for manifests", builder.Replace("index.json", []byte(strings.Replace(index, `"manifests"`, `"Manifests"`, 1))), archive.ErrInvalid},
		{"index.json with schemaVersion 1", builder.Replace("index.json", []byte(strings.Replace(index, `"schemaVersion":2`, `"schemaVersion":1`, 1))), archive.ErrInvalid},
		{"index.json with layers", builder.Replace("index.json", []byte(strings.Replace(index, `"manifests"`, `"layers":[],"manifests"`, 1))), archive.ErrInvalid},
		{"index.json without images", builder.Replace("index.json", []byte(`{"schemaVersion":2,"manifests":[]}`)), archive.ErrInvalid},
		{"index.json with another media type", builder.Replace("index.json", []byte(strings.Replace(index, "index.v1", "index.v9", 1))), archive.ErrInvalid},
		{"a digest that is none", builder.Replace("index.json", []byte(strings.ReplaceAll(index, "sha256:", "sha256:../../"))), archive.ErrInvalid},
		{"an algorithm that is none", builder.Replace("index.json", []byte(strings.ReplaceAll(index, "sha256:", "md5:"))), archive.ErrInvalid},
		{"a negative size", builder.Replace("index.json", []byte(strings.ReplaceAll(index, `"size":`, `"size":-`))), archive.ErrInvalid},
		{"a wrong size", builder.Replace("index.json", []byte(strings.ReplaceAll(index, `"size":`, `"size":1`))), archive.ErrInvalid},
		{"index.json above its bound", builder.Replace("index.json", []byte(index+strings.Repeat(" ", archive.MaxManifestBytes))), archive.ErrLimit},
		{"index.json with more descriptors than its bound", builder.Replace("index.json", manyDescriptors(archive.MaxDescriptors+1)), archive.ErrLimit},
	} {
		for _, mode := range modes {
			t.Run(tc.name+"/"+mode.name, func(t *testing.T) {
				a := simple()
				if tc.edit != nil {
					a.Edits = []builder.Edit{tc.edit}
				}
				wantError(t, open(t.Context(), mode.tree, bytesOf(t, a)), tc.want)
			})
		}
	}
}

// linkTo moves a member aside and puts a link in its place.
func linkTo(name string) builder.Edit {
	return func(ms []builder.Member) []builder.Member {
		return builder.Add(builder.LinkMember(name, "../../aside"))(builder.Rename(name, "aside")(ms))
	}
}

func manyDescriptors(n int) []byte {
	d := fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"%s","size":1}`, digest.FromString("x"))
	return []byte(`{"schemaVersion":2,"manifests":[` + strings.TrimSuffix(strings.Repeat(d+",", n), ",") + `]}`)
}

// TestNotArchives: files that people or servers take for archives.
func TestNotArchives(t *testing.T) {
	good := bytesOf(t, simple())
	noise := make([]byte, 4096)
	if _, err := mustOpen(t, builder.Noise("", 7, 4096)).Read(noise); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		data []byte
		says string
		want error
	}{
		{"empty", nil, "an empty file", archive.ErrInvalid},
		{"HTML", []byte("\n<!DOCTYPE HTML><title>Sign in</title>" + strings.Repeat(" ", 4096)), "an HTML page", archive.ErrInvalid},
		{"short HTML", []byte("<html>404</html>"), "an HTML page", archive.ErrInvalid},
		{"an S3 error", []byte(`<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>`), "an XML document", archive.ErrInvalid},
		{"JSON", []byte(`{"message":"not found"}` + strings.Repeat("\n", 1000)), "a JSON document", archive.ErrInvalid},
		{"text", []byte("404 page not found\n"), "a text", archive.ErrInvalid},
		{"Git LFS pointer", []byte("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "a Git LFS pointer", archive.ErrInvalid},
		{"noise", noise, "binary data", archive.ErrInvalid},
		{"short noise", noise[:300], "binary data", archive.ErrInvalid},
		{"gzip", bytesOf(t, builder.Archive{Images: simple().Images, Compression: builder.Gzip}), "gzip data", archive.ErrInvalid},
		{"xz", append([]byte("\xfd7zXZ\x00"), noise...), "recompress", archive.ErrInvalid},
		{"zip", append([]byte("PK\x03\x04"), noise...), "a zip file", archive.ErrInvalid},
		{"a few zeros", make([]byte, 100), "100 zero bytes", archive.ErrInvalid},
		{"an empty tar", make([]byte, 1024), "no image archive", archive.ErrInvalid},
		{"a tar with a broken first header", append([]byte("x"), good[1:]...), "tar header", archive.ErrInvalid},
		{"a tar with a broken later header", broken(good), "tar header at byte", archive.ErrInvalid},
		{"data behind the end", append(bytes.Clone(good), []byte("x")...), "after the end", archive.ErrInvalid},
		{"two tars, one behind the other", append(bytes.Clone(good), good...), "after the end", archive.ErrInvalid},
		{"padding behind the end", append(bytes.Clone(good), make([]byte, 20_000)...), "", nil},
		{"too much padding", append(bytes.Clone(good), make([]byte, archive.MaxPaddingBytes+1)...), "zeros after the end", archive.ErrLimit},
	} {
		for _, mode := range modes {
			t.Run(tc.name+"/"+mode.name, func(t *testing.T) {
				err := open(t.Context(), mode.tree, tc.data)
				wantError(t, err, tc.want)
				if err != nil && !strings.Contains(err.Error(), tc.says) {
					t.Errorf("the error does not say %q: %v", tc.says, err)
				}
			})
		}
	}
}

// broken changes the checksum of the second header.
func broken(tarball []byte) []byte {
	out := bytes.Clone(tarball)
	i := bytes.LastIndex(out, []byte("oci-layout\x00"))
	out[i+10] = 'x'
	return out
}

// TestNoTarIsCutUnnoticed cuts an archive everywhere. Only what lacks no more
// than the end marker may pass, and it must be marked incomplete.
func TestNoTarIsCutUnnoticed(t *testing.T) {
	good := bytesOf(t, simple(builder.First("oci-layout", "index.json")))
	end := len(good) - 1024
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			for n := 101; n < len(good); n += 37 {
				checkCut(t, mode.tree, good, n, end)
			}
			for n := 512; n < len(good); n += 512 { // clean ends for archive/tar
				checkCut(t, mode.tree, good, n, end)
			}
		})
	}
}
