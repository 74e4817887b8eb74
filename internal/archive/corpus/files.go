package corpus

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/builder"
)

// noise is the same n bytes each time.
func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(b) // never fails
	return b
}

// files are those that people and servers take for archives, and archives that were cut or grew on their way.
func files() []Case {
	k := usual()
	other := digest.FromString("another archive")
	wrong := func(o Options) Case {
		c := of(DigestMismatch, "", k.tar, other.String())
		c.Sight, c.Options = Node, o
		return c
	}
	digestAsked, indexAsked := wrong(Options{Digest: other}), wrong(Options{IndexDigest: other})
	digestAsked.Name, indexAsked.Name = "the archive has another digest than was asked for", "index.json has another digest than was asked for"
	digestAsked.Says = append(digestAsked.Says, digest.FromBytes(k.tar).String())
	indexAsked.Says = append(indexAsked.Says, k.indexDigest.String())

	return slices.Concat([]Case{
		of(Invalid, "an empty file", nil, "an empty file"),
		of(Invalid, "an HTML page", []byte("\n<!DOCTYPE HTML><title>Sign in</title>"+strings.Repeat(" ", 4096)), "an HTML page"),
		of(Invalid, "a short HTML page", []byte("<html>404</html>"), "an HTML page"),
		of(Invalid, "an error of S3", []byte(`<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>`), "an XML document"),
		of(Invalid, "a JSON document", []byte(`{"message":"not found"}`+strings.Repeat("\n", 1000)), "a JSON document"),
		of(Invalid, "a text", []byte("404 page not found\n"), "a text"),
		of(Invalid, "a Git LFS pointer", []byte("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "a Git LFS pointer"),
		of(Invalid, "random bytes", noise(4096), "binary data"),
		of(Invalid, "few random bytes", noise(300), "binary data"),
		of(Invalid, "xz", append([]byte("\xfd7zXZ\x00"), noise(4096)...), "xz data", "recompress"),
		of(Invalid, "a zip file", append([]byte("PK\x03\x04"), noise(4096)...), "a zip file"),
		of(Invalid, "few zeros", make([]byte, 100), "100 zero bytes"),
		of(Invalid, "a tar of nothing", make([]byte, 10240), "oci-layout", "manifest.json"),
		of(Invalid, "the first header is broken", append([]byte("x"), k.tar[1:]...), "tar header at byte 0"),
		of(Invalid, "a later header is broken", broken(k.tar), "tar header at byte"),
		of(Invalid, "a byte behind the end", append(bytes.Clone(k.tar), 'x'), "after the end"),
		of(Invalid, "a second tar behind the end", append(bytes.Clone(k.tar), k.tar...), "after the end"),
		lazy(Invalid, "a byte behind much padding", func() *Data { return join(data(k.tar), zeros(1<<20), text("x")) }, "after the end"),
		accepted(of("", "padding behind the end", append(bytes.Clone(k.tar), make([]byte, 20_000)...)), k.Image),
		lazy(LimitExceeded, "too much padding behind the end", func() *Data { return join(data(k.tar), zeros(archive.MaxPaddingBytes+1)) }, "zeros after the end"),
		digestAsked, indexAsked,
	}, cuts())
}

// broken has another character in the name in a header.
func broken(tarball []byte) []byte {
	out := bytes.Clone(tarball)
	out[bytes.LastIndex(out, []byte("oci-layout\x00"))+10] = 'x'
	return out
}

// cuts are archives that ended too early.
func cuts() []Case {
	k := usual()
	end := len(k.tar) - 2*blockSize
	layer := k.offset(path(k.layers[0]))
	blobs := []string{path(k.manifest), path(k.config), path(k.layers[0]), path(k.layers[1])}
	front := archiveOf([]builder.Edit{builder.Last(blobs...), builder.First("oci-layout", "index.json")}, image(appName, "linux/amd64", "linux/arm64"))
	behind := bytes.Index(front, []byte("blobs/sha256/")) // the header of the first blob
	noMark := accepted(of("", "no mark at the end, but nothing is missing", k.tar[:end]), k.Image)
	marked := of(Truncated, "no mark at the end, and a digest was asked for", k.tar[:end], "no end marker")
	marked.Options.IndexDigest, marked.Sight = k.indexDigest, Node
	return []Case{
		of(Truncated, "cut in the first header", k.tar[:300], "byte 300"),
		of(Truncated, "cut in a later header", k.tar[:layer+300], "within a member"),
		of(Truncated, "cut in a blob", k.tar[:layer+blockSize+100], path(k.layers[0])),
		of(Truncated, "cut in the padding of a blob", k.tar[:layer+blockSize+int(k.layers[0].Size)+1], ""),
		of(Truncated, "cut between two members", k.tar[:k.offset("index.json")], "no end marker", "oci-layout"),
		of(Truncated, "cut before oci-layout", k.tar[:k.offset("oci-layout")], "no end marker", "oci-layout"),
		of(Truncated, "index.json first, then cut before the blobs", front[:behind], "sha256:"),
		of(Truncated, "index.json first, then cut between two blobs", front[:len(front)-2*blockSize-int(k.layers[1].Size+blockSize-1)/blockSize*blockSize-blockSize], k.layers[1].Digest.String()),
		of(Truncated, "index.json first, then cut in a blob", front[:len(front)-2*blockSize-1], path(k.layers[1])),
		of(Truncated, "cut in the mark at the end", k.tar[:end+100], "byte"),
		noMark, marked,
		accepted(of("", "half of the mark at the end", k.tar[:end+blockSize]), k.Image),
	}
}
