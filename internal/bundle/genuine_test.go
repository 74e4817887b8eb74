package bundle_test

import (
	"bytes"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/testdata/genuine"
	"github.com/tarlift/tarlift/internal/bundle"
)

// What other tools wrote becomes a bundle with the names and digests that containerd found in it, and all that is
// there of each image, as random access and as a stream.
func TestGenuine(t *testing.T) {
	archives, err := genuine.Archives()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range archives {
		if a.Refused {
			continue
		}
		t.Run(a.File, func(t *testing.T) {
			o := bundle.Options{}
			if a.NeedsBaseName {
				o.Selection.BaseName = genuine.BaseName
			}
			data := plainTar(t, a)
			_, random := written(t, o, input(t, a.File, data))
			_, stream := written(t, o, passed(t, a.File, data))
			if !bytes.Equal(random, stream) {
				t.Error("as a stream it becomes another bundle")
			}
			want := map[string]string{}
			for _, img := range a.Images {
				words := strings.Fields(img.Present)
				for i, w := range words {
					words[i] = strings.ReplaceAll(strings.TrimPrefix(w, "linux/"), "/", "")
				}
				want[img.Name] = img.Digest + " " + strings.Join(words, " ")
			}
			if diff := cmp.Diff(want, reads(t, random)); diff != "" {
				t.Errorf("-want +got (%s):\n%s", slices.Sorted(maps.Keys(want)), diff)
			}
		})
	}
}

func plainTar(t *testing.T, a genuine.Archive) []byte {
	t.Helper()
	data, err := a.Data()
	if err != nil {
		t.Fatal(err)
	}
	r, err := archive.Decompress(bytes.NewReader(data), archive.Sniff(data), archive.MaxWindowBytes)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	plain, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return plain
}
