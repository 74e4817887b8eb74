package main

import (
	"context"
	"io"
	"os"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/bundle"
	"github.com/tarlift/tarlift/internal/cli"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/internal/source"
)

// containerdPrefix marks an argument that names images of this machine's containerd.
const containerdPrefix = "containerd:"

// inputs are what a bundle is made of.
type inputs struct {
	flags      cli.Input
	containerd importer.Options
	args       []string
	in         io.Reader

	opened []io.Closer
}

// newInputs checks the arguments without opening anything.
func newInputs(flags cli.Input, o importer.Options, args []string, in io.Reader) (*inputs, error) {
	urls, streams := 0, 0
	for _, arg := range args {
		switch {
		case arg == "-":
			streams++
		case strings.TrimPrefix(arg, containerdPrefix) == "":
			return nil, cli.Usagef("%q: an image name is missing after the colon", arg)
		case cli.IsURL(arg):
			urls++
		}
	}
	if streams > 1 {
		return nil, cli.Usagef("standard input can be read only once")
	}
	if urls == 0 && flags != (cli.Input{}) {
		return nil, cli.Usagef("credentials are for URLs only, and no input is a URL")
	}
	return &inputs{flags: flags, containerd: o, args: args, in: in}, nil
}

// open opens all inputs. Those that can be read only once are kept in a temporary file in dir.
func (i *inputs) open(ctx context.Context, dir string, report reporter) ([]bundle.Input, error) {
	var reading source.Blob
	spool := bundle.NewSpool(dir, func(int64) {
		if reading != nil {
			report(cli.PhaseReading, reading.BytesRead(), reading.Size())
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
		if info, err := os.Stat(arg); err == nil && info.IsDir() {
			in, err := openLayoutDir(ctx, arg)
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
			return nil, cli.NameArchive(blob, err)
		}
		list = append(list, bundle.FromArchive(blob.String(), a.Layout, blob, spool))
	}
	return list, nil
}

// openBlob opens an archive. Credentials are for URLs only.
func (i *inputs) openBlob(ctx context.Context, arg string) (source.Blob, error) {
	if cli.IsURL(arg) {
		return i.flags.Open(ctx, arg, i.in)
	}
	return (&cli.Input{}).Open(ctx, arg, i.in)
}

// openStored finds the images of containerd that match ref, a name or a glob.
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

// close closes what open opened.
func (i *inputs) close() {
	for _, c := range i.opened {
		c.Close() //nolint:gosec // opened for reading only
	}
}

// storedBlobs are the blobs of images in containerd.
type storedBlobs struct{ *importer.Stored }

// Find implements bundle.Blobs.
func (s storedBlobs) Find(ctx context.Context, d digest.Digest) (bundle.Blob, error) {
	size, err := s.Size(ctx, d)
	return bundle.Blob{Size: size, Open: func(ctx context.Context) (io.ReadCloser, error) { return s.Open(ctx, d) }}, err
}
