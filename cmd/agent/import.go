package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tarlift/tarlift/internal/importer"
)

func newImportCommand() *cobra.Command {
	var (
		flags importFlags
		input inputFlags
		show  = newChoice(progressAuto, progressPlain, progressNone)
		dry   bool
	)
	cmd := &cobra.Command{
		Use:   "import [flags] FILE|URL|-",
		Short: "Import an archive's images into this machine's containerd",
		Long: `Import an archive's images into this machine's containerd: complete or not at all, and only what is missing.

The archive is a file, an http or https URL, or standard input (-): an OCI image layout or a docker archive,
as a plain tar or compressed by gzip or zstd. From a plain tar in a file, or on a server that honours Range,
only the blobs of this machine's platform that containerd lacks are read.

With --dry-run nothing is changed: what would be moved, what would become of each name, and whether there is room
are told, and the exit code is the import's, as far as that can be known before.

Exit code 0: the images are there. 1: it failed, and nothing was changed. 2: wrong usage. 130: interrupted, and
nothing was changed.`,
		Example: `  agent import images.tar
  agent import --dry-run images.tar
  agent import --include 'registry.example/app/**' https://files.example/images.tar
  zstd -dc images.tar.zst | agent import --base-name registry.example/app -`,
		Args: cobra.ExactArgs(1),
	}
	flags.add(cmd.Flags())
	addConcurrency(cmd.Flags(), &flags.containerd)
	input.add(cmd.Flags())
	cmd.Flags().Var(&show, "progress", "how to show progress on standard error")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only tell what would be done; change nothing")
	output := addOutput(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		started := time.Now()
		request, err := flags.request()
		if err != nil {
			return err
		}
		if dry {
			return dryRun(cmd, flags.containerd, input, args[0], request, output.value)
		}
		progress := newProgress(show.value, cmd.ErrOrStderr())
		request.Progress = progress.report
		result, err := importArchive(cmd.Context(), flags.containerd, input, args[0], cmd.InOrStdin(), request)
		progress.stop()
		if err != nil {
			return err
		}
		warnUnseen(cmd.ErrOrStderr(), result)
		return printImported(cmd.OutOrStdout(), output.value, result, time.Since(started))
	}
	return cmd
}

// importArchive opens source and containerd, and imports the one into the other.
func importArchive(ctx context.Context, o importer.Options, input inputFlags, arg string, in io.Reader,
	r importer.Request,
) (importer.Result, error) {
	blob, err := input.open(ctx, arg, in)
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
	return result, aboutArchive(blob, err)
}

// imported is what -o json prints.
type imported struct {
	Images          []importer.Image `json:"images"`
	Bytes           importer.Bytes   `json:"bytes"`
	DurationSeconds float64          `json:"durationSeconds"`
	Unseen          []string         `json:"unseen,omitempty"` // names that CRI does not find
	CRI             string           `json:"cri,omitempty"`    // why that is not known
}

// maxWarned names are listed in a warning; -o json has all.
const maxWarned = 5

// warnUnseen says which images the kubelet would not find although they are there.
func warnUnseen(w io.Writer, r importer.Result) {
	switch {
	case r.CRI != "":
		fmt.Fprintf(w, "warning: whether the kubelet will find these images is not known: %s (see 'agent doctor')\n", oneLine(r.CRI))
	case len(r.NotVisible) > 0:
		list := strings.Join(r.NotVisible[:min(len(r.NotVisible), maxWarned)], ", ")
		if more := len(r.NotVisible) - maxWarned; more > 0 {
			list += fmt.Sprintf(" and %d more", more)
		}
		fmt.Fprintf(w, "warning: the images are in containerd, but the kubelet would not find %s (are they for this machine's platform? see 'agent doctor')\n", oneLine(list))
	}
}

func printImported(w io.Writer, format string, r importer.Result, took time.Duration) error {
	if format == outputJSON {
		return printJSON(w, imported{r.Images, r.Bytes, took.Round(time.Millisecond).Seconds(), r.NotVisible, r.CRI})
	}
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	printRow(t, "IMAGE", "DIGEST")
	for _, img := range r.Images {
		printRow(t, img.Name, img.Digest.String())
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print the result: %w", err)
	}
	_, err := fmt.Fprintf(w, "\n%s read, %s written, %s were there already; %s\n",
		size(r.Bytes.Read), size(r.Bytes.Written), size(r.Bytes.Skipped), took.Round(time.Millisecond*10))
	return err //nolint:wrapcheck // says what could not be written
}
