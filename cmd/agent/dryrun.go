package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/tarlift/tarlift/internal/cli"
	"github.com/tarlift/tarlift/internal/importer"
)

// dryRunResult is what -o json prints of a dry run.
type dryRunResult struct {
	importer.DryRun
	Error *cli.Failure `json:"error,omitempty"`
}

// dryRun prints what an import would do, and fails where the import would.
func dryRun(cmd *cobra.Command, o importer.Options, input cli.Input, arg string, r importer.Request, format string) error {
	d, err := planImport(cmd.Context(), o, input, arg, cmd.InOrStdin(), r)
	if d.Plan == nil {
		return err
	}
	if err == nil {
		err = d.Refusal
	}
	if format == cli.OutputText {
		if printErr := printDryRun(cmd.OutOrStdout(), d, o); printErr != nil {
			return printErr
		}
		if err == nil && r.Digest != "" {
			fmt.Fprintln(cmd.ErrOrStderr(), "note: only the import checks --digest, since it reads the whole archive")
		}
		return err
	}
	out := dryRunResult{DryRun: d}
	if err != nil {
		f, _ := failures.Explain(cmd.Context(), err)
		out.Error, err = &f, cli.Printed(err)
	}
	if printErr := cli.PrintJSON(cmd.OutOrStdout(), out); printErr != nil {
		return printErr
	}
	return err
}

func planImport(ctx context.Context, o importer.Options, input cli.Input, arg string, in io.Reader,
	r importer.Request,
) (importer.DryRun, error) {
	blob, err := input.Open(ctx, arg, in)
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
		return importer.DryRun{}, cli.NameArchive(blob, err)
	}
	d, err := imp.DryRun(ctx, a, r)
	return d, cli.NameArchive(blob, err)
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
	cli.PrintRow(w, "IMAGE", "PLATFORM", "SIZE", "PRESENT", "TO TRANSFER", "NAME")
	for k, sum := range d.Plan.ImageBytes() {
		img := d.Plan.Images[k]
		cli.PrintRow(w, img.Name, img.Platform, cli.Size(sum.Total), cli.Size(sum.Present), cli.Size(sum.Move), nameChange(names[img.Name]))
	}
	move := 0
	for _, b := range d.Plan.Blobs {
		if !b.Present {
			move++
		}
	}
	fmt.Fprintf(w, "\nAn import into %s (namespace %s) would transfer %d of %d blobs, %s of %s.\n",
		cli.OneLine(o.Address), cli.OneLine(o.Namespace), move, len(d.Plan.Blobs), cli.Size(d.Plan.Bytes.Move), cli.Size(d.Plan.Bytes.Total))
}

// nameChange says what an import would do with a name.
func nameChange(n importer.PlannedName) string {
	switch n.Change {
	case importer.NameKept:
		return "present"
	case importer.NameMoved:
		return "moves from " + short(n.Now)
	case importer.NameConflict:
		return "conflict: now " + short(n.Now)
	}
	return string(n.Change)
}

// shortDigest is the length of a digest's text that is enough to tell a few apart.
const shortDigest = len("sha256:") + 12

func short(d digest.Digest) string { return d.String()[:min(shortDigest, len(d))] }
