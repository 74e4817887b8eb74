package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/bundle"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/internal/source"
)

// containerdPrefix of an argument that names images of this machine's containerd.
const containerdPrefix = "containerd:"

// inputs are what a bundle is made of.
type inputs struct {
	flags      inputFlags
	containerd importer.Options
	args       []string
	in         io.Reader

	opened []io.Closer
}

// newInputs checks what can be said of the arguments.
func newInputs(flags inputFlags, o importer.Options, args []string, in io.Reader) (*inputs, error) {
	urls, streams := 0, 0
	for _, arg := range args {
		switch {
		case arg == "-":
			streams++
		case strings.TrimPrefix(arg, containerdPrefix) == "":
			return nil, usagef("%q: the name of an image is missing", arg)
		case isURL(arg):
			urls++
		}
	}
	if streams > 1 {
		return nil, usagef("standard input can be read only once")
	}
	if urls == 0 && flags != (inputFlags{}) {
		return nil, usagef("credentials are for URLs only, and there is none")
	}
	return &inputs{flags: flags, containerd: o, args: args, in: in}, nil
}

// open opens all. What can be read only once is kept in a file without a name in dir.
func (i *inputs) open(ctx context.Context, dir string, m *meter) ([]bundle.Input, error) {
	var reading source.Blob
	spool := bundle.NewSpool(dir, func(int64) {
		if reading != nil {
			m.report(phaseReading, reading.BytesRead(), reading.Size())
		}
	})
	i.opened = append(i.opened, spool)
	list := make([]bundle.Input, 0, len(i.args))
	for _, arg := range i.args {
		if ref, ok := strings.CutPrefix(arg, containerdPrefix); ok {
			in, err := i.openStored(ctx, ref)
			if err != nil {
				return nil, err
			}
			list = append(list, in)
			continue
		}
		blob, err := i.openBlob(ctx, arg)
		if err != nil {
			return nil, err
		}
		i.opened = append(i.opened, blob)
		reading = blob
		a, err := importer.OpenInto(ctx, blob, spool)
		if err != nil {
			return nil, aboutArchive(blob, err)
		}
		list = append(list, bundle.FromArchive(blob.String(), a.Layout, blob, spool))
	}
	return list, nil
}

// openBlob opens an archive or a layout directory.
func (i *inputs) openBlob(ctx context.Context, arg string) (source.Blob, error) {
	if isURL(arg) {
		return i.flags.open(ctx, arg, i.in)
	}
	if info, err := os.Stat(arg); err == nil && info.IsDir() {
		if _, err := os.Stat(filepath.Join(arg, ocispec.ImageLayoutFile)); err != nil {
			return nil, fmt.Errorf("directory %q has no %s, so it is no OCI layout: %w", arg, ocispec.ImageLayoutFile, archive.ErrInvalid)
		}
		return source.OpenDir(ctx, arg)
	}
	return (&inputFlags{}).open(ctx, arg, i.in)
}

// openStored finds images of containerd.
func (i *inputs) openStored(ctx context.Context, ref string) (bundle.Input, error) {
	imp, err := importer.New(i.containerd)
	if err != nil {
		return bundle.Input{}, err
	}
	i.opened = append(i.opened, imp)
	s, err := imp.Stored(ctx, ref)
	if err != nil {
		return bundle.Input{}, err
	}
	place := func(n int) string { return "image " + s.Manifests[n].Annotations[archive.AnnotationImageName] }
	return bundle.Input{Name: s.String(), Manifests: s.Manifests, Place: place, Blobs: storedBlobs{s}}, nil
}

// close closes all that was opened. They were only read from.
func (i *inputs) close() {
	for _, c := range i.opened {
		c.Close() //nolint:gosec // see above
	}
}

// storedBlobs are the blobs of images in containerd.
type storedBlobs struct{ *importer.Stored }

// Find asks containerd.
func (s storedBlobs) Find(ctx context.Context, d digest.Digest) (bundle.Blob, error) {
	size, err := s.Size(ctx, d)
	return bundle.Blob{Size: size, Open: func(ctx context.Context) (io.ReadCloser, error) { return s.Open(ctx, d) }}, err
}
