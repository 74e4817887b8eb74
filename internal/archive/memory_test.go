package archive_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/builder"
)

// TestMemorySink: all metadata of a stream can be read afterwards, and nothing else is kept.
func TestMemorySink(t *testing.T) {
	a := simple()
	a.Images[0].Attestations = true
	b := build(t, a)
	sink := archive.NewMemorySink()
	tree, err := archive.StreamTree(t.Context(), bytes.NewReader(bytesOf(t, b)), sink)
	if err != nil {
		t.Fatal(err)
	}
	l, err := archive.Decode(t.Context(), tree)
	if err != nil {
		t.Fatal(err)
	}
	leaves := leavesOf(t, l, l.Manifests[0])
	m, err := archive.ReadManifest(t.Context(), fetchFrom(l), leaves[0].Descriptor)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range append(m.Layers, m.Config) {
		if size, ok := sink.Size(d.Digest); !ok || size != d.Size {
			t.Errorf("blob %s has %d bytes, %v", d.Digest, size, ok)
		}
	}
	_, err = sink.Get(t.Context(), m.Layers[0].Digest, 1<<20)
	wantError(t, err, fs.ErrNotExist)
}

func TestMemorySinkIsBounded(t *testing.T) {
	for _, tc := range []struct {
		name, form string
		want       error
	}{
		{"metadata", `{"n":%d,"x":"%s"}`, archive.ErrLimit},
		{"statements about the packages in an image", `{"_type":"https://in-toto.io/Statement/v0.1","n":%d,"x":"%s"}`, nil},
		{"layers", `%d%s`, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			sink := archive.NewMemorySink()
			var err error
			for i := 0; i < 4 && err == nil; i++ {
				data := fmt.Appendf(nil, tc.form, i, strings.Repeat("x", 5<<20))
				_, err = sink.Put(t.Context(), digest.FromBytes(data), int64(len(data)), bytes.NewReader(data))
			}
			wantError(t, err, tc.want)
		})
	}
}

func TestMemorySinkKeepsIndentedJSON(t *testing.T) {
	for _, data := range []string{"{}", " {}", "\n\r\n\t{}"} {
		sink := archive.NewMemorySink()
		d, err := sink.Put(t.Context(), "", int64(len(data)), strings.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := sink.Get(t.Context(), d, 10); string(got) != data {
			t.Errorf("%q: kept %q, %v", data, got, err)
		}
	}
}

func TestMemorySinkVerifies(t *testing.T) {
	b := build(t, simple())
	b.Edit(builder.Corrupt(builder.BlobPath(b.Images[0].Platforms[0].Layers[0].Digest)))
	_, err := archive.StreamTree(t.Context(), bytes.NewReader(bytesOf(t, b)), archive.NewMemorySink())
	wantError(t, err, archive.ErrDigestMismatch)
}
