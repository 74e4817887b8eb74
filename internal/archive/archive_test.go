package archive_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/builder"
)

// bytesAt is an archive.Random over memory that counts what is read.
type bytesAt struct {
	io.ReaderAt
	size, read int64
	sections   int
}

func atBytes(data []byte) *bytesAt {
	return &bytesAt{ReaderAt: bytes.NewReader(data), size: int64(len(data))}
}

func (b *bytesAt) ReadAt(p []byte, off int64) (int, error) {
	n, err := b.ReaderAt.ReadAt(p, off)
	b.read += int64(n)
	return n, err
}

func (b *bytesAt) Section(_ context.Context, off, n int64) (io.ReadCloser, error) {
	b.sections++
	if n < 0 {
		n = b.size - off
	}
	return io.NopCloser(io.NewSectionReader(b, off, n)), nil
}

// modes are the two ways to an archive: each test of what is in one takes both.
var modes = []struct {
	name string
	tree func(ctx context.Context, data []byte) (*archive.Tree, error)
}{
	{"random", func(ctx context.Context, data []byte) (*archive.Tree, error) {
		return archive.ReadTree(ctx, atBytes(data), int64(len(data)))
	}},
	{"stream", func(ctx context.Context, data []byte) (*archive.Tree, error) {
		return archive.StreamTree(ctx, bytes.NewReader(data), newStore())
	}},
}

// store is a sink that keeps everything and verifies what a name claims.
type store map[digest.Digest][]byte

func newStore() store { return store{} }

func (s store) Put(_ context.Context, claimed digest.Digest, _ int64, r io.Reader) (digest.Digest, error) {
	data, err := io.ReadAll(r)
	if err != nil {
		return "", err
	}
	alg := digest.Canonical
	if claimed != "" {
		alg = claimed.Algorithm()
	}
	d := alg.FromBytes(data)
	if claimed != "" && d != claimed {
		return "", archive.ErrDigestMismatch
	}
	s[d] = data
	return d, nil
}

func (s store) Get(_ context.Context, d digest.Digest, limit int64) ([]byte, error) {
	data, ok := s[d]
	if !ok {
		return nil, fs.ErrNotExist
	}
	if int64(len(data)) > limit {
		return nil, archive.ErrLimit
	}
	return data, nil
}

// use does with an archive what an import does to all of its images: read all
// metadata, and see that each blob is there.
func use(ctx context.Context, tree *archive.Tree) error {
	l, err := archive.Decode(ctx, tree)
	if err != nil {
		return err
	}
	for _, target := range l.Manifests {
		leaves, err := (&archive.Resolver{Fetch: fetchFrom(l)}).PlatformManifests(ctx, target)
		if err != nil {
			return err
		}
		for _, leaf := range leaves {
			m, err := archive.ReadManifest(ctx, fetchFrom(l), leaf.Descriptor)
			if err != nil {
				return err
			}
			for _, d := range append(m.Layers, m.Config) {
				if err := present(ctx, l, tree, d); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func fetchFrom(l *archive.Layout) archive.Fetch {
	return func(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
		return l.ReadBlob(ctx, d, archive.MaxConfigBytes)
	}
}

// present tells whether a blob is there: by its place, or after a stream pass by its bytes.
func present(ctx context.Context, l *archive.Layout, tree *archive.Tree, d ocispec.Descriptor) error {
	if _, ok := l.Locate(d.Digest); ok {
		return nil
	}
	if _, err := l.ReadBlob(ctx, d, 1<<30); err == nil {
		return nil
	}
	if !tree.Complete() {
		return archive.ErrTruncated
	}
	return archive.ErrMissing
}

func open(ctx context.Context, tree func(context.Context, []byte) (*archive.Tree, error), data []byte) error {
	t, err := tree(ctx, data)
	if err != nil {
		return err
	}
	return use(ctx, t)
}

// simple is an archive with one image of two layers.
func simple(edit ...builder.Edit) builder.Archive {
	return builder.Archive{Images: []builder.Image{{
		Names:     []string{"example.com/app:1"},
		Platforms: []builder.PlatformImage{platformImage("linux/amd64")},
	}}, Edits: edit}
}

func platformImage(p string) builder.PlatformImage {
	return builder.PlatformImage{
		Platform: builder.Platform(p),
		Layers: []builder.Layer{
			{Files: []builder.File{{Name: "base", Data: []byte("base")}}, Compression: builder.Gzip},
			{Files: []builder.File{{Name: "app", Data: []byte(p)}}},
		},
	}
}

func build(t *testing.T, a builder.Archive) *builder.Built {
	t.Helper()
	b, err := a.Build()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func bytesOf(t *testing.T, a interface{ Bytes() ([]byte, error) }) []byte {
	t.Helper()
	data, err := a.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func wantError(t *testing.T, err, want error) {
	t.Helper()
	if want == nil && err != nil || !errors.Is(err, want) {
		t.Errorf("error is %v, want %v", err, want)
	}
}

// brokenSink reads, then fails with its own error whatever reading gave.
type brokenSink struct {
	store
	err error
}

func (b *brokenSink) Put(ctx context.Context, claimed digest.Digest, size int64, r io.Reader) (digest.Digest, error) {
	if _, err := b.store.Put(ctx, claimed, size, r); err != nil {
		return "", b.err
	}
	return "", b.err
}
