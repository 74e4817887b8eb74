package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/bundle"
	"github.com/tarlift/tarlift/internal/cli"
	"github.com/tarlift/tarlift/internal/importer"
)

func newBundleCommand() *cobra.Command {
	var (
		flags     writeFlags
		input     cli.Input
		selection cli.Selection
	)
	cmd := &cobra.Command{
		Use:   "bundle [flags] -o FILE INPUT...",
		Short: "Write images from archives, layouts and containerd into one archive",
		Long: `Write images into one archive that any node can import: an OCI layout in a tar, which docker, podman, skopeo, crane
and ctr read too.

An INPUT is one of:
  FILE, URL or -      an archive as for 'agent import'; - is standard input
  DIRECTORY           an OCI layout
  containerd:NAME     an image of this machine's containerd; NAME may be a glob with * and ** as for --include

Without --platform, the archive gets every platform whose blobs are all in the inputs. An image index keeps its digest
even if some of its platforms are left out. The same images always give the same bytes.

Beside FILE, the command writes FILE.sha256 for 'sha256sum --check', and FILE.json with the digests of the archive and
of its index.json, and the images. With -o - it writes the archive to standard output, and no other file.

Exit codes: 0: the archive is complete. 1: failed. 2: the command line is wrong. 130: interrupted. With any code but 0,
an earlier FILE stays as it was.`,
		Example: `  tarlift bundle -o bundle.tar app.tar https://files.example/db.tar.gz layout/
  tarlift bundle -o bundle.tar --platform linux/amd64 --platform linux/arm64 --rename docker.io/=mirror.example/ images.tar
  tarlift bundle -o cluster.tar 'containerd:registry.k8s.io/**' containerd:registry.example/app:1.2`,
		Args: cobra.MinimumNArgs(1),
	}
	flags.add(cmd.Flags())
	selection.Add(cmd.Flags())
	input.Add(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		selected, err := selection.Parse()
		if err != nil {
			return err
		}
		in, err := newInputs(input, flags.containerd, args, cmd.InOrStdin())
		if err != nil {
			return err
		}
		return flags.write(cmd, selected, in)
	}
	return cmd
}

func newExportCommand() *cobra.Command {
	var flags writeFlags
	cmd := &cobra.Command{
		Use:   "export [flags] -o FILE NAME...",
		Short: "Write images of this machine's containerd into an archive",
		Long: `Write images of this machine's containerd into one archive, under the names that they have there. A NAME may be a
glob with * and ** as for 'tarlift bundle --include'. 'tarlift bundle -o FILE containerd:NAME' does the same.

The files beside FILE and the exit codes are those of 'tarlift bundle'.`,
		Example: `  tarlift export -o app.tar registry.example/app:1.2
  tarlift export -o - 'registry.example/**' | ssh node agent import -`,
		Args: cobra.MinimumNArgs(1),
	}
	flags.add(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		for i, ref := range args {
			args[i] = containerdPrefix + ref
		}
		in, err := newInputs(cli.Input{}, flags.containerd, args, cmd.InOrStdin())
		if err != nil {
			return err
		}
		return flags.write(cmd, archive.Selection{}, in)
	}
	return cmd
}

// writeFlags are the flags of commands that write archives. Here -o is the archive, so that --output has no short form.
type writeFlags struct {
	file       string
	output     *cli.Choice
	progress   *cli.Choice
	platforms  []string
	containerd importer.Options
}

func (f *writeFlags) add(flags *pflag.FlagSet) {
	flags.StringVarP(&f.file, "file", "o", "", "`file` to write the archive to; - for standard output")
	f.output = cli.AddOutput(flags, "")
	f.progress = cli.AddProgress(flags)
	flags.StringArrayVar(&f.platforms, "platform", nil,
		"`platform` to take, such as linux/arm64 (repeatable; default: all whose blobs are in the inputs)")
	cli.AddSocket(flags, &f.containerd)
}

