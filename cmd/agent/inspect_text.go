package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/cli"
	"github.com/tarlift/tarlift/internal/importer"
)

// printInspection prints an inspection for people.
func printInspection(w io.Writer, in *inspection, o importer.Options) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	access := in.Access
	if in.Reason != "" {
		access += ": " + in.Reason
	}
	cli.PrintRow(t, "archive:", in.Source)
	cli.PrintRow(t, "format:", in.Format+", compression: "+in.Compression)
	cli.PrintRow(t, "access:", access)
	cli.PrintRow(t, "size:", cli.Size(in.Size))
	cli.PrintRow(t, "index digest:", in.IndexDigest.String())
	fmt.Fprintln(t)
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print the inspection: %w", err)
	}
	cli.PrintRow(t, "IMAGE", "PLATFORM", "SIZE", "DIGEST")
	for _, img := range in.Images {
		printImage(t, img)
	}
	if in.Plan != nil {
		fmt.Fprintln(t)
		printPlanned(t, in.DryRun, o)
		printBlobs(t, in.Plan)
		printDisks(t, in.Disks)
		if in.WouldFail != nil {
			fmt.Fprintf(t, "\nAn import would fail: %s\n", in.WouldFail.Message)
		}
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print the inspection: %w", err)
	}
	return nil
}

// printImage prints a line for the image and one for each of its platforms.
func printImage(w io.Writer, img inspectedName) {
	name := img.Name
	if name == "" {
		name = "(no name)"
	}
	if len(img.Platforms) == 1 {
		p := img.Platforms[0]
		cli.PrintRow(w, name, p.Platform, platformSize(p), img.Digest.String())
	} else {
		cli.PrintRow(w, name, "", "", img.Digest.String())
		for _, p := range img.Platforms {
			cli.PrintRow(w, "", p.Platform, platformSize(p), p.Digest.String())
		}
	}
	if img.Problem != "" {
		cli.PrintRow(w, "  "+img.Problem)
	}
}

func platformSize(p inspectedPlatform) string {
	switch {
	case p.Missing == 0:
		return cli.Size(p.Size)
	case p.Size == 0:
		return "not in the archive"
	case p.Missing == 1:
		return cli.Size(p.Size) + ", 1 blob is not in the archive"
	}
	return fmt.Sprintf("%s, %d blobs are not in the archive", cli.Size(p.Size), p.Missing)
}

// printBlobs prints for each needed blob whether an import would transfer it.
func printBlobs(w io.Writer, p *importer.Plan) {
	fmt.Fprintln(w)
	cli.PrintRow(w, "BLOB", "KIND", "SIZE", "ACTION")
	blobs := slices.Clone(p.Blobs)
	slices.SortStableFunc(blobs, func(a, b importer.PlannedBlob) int { return cmp.Compare(b.Size, a.Size) })
	for _, b := range blobs {
		action := "transfer"
		if b.Present {
			action = "present"
		}
		cli.PrintRow(w, b.Digest.String(), blobKind(b.Descriptor), cli.Size(b.Size), action)
	}
}

// printDisks prints what an import would need of each file system, and what is free.
func printDisks(w io.Writer, disks []*importer.Disk) {
	if len(disks) == 0 {
		return
	}
	fmt.Fprintln(w)
	cli.PrintRow(w, "WRITES TO", "NEEDS", "FREE", "RESERVED")
	for _, d := range disks {
		needs := cli.Size(d.Blobs)
		if d.Unpacked > 0 {
			needs += " and about " + cli.Size(d.Unpacked) + " of files"
		}
		roots := strings.Join(d.Roots, ", ")
		if d.Unknown != "" {
			cli.PrintRow(w, roots, needs, "unknown: "+d.Unknown)
			continue
		}
		cli.PrintRow(w, roots, needs, cli.Size(d.Free)+" of "+cli.Size(d.Total), cli.Size(d.Reserve))
	}
}

// blobKind returns the kind of blob that a media type of OCI or docker stands for.
func blobKind(d ocispec.Descriptor) string {
	switch {
	case strings.Contains(d.MediaType, "manifest.list"), strings.Contains(d.MediaType, "image.index"):
		return "index"
	case strings.Contains(d.MediaType, "manifest"):
		return "manifest"
	case strings.Contains(d.MediaType, "config"), strings.Contains(d.MediaType, "container.image"):
		return "config"
	}
	return "layer"
}
