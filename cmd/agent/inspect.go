package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/internal/source"
)

func newInspectCommand() *cobra.Command {
	var (
		flags importFlags
		input inputFlags
		plan  bool
	)
	cmd := &cobra.Command{
		Use:   "inspect [flags] FILE|URL|-",
		Short: "Show what is in an archive, and with --plan what an import would move",
		Long: `Show an archive's images, their platforms and sizes, its format, how it can be read, and the digest of its index.

With --plan, containerd is asked what an import with the same flags would do: which images it would publish, which
blobs it would move, and which it would not, because they are there. Nothing is changed.`,
		Example: `  agent inspect images.tar
  agent inspect --plan --include 'registry.example/app/**' https://files.example/images.tar`,
		Args: cobra.ExactArgs(1),
	}
	flags.add(cmd.Flags())
	input.add(cmd.Flags())
	cmd.Flags().BoolVar(&plan, "plan", false, "also show what an import here would move, and why")
	output := addOutput(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		request, err := flags.request()
		if err != nil {
			return err
		}
		for _, name := range planOnly {
			if !plan && cmd.Flags().Changed(name) {
				return usagef("--%s counts for an import: it needs --plan here", name)
			}
		}
		ctx := cmd.Context()
		blob, err := input.open(ctx, args[0], cmd.InOrStdin())
		if err != nil {
			return err
		}
		defer blob.Close()
		if plan && !blob.RandomAccess() && !isURL(args[0]) {
			return usagef("--plan reads the archive twice, and %s can be read only once", blob)
		}
		in, err := inspect(ctx, blob, flags.selection.BaseName)
		if err != nil {
			return err
		}
		if plan {
			if in.Plan, err = planImport(ctx, flags.containerd, input, args[0], blob, request); err != nil {
				return err
			}
		}
		if output.value == outputJSON {
			return printJSON(cmd.OutOrStdout(), in)
		}
		return printInspection(cmd.OutOrStdout(), in, flags.containerd)
	}
	return cmd
}

// planOnly are flags that would be believed to have an effect without --plan.
var planOnly = []string{"include", "exclude", "rename", "digest", "index-digest"}

// inspection is what there is to say about an archive; -o json prints it.
type inspection struct {
	Source      string          `json:"source"`
	Format      string          `json:"format"`           // oci or docker
	Compression string          `json:"compression"`      // none, gzip or zstd
	Access      string          `json:"access"`           // random or stream
	Reason      string          `json:"reason,omitempty"` // why it is a stream
	Size        int64           `json:"size"`             // of the archive in bytes, -1 if unknown
	IndexDigest digest.Digest   `json:"indexDigest"`
	Images      []inspectedName `json:"images"` // in the archive's order
	Plan        *importer.Plan  `json:"plan,omitempty"`
}

// inspectedName is one entry of the archive's index.
type inspectedName struct {
	Name      string              `json:"name"`              // as an import would publish it; empty if it could not
	Problem   string              `json:"problem,omitempty"` // why it could not
	Digest    digest.Digest       `json:"digest"`
	Platforms []inspectedPlatform `json:"platforms"`
}

// inspectedPlatform is an image for one platform.
type inspectedPlatform struct {
	Platform string        `json:"platform"`
	Digest   digest.Digest `json:"digest"`
	Size     int64         `json:"size"`    // of manifest, config and layers in bytes; 0 without manifest
	Missing  int           `json:"missing"` // how many of these the archive lacks
}

const (
	accessRandom = "random"
	accessStream = "stream"
)

// inspect reads an archive's metadata; a stream is read to its end.
func inspect(ctx context.Context, blob source.Blob, baseName string) (*inspection, error) {
	in := &inspection{Source: blob.String(), Size: blob.Size(), Access: accessRandom}
	a, err := openArchive(ctx, blob)
	if err != nil {
		return nil, err
	}
	in.Compression = a.compression.String()
	switch in.Reason = source.WhyStream(blob); {
	case in.Reason != "":
		in.Access = accessStream
	case a.compression != archive.Uncompressed:
		in.Access, in.Reason = accessStream, "the whole archive is compressed by "+in.Compression
	}
	in.Format, in.IndexDigest = a.layout.Format, a.layout.IndexDigest
	if in.Size < 0 {
		in.Size = blob.BytesRead() // a stream that was read to its end
	}
	for _, d := range a.layout.Manifests {
		name, err := a.inspectName(ctx, d, baseName)
		if err != nil {
			return nil, err
		}
		in.Images = append(in.Images, name)
	}
	return in, nil
}

