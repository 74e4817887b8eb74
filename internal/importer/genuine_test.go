package importer

import (
	"bytes"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/google/go-cmp/cmp"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/testdata/genuine"
)

// TestImportGenuine imports what real tools wrote: exactly its names appear, with
// the digests that `ctr images import` gives them, and whole.
func TestImportGenuine(t *testing.T) {
	archives, err := genuine.Archives()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range archives {
		for _, stream := range []bool{false, true} {
			name := a.File + "/random"
			if stream {
				name = a.File + "/stream"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel() // the content store waits for the disk most of the time
				testImportGenuine(t, a, stream)
			})
		}
	}
}

func testImportGenuine(t *testing.T, a genuine.Archive, stream bool) {
	platform := a.Node
	if platform == "" {
		platform = "linux/amd64"
	}
	n := newNode(t, platform)
	before := n.state(t)
	data, err := a.Data()
	if err != nil {
		t.Fatal(err)
	}
	req := wanted(owner)
	if a.NeedsBaseName {
		_, err := n.Import(t.Context(), &memory{Reader: bytes.NewReader(data), stream: stream}, req)
		if !errors.Is(err, archive.ErrInvalidName) {
			t.Errorf("without base name: %v, want ErrInvalidName", err)
		}
		unchanged(t, before, n.state(t))
		req.Selection.BaseName = genuine.BaseName
	}

	got, err := n.Import(t.Context(), &memory{Reader: bytes.NewReader(data), stream: stream}, req)
	if a.Refused {
		if !errors.Is(err, archive.ErrInvalid) {
			t.Errorf("%v, want ErrInvalid (%s)", err, a.Why)
		}
		unchanged(t, before, n.state(t))
		return
	}
	if err != nil {
		t.Fatalf("%v (%s)", err, a.Why)
	}
	want, published := namesOf(t, a)
	reported := map[string]string{}
	for _, img := range got.Images {
		reported[img.Name] = img.Digest.String()
	}
	if diff := cmp.Diff(want, reported); diff != "" {
		t.Errorf("result (-want +got; %s):\n%s", a.Why, diff)
	}
	maps.Copy(published, n.ids(t, slices.Collect(maps.Keys(want))...))
	if diff := cmp.Diff(published, n.imported(t, platform)); diff != "" {
		t.Errorf("containerd's images (-want +got; %s):\n%s", a.Why, diff)
	}
	if s := n.state(t); len(s.Leases)+len(s.Ingests) != 0 {
		t.Errorf("left behind: leases %v, ingests %v", s.Leases, s.Ingests)
	}

	whole := n.state(t)
	again, err := n.Import(t.Context(), &memory{Reader: bytes.NewReader(data), stream: stream}, req)
	if random := !stream && strings.HasSuffix(a.File, ".tar"); err != nil || random && again.Bytes.Written != 0 {
		t.Errorf("again: %v, %d bytes written", err, again.Bytes.Written)
	}
	unchanged(t, whole, n.state(t))
}

// TestImportGenuineElsewhere: an archive of one platform of an index is of no use
// to nodes of the others, though the index names them.
func TestImportGenuineElsewhere(t *testing.T) {
	archives, err := genuine.Archives()
	if err != nil {
		t.Fatal(err)
	}
	partial := 0
	for _, a := range archives {
		img := a.Images[0]
		for platform := range strings.FieldsSeq(img.Platforms) {
			if slices.Contains(strings.Fields(img.Present), platform) {
				continue
			}
			partial++
			t.Run(a.File+" on "+platform, func(t *testing.T) {
				t.Parallel()
				n := newNode(t, platform)
				before := n.state(t)
				data, err := a.Data()
				if err != nil {
					t.Fatal(err)
				}
				_, err = n.Import(t.Context(), &memory{Reader: bytes.NewReader(data)}, wanted(owner))
				if !errors.Is(err, ErrNoMatchingPlatform) {
					t.Errorf("%v, want ErrNoMatchingPlatform", err)
				}
				checkMessage(t, err, strings.Fields(img.Present))
				unchanged(t, before, n.state(t))
			})
		}
	}
	if partial == 0 {
		t.Error("no archive is partial")
	}
}

// namesOf gives the images that an import reports, and those that it publishes:
// the same and name@digest of each. Ids are left out.
func namesOf(t *testing.T, a genuine.Archive) (reported, published map[string]string) {
	t.Helper()
	reported, published = map[string]string{}, map[string]string{}
	for _, img := range a.Images {
		named, err := reference.ParseNamed(img.Name)
		if err != nil {
			t.Fatal(err)
		}
		reported[img.Name] = img.Digest
		published[img.Name] = img.Digest
		published[reference.TrimNamed(named).String()+"@"+img.Digest] = img.Digest
	}
	return reported, published
}

// imported gives the digests of the images in the store by name. Each must be
// whole for platform.
func (n *node) imported(t *testing.T, platform string) map[string]string {
	t.Helper()
	ctx := n.in(t.Context())
	list, err := n.services.images.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, img := range list {
		out[img.Name] = img.Target.Digest.String()
		_, _, _, missing, err := images.Check(ctx, n.services.content, img.Target, platforms.OnlyStrict(platforms.MustParse(platform)))
		if err != nil || len(missing) > 0 {
			t.Errorf("%s: missing %v (%v)", img.Name, missing, err)
		}
	}
	return out
}
