package archive_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"testing"

	"github.com/containerd/platforms"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/testdata/genuine"
)

// TestGenuine reads archives of real tools, by random access and in one pass,
// and finds the images that containerd's own importer found in them.
func TestGenuine(t *testing.T) {
	archives, err := genuine.Archives()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range archives {
		data := plainTar(t, a)
		t.Run(a.File+"/random", func(t *testing.T) {
			tree, err := archive.ReadTree(t.Context(), inMemory{bytes.NewReader(data)}, int64(len(data)))
			if err != nil {
				t.Fatal(err)
			}
			g, ok := decodeGenuine(t, a, tree)
			if !ok {
				return
			}
			g.checkImages()
			g.checkContent(func(d ocispec.Descriptor) ([]byte, error) {
				e, ok := g.layout.Locate(d.Digest)
				switch {
				case !ok:
					return nil, archive.ErrMissing
				case e.Data != nil:
					return e.Data, nil
				}
				return data[e.Offset : e.Offset+e.Size], nil
			})
		})
		t.Run(a.File+"/stream", func(t *testing.T) {
			sink := keepAll{}
			tree, err := archive.StreamTree(t.Context(), bytes.NewReader(data), sink)
			if err != nil {
				t.Fatal(err)
			}
			g, ok := decodeGenuine(t, a, tree)
			if !ok {
				return
			}
			g.checkImages()
			g.checkContent(func(d ocispec.Descriptor) ([]byte, error) {
				blob, ok := sink[d.Digest]
				if !ok {
					return nil, archive.ErrMissing
				}
				return blob, nil
			})
		})
	}
}

// plainTar gives the tar of an archive.
func plainTar(t *testing.T, a genuine.Archive) []byte {
	t.Helper()
	data, err := a.Data()
	if err != nil {
		t.Fatal(err)
	}
	want := archive.Uncompressed
	switch {
	case strings.HasSuffix(a.File, ".gz"):
		want = archive.Gzip
	case strings.HasSuffix(a.File, ".zst"):
		want = archive.Zstd
	}
	got := archive.Sniff(data)
	if got != want {
		t.Fatalf("%s: compression %v, want %v", a.File, got, want)
	}
	r, err := archive.Decompress(bytes.NewReader(data), got, archive.MaxWindowBytes)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return plain
}

// decoded is a genuine archive and what was understood of it.
type decoded struct {
	*testing.T
	archive genuine.Archive
	layout  *archive.Layout
	named   []archive.Named
}

// decodeGenuine checks all but the images; ok is false where there are none.
func decodeGenuine(t *testing.T, a genuine.Archive, tree *archive.Tree) (g decoded, ok bool) {
	t.Helper()
	layout, err := archive.Decode(t.Context(), tree)
	if a.Refused {
		if !errors.Is(err, archive.ErrInvalid) {
			t.Errorf("%v, want ErrInvalid (%s)", err, a.Why)
		}
		return g, false
	}
	if err != nil {
		t.Fatalf("%v (%s)", err, a.Why)
	}
	if layout.Format != a.Format {
		t.Errorf("format %q, want %q", layout.Format, a.Format)
	}
	if !layout.Complete {
		t.Error("no end marker was found")
	}
	named, err := archive.Selection{}.Select(layout.Manifests)
	if a.NeedsBaseName {
		if !errors.Is(err, archive.ErrInvalidName) {
			t.Errorf("without base name: %v, want ErrInvalidName", err)
		}
		named, err = archive.Selection{BaseName: genuine.BaseName}.Select(layout.Manifests)
	}
	if err != nil {
		t.Fatalf("%v (%s)", err, a.Why)
	}
	return decoded{t, a, layout, named}, true
}

