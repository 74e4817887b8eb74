package bundle_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/internal/bundle"
)

// Names are chosen and changed as by an import, over all inputs together.
func TestNames(t *testing.T) {
	_, one := built(t, builder.Archive{Images: family()})
	_, bare := built(t, builder.Archive{Names: builder.BareTag, Images: []builder.Image{image("tool:2", platform("linux/amd64", layer(7)))}})
	inputs := []bundle.Input{input(t, "one", one), input(t, "bare", bare)}
	for name, tc := range map[string]struct {
		selection archive.Selection
		want      []string
	}{
		"all": {archive.Selection{BaseName: "b.example/tool"}, []string{
			"a.example/base:1", "b.example/tool:2", "m.example/other:1", "n.example/sibling:1", "z.example/child:1",
		}},
		"of one input": {archive.Selection{Include: []string{"**/child:*"}}, []string{"z.example/child:1"}},
		"but one": {
			archive.Selection{BaseName: "b.example/tool", Exclude: []string{"b.example/**", "m.example/*:*"}},
			[]string{"a.example/base:1", "n.example/sibling:1", "z.example/child:1"},
		},
		"renamed": {
			archive.Selection{Include: []string{"*.example/child:1"}, Rename: []archive.Rename{{From: "z.example/", To: "docker.io/library/"}}},
			[]string{"docker.io/library/child:1"},
		},
	} {
		made, err := bundle.Make(t.Context(), inputs, bundle.Options{Selection: tc.selection})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var got []string
		for _, img := range made.Images {
			got = append(got, img.Name)
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	for name, s := range map[string]archive.Selection{
		"a bare tag":     {},
		"nothing chosen": {Include: []string{"no.example/**"}},
		"two become one": {BaseName: "b.example/tool", Rename: []archive.Rename{{From: "a.example/base:1", To: "m.example/other:1"}}},
	} {
		if _, err := bundle.Make(t.Context(), inputs, bundle.Options{Selection: s}); !errors.Is(err, archive.ErrInvalidName) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A name that two inputs give to two images names both inputs' digests, and where the second stands.
func TestConflict(t *testing.T) {
	var inputs []bundle.Input
	for i := range 2 {
		_, data := built(t, builder.Archive{Images: []builder.Image{image("a.example/app:1", platform("linux/amd64", layer(uint64(i+1))))}})
		inputs = append(inputs, input(t, fmt.Sprintf("input-%d", i), data))
	}
	_, err := bundle.Make(t.Context(), inputs, bundle.Options{})
	if !errors.Is(err, archive.ErrInvalidName) || !strings.Contains(fmt.Sprint(err), "input-1: read index.json: manifests[0]") {
		t.Error(err)
	}
}

// Whatever is wrong with an input: the right error, which names the input.
func TestBadInputs(t *testing.T) {
	good := builder.Archive{Images: []builder.Image{image("a.example/app:1", platform("linux/amd64", layer(1), layer(2)))}}
	b, _ := built(t, good)
	p := b.Images[0].Platforms[0]
	path := builder.BlobPath(p.Layers[1].Digest)
	docker := good
	docker.Format = builder.Docker
	for name, tc := range map[string]struct {
		archive builder.Archive
		edit    builder.Edit
		want    error
	}{
		"corrupt layer":           {good, builder.Corrupt(path), archive.ErrDigestMismatch},
		"corrupt manifest":        {good, builder.Corrupt(builder.BlobPath(p.Manifest.Digest)), archive.ErrDigestMismatch},
		"corrupt config":          {good, builder.Corrupt(builder.BlobPath(p.Config.Digest)), archive.ErrDigestMismatch},
		"missing layer":           {good, builder.Omit(path), archive.ErrMissing},
		"missing manifest":        {good, builder.Omit(builder.BlobPath(p.Manifest.Digest)), archive.ErrMissing},
		"missing config":          {good, builder.Omit(builder.BlobPath(p.Config.Digest)), archive.ErrMissing},
		"shorter layer":           {good, builder.Replace(path, []byte("too short")), archive.ErrInvalid},
		"corrupt layer of docker": {docker, builder.Corrupt(p.DiffIDs[1].Encoded() + ".tar"), archive.ErrDigestMismatch},
	} {
		t.Run(name, func(t *testing.T) {
			a := tc.archive
			if a.Format == builder.Docker { // whose layers are not compressed
				a.Images = []builder.Image{image("a.example/app:1", platform("linux/amd64", plain(layer(1)), plain(layer(2))))}
			}
			a.Edits = []builder.Edit{tc.edit}
			_, data := built(t, a)
			in := input(t, "the input", data)
			made, err := bundle.Make(t.Context(), []bundle.Input{in}, bundle.Options{})
			if err == nil {
				_, err = made.Write(t.Context(), io.Discard, nil)
			}
			if !errors.Is(err, tc.want) || !strings.Contains(fmt.Sprint(err), "the input: ") {
				t.Errorf("%v, want %v", err, tc.want)
			}
		})
	}
}

func plain(l builder.Layer) builder.Layer {
	l.Compression = builder.None
	return l
}

// full is a disk with room for n bytes.
type full struct{ n int }

func (f *full) Write(p []byte) (int, error) {
	if f.n -= len(p); f.n < 0 {
		return 0, syscall.ENOSPC
	}
	return len(p), nil
}

// A disk that fills up, at whatever byte, is what the error says, and not what it makes of the rest.
func TestFullDisk(t *testing.T) {
	_, data := built(t, builder.Archive{Images: family()})
	made, err := bundle.Make(t.Context(), []bundle.Input{input(t, "in", data)}, bundle.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; n < int(made.Size); n += 1777 {
		if _, err := made.Write(t.Context(), &full{n}, nil); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("after %d bytes: %v", n, err)
		}
	}
	if _, err := made.Write(t.Context(), &full{int(made.Size)}, nil); err != nil {
		t.Errorf("a disk with just enough room: %v", err)
	}
}

// A writer that hangs does not keep whoever gives up.
func TestHangingWriter(t *testing.T) {
	_, data := built(t, builder.Archive{Images: family()})
	made, err := bundle.Make(t.Context(), []bundle.Input{input(t, "in", data)}, bundle.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := made.Write(ctx, w, nil); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 10*time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
	r.Close()
}

// Progress ends with the size, and never goes back.
func TestProgress(t *testing.T) {
	_, data := built(t, builder.Archive{Images: family()})
	made, err := bundle.Make(t.Context(), []bundle.Input{input(t, "in", data)}, bundle.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var last int64
	if _, err := made.Write(t.Context(), io.Discard, func(n int64) {
		if n < last {
			t.Errorf("%d after %d", n, last)
		}
		last = n
	}); err != nil {
		t.Fatal(err)
	}
	if last != made.Size {
		t.Errorf("%d of %d", last, made.Size)
	}
}

// What no import would take is not made.
func TestLimits(t *testing.T) {
	var inputs []bundle.Input
	for i := range 3 { // each within the bounds
		img := image("", platform("linux/amd64", layer(uint64(i+1))))
		img.Names = nil
		for k := range 1400 {
			img.Names = append(img.Names, fmt.Sprintf("a.example/app:%d-%d", i, k))
		}
		_, data := built(t, builder.Archive{Images: []builder.Image{img}})
		inputs = append(inputs, input(t, "in", data))
	}
	if _, err := bundle.Make(t.Context(), inputs[:2], bundle.Options{}); err != nil {
		t.Errorf("2,800 names: %v", err)
	}
	if _, err := bundle.Make(t.Context(), inputs, bundle.Options{}); !errors.Is(err, archive.ErrLimit) {
		t.Errorf("4,200 names: %v", err)
	}
}

// What cannot be kept, and a wrong digest, are errors of the pass.
func TestSpool(t *testing.T) {
	_, data := built(t, builder.Archive{Images: family()})
	s := bundle.NewSpool("/nonexistent", nil)
	if _, err := archive.StreamTree(t.Context(), bytes.NewReader(data), s); err == nil {
		t.Error("a directory that is not there")
	}
	b, _ := built(t, builder.Archive{Images: family()})
	corrupt := builder.Corrupt(builder.BlobPath(b.Images[0].Platforms[0].Layers[0].Digest))
	_, bad := built(t, builder.Archive{Images: family(), Edits: []builder.Edit{corrupt}})
	s = bundle.NewSpool(t.TempDir(), nil)
	defer s.Close()
	if _, err := archive.StreamTree(t.Context(), bytes.NewReader(bad), s); !errors.Is(err, archive.ErrDigestMismatch) {
		t.Errorf("a damaged layer: %v", err)
	}
}
