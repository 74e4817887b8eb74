package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/tarlift/tarlift/internal/importer"
)

// rehearsed is what -o json prints of a dry run.
type rehearsed struct {
	importer.DryRun
	Error *failure `json:"error,omitempty"`
}

// dryRun tells what an import would do. It fails where the import would.
func dryRun(cmd *cobra.Command, o importer.Options, input inputFlags, arg string, r importer.Request, format string) error {
	d, err := rehearse(cmd.Context(), o, input, arg, cmd.InOrStdin(), r)
	if d.Plan == nil {
		return err
	}
	if err == nil {
		err = d.Refusal
	}
	if format == outputText {
		if printErr := printDryRun(cmd.OutOrStdout(), d, o); printErr != nil {
			return printErr
		}
		if err == nil && r.Digest != "" {
			fmt.Fprintln(cmd.ErrOrStderr(), "note: --digest is looked at when the archive is read in full, by the import")
		}
		return err
	}
	out := rehearsed{DryRun: d}
	if err != nil {
		f, _ := explain(cmd, err)
		out.Error, err = &f, toldError{err}
	}
	if printErr := printJSON(cmd.OutOrStdout(), out); printErr != nil {
		return printErr
	}
	return err
}

func rehearse(ctx context.Context, o importer.Options, input inputFlags, arg string, in io.Reader, r importer.Request) (importer.DryRun, error) {
	blob, err := input.open(ctx, arg, in)
	if err != nil {
		return importer.DryRun{}, err
	}
	defer blob.Close()
	imp, err := importer.New(o)
	if err != nil {
		return importer.DryRun{}, err
	}
	defer imp.Close()
	a, err := importer.Open(ctx, blob)
	if err != nil {
		return importer.DryRun{}, aboutArchive(blob, err)
	}
	d, err := imp.DryRun(ctx, a, r)
	return d, aboutArchive(blob, err)
}

func printDryRun(w io.Writer, d importer.DryRun, o importer.Options) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	printPlanned(t, d, o)
	printDisks(t, d.Disks)
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print the plan: %w", err)
	}
	return nil
}

// printPlanned prints a line for each image that an import would publish, and the sum.
func printPlanned(w io.Writer, d importer.DryRun, o importer.Options) {
	names := map[string]importer.PlannedName{}
	for _, n := range d.Names {
		names[n.Name] = n
	}
	printRow(w, "IMAGE", "PLATFORM", "SIZE", "PRESENT", "TO MOVE", "NAME")
	for k, sum := range d.Plan.ImageBytes() {
		img := d.Plan.Images[k]
		printRow(w, img.Name, img.Platform, size(sum.Total), size(sum.Present), size(sum.Move), nameChange(names[img.Name]))
	}
	move := 0
	for _, b := range d.Plan.Blobs {
		if !b.Present {
			move++
		}
	}
	fmt.Fprintf(w, "\nAn import into %s (namespace %s) would move %d of %d blobs, %s of %s.\n",
		oneLine(o.Address), oneLine(o.Namespace), move, len(d.Plan.Blobs), size(d.Plan.Bytes.Move), size(d.Plan.Bytes.Total))
}

// nameChange is a cell that says what would become of a name.
func nameChange(n importer.PlannedName) string {
	switch n.Change {
	case importer.NameKept:
		return "is there"
	case importer.NameMoved:
		return "moves from " + short(n.Now)
	case importer.NameConflict:
		return "conflict: stands for " + short(n.Now)
	}
	return string(n.Change)
}

// shortDigest is enough of a digest's text to tell a few apart.
const shortDigest = len("sha256:") + 12

func short(d digest.Digest) string { return d.String()[:min(shortDigest, len(d))] }