// checkImages checks names, digests and platforms.
func (g decoded) checkImages() {
	g.Helper()
	type image struct{ Name, Digest, Platforms string }
	var want, got []image
	for _, img := range g.archive.Images {
		want = append(want, image{img.Name, img.Digest, img.Platforms})
	}
	for _, n := range g.named {
		got = append(got, image{n.Name, n.Target.Digest.String(), platformsOf(g.leaves(n.Target))})
	}
	byName := cmpopts.SortSlices(func(x, y image) bool { return x.Name < y.Name })
	if diff := cmp.Diff(want, got, byName); diff != "" {
		g.Errorf("images (-want +got; %s):\n%s", g.archive.Why, diff)
	}
}

// checkContent reads, with read, all blobs of the platforms that are present,
// and finds that of each other platform something is missing.
func (g decoded) checkContent(read func(ocispec.Descriptor) ([]byte, error)) {
	g.Helper()
	want := map[string]string{}
	for _, img := range g.archive.Images {
		want[img.Name] = img.Present
	}
	for _, n := range g.named {
		var present []archive.PlatformManifest
		for _, leaf := range g.leaves(n.Target) {
			err := g.readImage(leaf, read)
			switch {
			case err == nil:
				present = append(present, leaf)
			case !errors.Is(err, archive.ErrMissing):
				g.Errorf("%s %s: %v", n.Name, platforms.Format(*leaf.Platform), err)
			}
		}
		if got := platformsOf(present); got != want[n.Name] {
			g.Errorf("%s: the archive has %q, want %q (%s)", n.Name, got, want[n.Name], g.archive.Why)
		}
	}
}

func (g decoded) readImage(leaf archive.PlatformManifest, read func(ocispec.Descriptor) ([]byte, error)) error {
	manifest, err := archive.ReadManifest(g.Context(), g.fetch, leaf.Descriptor)
	if err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	for _, d := range append(manifest.Layers, manifest.Config) {
		data, err := read(d)
		if err != nil {
			return fmt.Errorf("blob %s: %w", d.Digest, err)
		}
		if got := digest.FromBytes(data); got != d.Digest || int64(len(data)) != d.Size {
			return fmt.Errorf("blob %s of %d bytes: read %d bytes with digest %s", d.Digest, d.Size, len(data), got)
		}
	}
	return nil
}

func (g decoded) leaves(target ocispec.Descriptor) []archive.PlatformManifest {
	g.Helper()
	list, err := (&archive.Resolver{Fetch: g.fetch}).PlatformManifests(g.Context(), target)
	if err != nil {
		g.Fatal(err)
	}
	return list
}

func (g decoded) fetch(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	data, err := g.layout.ReadBlob(ctx, d, d.Size)
	if err != nil {
		return nil, fmt.Errorf("fetch: %w", err)
	}
	return data, nil
}

func platformsOf(list []archive.PlatformManifest) string {
	var out []string
	for _, l := range list {
		out = append(out, platforms.Format(platforms.Normalize(*l.Platform)))
	}
	return strings.Join(out, " ")
}

// inMemory is an archive with random access.
type inMemory struct{ *bytes.Reader }

func (m inMemory) Section(_ context.Context, off, n int64) (io.ReadCloser, error) {
	return io.NopCloser(io.NewSectionReader(m, off, n)), nil
}

// keepAll is a sink that keeps everything.
type keepAll map[digest.Digest][]byte

func (k keepAll) Put(_ context.Context, claimed digest.Digest, size int64, r io.Reader) (digest.Digest, error) {
	data, err := io.ReadAll(r)
	if err != nil {
		return "", fmt.Errorf("sink: %w", err)
	}
	d := digest.FromBytes(data)
	if claimed != "" && claimed != d || int64(len(data)) != size {
		return "", fmt.Errorf("sink: %s with %d bytes: %w", d, len(data), archive.ErrDigestMismatch)
	}
	k[d] = data
	return d, nil
}

func (k keepAll) Get(_ context.Context, d digest.Digest, _ int64) ([]byte, error) {
	if data, ok := k[d]; ok {
		return data, nil
	}
	return nil, fs.ErrNotExist
}