// check checks the flags' values before anything is opened.
func (f *writeFlags) check(out io.Writer) ([]ocispec.Platform, error) {
	switch {
	case f.file == "":
		return nil, cli.Usagef("-o is missing: name the file to write, or - for standard output")
	case f.file == cli.OutputJSON || f.file == cli.OutputText:
		return nil, cli.Usagef("-o names the archive here: use --output %[1]s for the format, or -o ./%[1]s for a file of that name", f.file)
	case f.file == "-" && f.output.Value == cli.OutputJSON:
		return nil, cli.Usagef("--output json and -o - both write to standard output")
	case f.file == "-" && cli.IsTerminal(out):
		return nil, cli.Usagef("standard output is a terminal: name a file with -o")
	}
	var list []ocispec.Platform
	for _, s := range f.platforms {
		p, err := platforms.Parse(s)
		if err != nil {
			return nil, cli.Usagef("--platform %q: %w", s, err)
		}
		list = append(list, platforms.Normalize(p))
	}
	return list, nil
}

// write writes the images of the inputs, and prints the result.
func (f *writeFlags) write(cmd *cobra.Command, selection archive.Selection, in *inputs) error {
	platforms, err := f.check(cmd.OutOrStdout())
	if err != nil {
		return err
	}
	to, err := openOutput(f.file, cmd.OutOrStdout())
	if err != nil {
		return err
	}
	defer to.discard()
	defer in.close()
	progress := cli.NewProgress(f.progress.Value, cmd.ErrOrStderr())
	report := func(phase importer.Phase, done, total int64) {
		progress.Report(importer.Progress{Phase: phase, Done: done, Total: max(total, 0)})
	}
	r, err := writeBundle(cmd.Context(), in, bundle.Options{Selection: selection, Platforms: platforms}, to, report)
	progress.Stop()
	if err != nil {
		return err
	}
	if err := to.commit(r); err != nil {
		return err
	}
	return f.print(cmd, r)
}

func writeBundle(ctx context.Context, in *inputs, o bundle.Options, to *output, report reporter) (result, error) {
	list, err := in.open(ctx, to.dir, report)
	if err != nil {
		return result{}, err
	}
	made, err := bundle.Make(ctx, list, o)
	if err != nil {
		return result{}, err
	}
	if err := to.reserve(made.Size); err != nil {
		return result{}, err
	}
	d, err := made.Write(ctx, io.Writer(to), func(n int64) { report(cli.PhaseWriting, n, made.Size) })
	return result{File: to.base(), Digest: d, Size: made.Size, IndexDigest: made.IndexDigest, Images: made.Images}, err
}

// result is what --output json prints, and what FILE.json has.
type result struct {
	File        string         `json:"file"` // without directories; empty for standard output
	Digest      digest.Digest  `json:"digest"`
	Size        int64          `json:"size"` // in bytes
	IndexDigest digest.Digest  `json:"indexDigest"`
	Images      []bundle.Image `json:"images"`
}

// print prints the result: on standard error if the archive is on standard output.
func (f *writeFlags) print(cmd *cobra.Command, r result) error {
	w := cmd.OutOrStdout()
	if f.output.Value == cli.OutputJSON {
		return cli.PrintJSON(w, r)
	}
	if f.file == "-" {
		w = cmd.ErrOrStderr()
	}
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	cli.PrintRow(t, "IMAGE", "PLATFORMS", "DIGEST")
	for _, img := range r.Images {
		list := strings.Join(img.Platforms, ", ")
		if len(img.LeftOut) > 0 {
			list += fmt.Sprintf(" (of %d)", len(img.Platforms)+len(img.LeftOut))
		}
		cli.PrintRow(t, img.Name, list, img.Digest.String())
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print the result: %w", err)
	}
	name := r.File
	if name == "" {
		name = "standard output"
	}
	_, err := fmt.Fprintf(w, "\n%s: %s\ndigest: %s\nindex digest: %s\n", cli.OneLine(name), cli.Size(r.Size), r.Digest, r.IndexDigest)
	return err //nolint:wrapcheck // says what could not be written
}

// reporter gets the number of bytes that are done, and of all bytes: -1 while that is unknown.
type reporter func(phase importer.Phase, done, total int64)