// openedArchive is an archive whose metadata can be read.
type openedArchive struct {
	layout      *archive.Layout
	compression archive.Compression
	seen        *archive.MemorySink // what a stream had; nil with random access
}

// sniffBytes is more than any magic number that archive.Sniff knows.
const sniffBytes = 16

func openArchive(ctx context.Context, blob source.Blob) (openedArchive, error) {
	if !blob.RandomAccess() {
		return streamArchive(ctx, blob)
	}
	head := make([]byte, sniffBytes)
	n, err := blob.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return openedArchive{}, fmt.Errorf("read the first bytes: %w", err)
	}
	if archive.Sniff(head[:n]) != archive.Uncompressed {
		return streamArchive(ctx, blob)
	}
	tree, err := archive.ReadTree(ctx, blob, blob.Size())
	if err != nil {
		return openedArchive{}, err
	}
	layout, err := archive.Decode(ctx, tree)
	return openedArchive{layout: layout}, err
}

// streamArchive reads everything once and keeps what can be metadata.
func streamArchive(ctx context.Context, blob source.Blob) (openedArchive, error) {
	raw, err := blob.Section(ctx, 0, -1)
	if err != nil {
		return openedArchive{}, err
	}
	defer raw.Close()
	buffered := bufio.NewReader(raw)
	head, err := buffered.Peek(sniffBytes)
	if err != nil && !errors.Is(err, io.EOF) {
		return openedArchive{}, fmt.Errorf("read the first bytes: %w", err)
	}
	a := openedArchive{compression: archive.Sniff(head), seen: archive.NewMemorySink()}
	plain, err := archive.Decompress(buffered, a.compression)
	if err != nil {
		return openedArchive{}, err
	}
	defer plain.Close()
	tree, err := archive.StreamTree(ctx, plain, a.seen)
	if err != nil {
		return openedArchive{}, err
	}
	a.layout, err = archive.Decode(ctx, tree)
	return a, err
}

// inspectName describes one entry of index.json.
func (a openedArchive) inspectName(ctx context.Context, d ocispec.Descriptor, baseName string) (inspectedName, error) {
	n := inspectedName{Digest: d.Digest}
	switch named, err := (archive.Selection{BaseName: baseName}).Select([]ocispec.Descriptor{d}); {
	case err != nil:
		n.Problem = oneLine(err.Error())
	case len(named) > 0:
		n.Name = named[0].Name
	}
	leaves, err := archive.Leaves(ctx, a.fetch, d)
	if errors.Is(err, archive.ErrMissing) {
		n.Problem = oneLine(err.Error())
		return n, nil
	}
	if err != nil {
		return n, err
	}
	for _, leaf := range leaves {
		p, err := a.inspectLeaf(ctx, leaf)
		if err != nil {
			return n, err
		}
		n.Platforms = append(n.Platforms, p)
	}
	return n, nil
}

// inspectLeaf sums up one platform's image. Blobs of other platforms are often left out of an archive.
func (a openedArchive) inspectLeaf(ctx context.Context, leaf archive.Leaf) (inspectedPlatform, error) {
	p := inspectedPlatform{Platform: oneLine(platforms.FormatAll(*leaf.Platform)), Digest: leaf.Digest}
	m, err := archive.ReadManifest(ctx, a.fetch, leaf.Descriptor)
	if errors.Is(err, archive.ErrMissing) {
		p.Missing = 1
		return p, nil
	}
	if err != nil {
		return p, err
	}
	p.Size = leaf.Size
	counted := map[digest.Digest]bool{}
	for _, d := range append(m.Layers, m.Config) {
		if counted[d.Digest] {
			continue
		}
		counted[d.Digest] = true
		p.Size += d.Size
		if !a.has(d.Digest) {
			p.Missing++
		}
	}
	return p, nil
}

func (a openedArchive) fetch(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	return a.layout.ReadBlob(ctx, d, archive.MaxConfigBytes)
}

func (a openedArchive) has(d digest.Digest) bool {
	if _, ok := a.seen.Size(d); ok {
		return true
	}
	_, ok := a.layout.Locate(d)
	return ok
}

// planImport asks containerd. A URL that gives a stream only is requested a second time.
func planImport(ctx context.Context, o importer.Options, input inputFlags, arg string, blob source.Blob,
	r importer.Request,
) (*importer.Plan, error) {
	if !blob.RandomAccess() {
		again, err := input.open(ctx, arg, nil)
		if err != nil {
			return nil, err
		}
		defer again.Close()
		blob = again
	}
	imp, err := importer.New(o)
	if err != nil {
		return nil, err
	}
	defer imp.Close()
	return imp.Plan(ctx, blob, r)
}
