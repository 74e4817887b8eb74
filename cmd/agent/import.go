package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tarlift/tarlift/internal/cli"
	"github.com/tarlift/tarlift/internal/importer"
)

func newImportCommand() *cobra.Command {
	var (
		flags importFlags
		input cli.Input
		dry   bool
	)
	cmd := &cobra.Command{
		Use:   "import [flags] FILE|URL|-",
		Short: "Import an archive's images into this machine's containerd",
		Long: `Import an archive's images into this machine's containerd. Each image is imported completely or not at all, and
only missing blobs are transferred.

The archive is a file, an http or https URL, or standard input (-). It is an OCI image layout or a docker archive, as
a plain tar or compressed with gzip or zstd. If it is a plain tar in a file, or on a server that supports Range
requests, the command reads only the blobs of this machine's platform that containerd lacks.

With --dry-run the command changes nothing. It prints what the import would transfer, what it would do with each name,
and whether there is enough space. It fails where the import would, as far as that is known before the import.

Exit codes: 0: the images are imported. 1: failed. 2: the command line is wrong. 130: interrupted.`,
		Example: `  agent import images.tar
  agent import --dry-run images.tar
  agent import --include 'registry.example/app/**' https://files.example/images.tar
  zstd -dc images.tar.zst | agent import --base-name registry.example/app -`,
		Args: cobra.ExactArgs(1),
	}
	flags.add(cmd.Flags())
	addConcurrency(cmd.Flags(), &flags.containerd)
	input.Add(cmd.Flags())
	show := cli.AddProgress(cmd.Flags())
	cmd.Flags().BoolVar(&dry, "dry-run", false, "print what the import would do; change nothing")
	output := cli.AddOutput(cmd.Flags(), "o")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		started := time.Now()
		request, err := flags.request()
		if err != nil {
			return err
		}
		if dry {
			return dryRun(cmd, flags.containerd, input, args[0], request, output.Value)
		}
		progress := cli.NewProgress(show.Value, cmd.ErrOrStderr())
		request.Progress = progress.Report
		result, err := importArchive(cmd.Context(), flags.containerd, input, args[0], cmd.InOrStdin(), request)
		progress.Stop()
		if err != nil {
			return err
		}
		warnNotVisible(cmd.ErrOrStderr(), result)
		return printImported(cmd.OutOrStdout(), output.Value, result, time.Since(started))
	}
	return cmd
}

// importArchive opens the archive and containerd, and imports.
func importArchive(ctx context.Context, o importer.Options, input cli.Input, arg string, in io.Reader,
	r importer.Request,
) (importer.Result, error) {
	boundMemory()
	blob, err := input.Open(ctx, arg, in)
	if err != nil {
		return importer.Result{}, err
	}
	defer blob.Close()
	imp, err := importer.New(o)
	if err != nil {
		return importer.Result{}, err
	}
	defer imp.Close()
	result, err := imp.Import(ctx, blob, r)
	return result, cli.NameArchive(blob, err)
}

// imported is what -o json prints.
type imported struct {
	Images          []importer.Image `json:"images"`
	Bytes           importer.Bytes   `json:"bytes"`
	DurationSeconds float64          `json:"durationSeconds"`
	NotVisible      []string         `json:"notVisible,omitempty"` // names that CRI does not find
	CRI             string           `json:"cri,omitempty"`        // why NotVisible is not known
}

// warnNotVisible warns of images that the kubelet would not find although containerd has them.
func warnNotVisible(w io.Writer, r importer.Result) {
	switch {
	case r.CRI != "":
		fmt.Fprintf(w, "warning: cannot check whether the kubelet finds these images: %s (see 'agent doctor')\n", cli.OneLine(r.CRI))
	case len(r.NotVisible) > 0:
		fmt.Fprintf(w, "warning: the images are in containerd, but the kubelet does not find %s (are they for this machine's platform? "+
			"see 'agent doctor')\n", cli.OneLine(cli.List(r.NotVisible)))
	}
}

func printImported(w io.Writer, format string, r importer.Result, took time.Duration) error {
	if format == cli.OutputJSON {
		return cli.PrintJSON(w, imported{r.Images, r.Bytes, took.Round(time.Millisecond).Seconds(), r.NotVisible, r.CRI})
	}
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	cli.PrintRow(t, "IMAGE", "DIGEST")
	for _, img := range r.Images {
		cli.PrintRow(t, img.Name, img.Digest.String())
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print the result: %w", err)
	}
	_, err := fmt.Fprintf(w, "\n%s read, %s written, %s already present; %s\n",
		cli.Size(r.Bytes.Read), cli.Size(r.Bytes.Written), cli.Size(r.Bytes.Skipped), took.Round(time.Millisecond*10))
	return err //nolint:wrapcheck // says what could not be written
}
