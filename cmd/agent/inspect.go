package main

import (
	"context"
	"errors"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/cli"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/internal/source"
)

func newInspectCommand() *cobra.Command {
	var (
		flags importFlags
		input cli.Input
		plan  bool
	)
	cmd := &cobra.Command{
		Use:   "inspect [flags] FILE|URL|-",
		Short: "Show what is in an archive, and with --plan what an import would transfer",
		Long: `Show an archive's images with their platforms and sizes, its format, how it can be read, and the digest of its
index.json.

With --plan, also show what an import with the same flags would do with this machine's containerd: which images it
would publish, which blobs it would transfer, and which blobs containerd has already. The command changes nothing.

Exit codes: 0: the archive is readable. 1: failed. 2: the command line is wrong. 130: interrupted.`,
		Example: `  agent inspect images.tar
  agent inspect --plan --include 'registry.example/app/**' https://files.example/images.tar`,
		Args: cobra.ExactArgs(1),
	}
	flags.add(cmd.Flags())
	input.Add(cmd.Flags())
	cmd.Flags().BoolVar(&plan, "plan", false, "also show what an import here would transfer, and why")
	output := cli.AddOutput(cmd.Flags(), "o")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		request, err := flags.request()
		if err != nil {
			return err
		}
		for _, name := range planOnly {
			if !plan && cmd.Flags().Changed(name) {
				return cli.Usagef("--%s is for imports: it needs --plan here", name)
			}
		}
		ctx := cmd.Context()
		blob, err := input.Open(ctx, args[0], cmd.InOrStdin())
		if err != nil {
			return err
		}
		defer blob.Close()
		a, err := importer.Open(ctx, blob)
		if err != nil {
			return cli.NameArchive(blob, err)
		}
		in, err := inspect(ctx, blob, a, flags.selection.BaseName)
		if err != nil {
			return cli.NameArchive(blob, err)
		}
		if plan {
			imp, err := importer.New(flags.containerd)
			if err != nil {
				return err
			}
			defer imp.Close()
			if in.DryRun, err = imp.DryRun(ctx, a, request); err != nil {
				return cli.NameArchive(blob, err)
			}
			if in.Refusal != nil {
				f, _ := failures.Explain(ctx, in.Refusal)
				in.WouldFail = &f
			}
		}
		if output.Value == cli.OutputJSON {
			return cli.PrintJSON(cmd.OutOrStdout(), in)
		}
		return printInspection(cmd.OutOrStdout(), in, flags.containerd)
	}
	return cmd
}

// planOnly are flags that have no effect without --plan.
var planOnly = []string{"include", "exclude", "rename", "digest", "index-digest"}

// inspection describes an archive; -o json prints it.
type inspection struct {
	Source      string          `json:"source"`
	Format      string          `json:"format"`           // oci or docker
	Compression string          `json:"compression"`      // none, gzip or zstd
	Access      string          `json:"access"`           // random or stream
	Reason      string          `json:"reason,omitempty"` // why it is a stream
	Size        int64           `json:"size"`             // of the archive in bytes, -1 if unknown
	IndexDigest digest.Digest   `json:"indexDigest"`
	Images      []inspectedName `json:"images"` // in the archive's order

	importer.DryRun              // with --plan
	WouldFail       *cli.Failure `json:"wouldFail,omitempty"`
}

// inspectedName is one entry of the archive's index.
type inspectedName struct {
	Name      string              `json:"name"`              // as an import would publish it; empty if it cannot
	Problem   string              `json:"problem,omitempty"` // why it cannot
	Digest    digest.Digest       `json:"digest"`
	Platforms []inspectedPlatform `json:"platforms"`
}

// inspectedPlatform is an image for one platform.
type inspectedPlatform struct {
	Platform string        `json:"platform"`
	Digest   digest.Digest `json:"digest"`
	Size     int64         `json:"size"`    // of manifest, config and layers in bytes; 0 without manifest
	Missing  int           `json:"missing"` // number of these that the archive lacks
}

const (
	accessRandom = "random"
	accessStream = "stream"
)

// inspect describes an archive by its metadata.
func inspect(ctx context.Context, blob source.Blob, a *importer.Archive, baseName string) (*inspection, error) {
	in := &inspection{Source: blob.String(), Size: blob.Size(), Access: accessRandom, Compression: a.Compression.String()}
	switch in.Reason = source.WhyStream(blob); {
	case in.Reason != "":
		in.Access = accessStream
	case a.Compression != archive.Uncompressed:
		in.Access, in.Reason = accessStream, "the whole archive is compressed by "+in.Compression
	}
	in.Format, in.IndexDigest = a.Format, a.IndexDigest
	if in.Size < 0 {
		in.Size = blob.BytesRead() // a stream that was read to its end
	}
	resolver := &archive.Resolver{Fetch: fetch(a)}
	for _, d := range a.Manifests {
		name, err := inspectName(ctx, a, resolver, d, baseName)
		if err != nil {
			return nil, err
		}
		in.Images = append(in.Images, name)
	}
	return in, nil
}

// inspectName describes one entry of index.json.
func inspectName(ctx context.Context, a *importer.Archive, resolver *archive.Resolver, d ocispec.Descriptor,
	baseName string,
) (inspectedName, error) {
	n := inspectedName{Digest: d.Digest}
	switch named, err := (archive.Selection{BaseName: baseName}).Select([]ocispec.Descriptor{d}); {
	case err != nil:
		n.Problem = cli.OneLine(err.Error())
	case len(named) > 0:
		n.Name = named[0].Name
	}
	manifests, err := resolver.PlatformManifests(ctx, d)
	if errors.Is(err, archive.ErrMissing) {
		n.Problem = cli.OneLine(err.Error())
		return n, nil
	}
	if err != nil {
		return n, err
	}
	for _, m := range manifests {
		p, err := inspectPlatform(ctx, a, m)
		if err != nil {
			return n, err
		}
		n.Platforms = append(n.Platforms, p)
	}
	return n, nil
}

// inspectPlatform describes one platform's image. Archives often lack the blobs of other platforms.
func inspectPlatform(ctx context.Context, a *importer.Archive, d archive.PlatformManifest) (inspectedPlatform, error) {
	p := inspectedPlatform{Platform: cli.OneLine(platforms.FormatAll(*d.Platform)), Digest: d.Digest}
	m, err := archive.ReadManifest(ctx, fetch(a), d.Descriptor)
	if errors.Is(err, archive.ErrMissing) {
		p.Missing = 1
		return p, nil
	}
	if err != nil {
		return p, err
	}
	p.Size = d.Size
	counted := map[digest.Digest]bool{}
	for _, d := range append(m.Layers, m.Config) {
		if counted[d.Digest] {
			continue
		}
		counted[d.Digest] = true
		p.Size += d.Size
		if !a.Has(d.Digest) {
			p.Missing++
		}
	}
	return p, nil
}

// fetch reads metadata from the archive only, even if containerd has it.
func fetch(a *importer.Archive) archive.Fetch {
	return func(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
		return a.ReadBlob(ctx, d, archive.MaxConfigBytes)
	}
}
