package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/bundle"
)

func newBundleCommand() *cobra.Command {
	var (
		flags     bundleFlags
		input     inputFlags
		selection archive.Selection
		rename    []string
	)
	cmd := &cobra.Command{
		Use:   "bundle [flags] -o FILE INPUT...",
		Short: "Write images from archives, layouts and containerd into one archive",
		Long: `Write images into one archive that any node can import: an OCI layout in a tar, which docker, podman, skopeo, crane
and ctr read too.

An input is an archive as for import (a file, an http or https URL, or - for standard input), a directory with an OCI
layout, or images of this machine's containerd: containerd:NAME, or containerd:GLOB with * and ** as for --include.

Without --platform all platforms are taken that are in the inputs whole. An index keeps its digest where some of its
platforms are left out. The same images give the same bytes, always.

Beside FILE, FILE.sha256 is written for sha256sum --check, and FILE.json, which names the archive's digest, its index's,
and the images. With -o - the archive goes to standard output, and nothing is written beside it.

Exit code 0: the archive is there. 1: it failed, and what was there before is there still. 2: wrong usage. 130:
interrupted, and what was there before is there still.`,
		Example: `  agent bundle -o bundle.tar app.tar https://files.example/db.tar.gz layout/
  agent bundle -o bundle.tar --platform linux/amd64 --platform linux/arm64 --rename docker.io/=mirror.example/ images.tar
  agent bundle -o cluster.tar 'containerd:registry.k8s.io/**' containerd:registry.example/app:1.2`,
		Args:        cobra.MinimumNArgs(1),
		Annotations: map[string]string{writesArchive: ""},
	}
	flags.add(cmd.Flags())
	addSelection(cmd.Flags(), &selection, &rename)
	input.add(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := parseSelection(&selection, rename); err != nil {
			return err
		}
		in, err := newInputs(input, flags.containerd, args, cmd.InOrStdin())
		if err != nil {
			return err
		}
		return flags.write(cmd, selection, in)
	}
	return cmd
}

func newExportCommand() *cobra.Command {
	var flags bundleFlags
	cmd := &cobra.Command{
		Use:   "export [flags] -o FILE NAME...",
		Short: "Write images of this machine's containerd into an archive",
		Long: `Write images of this machine's containerd into one archive, under their names there: what 'agent bundle' writes of
containerd:NAME. A NAME may be a glob with * and ** as for 'agent import --include'.

Exit codes and files beside FILE are those of 'agent bundle'.`,
		Example: `  agent export -o app.tar registry.example/app:1.2
  agent export -o - 'registry.example/**' | ssh node agent import -`,
		Args:        cobra.MinimumNArgs(1),
		Annotations: map[string]string{writesArchive: ""},
	}
	flags.add(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		for i, ref := range args {
			args[i] = containerdPrefix + ref
		}
		in, err := newInputs(inputFlags{}, flags.containerd, args, cmd.InOrStdin())
		if err != nil {
			return err
		}
		return flags.write(cmd, archive.Selection{}, in)
	}
	return cmd
}

// write makes the archive of what in opens, and tells about it.
func (f *bundleFlags) write(cmd *cobra.Command, selection archive.Selection, in *inputs) (err error) {
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
	show := newProgress(f.show.value, cmd.ErrOrStderr())
	made, digests, err := writeBundle(cmd.Context(), in, bundle.Options{Selection: selection, Platforms: platforms}, to, newMeter(show.report))
	show.stop()
	if err != nil {
		return explainWriting(err)
	}
	result := bundled{File: to.base(), Digest: digests, Size: made.Size, IndexDigest: made.IndexDigest, Images: made.Images}
	if err := to.commit(result); err != nil {
		return explainWriting(err)
	}
	return printBundled(cmd, f, result)
}

func writeBundle(ctx context.Context, in *inputs, o bundle.Options, to *output, m *meter) (*bundle.Bundle, string, error) {
	list, err := in.open(ctx, to.dir, m)
	if err != nil {
		return nil, "", err
	}
	made, err := bundle.Make(ctx, list, o)
	if err != nil {
		return nil, "", err
	}
	if err := to.reserve(made.Size); err != nil {
		return nil, "", err
	}
	d, err := made.Write(ctx, io.Writer(to), func(n int64) { m.report(phaseWriting, n, made.Size) })
	return made, d.String(), err
}
