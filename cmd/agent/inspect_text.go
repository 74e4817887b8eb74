package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/importer"
)

// printInspection prints an inspection for people.
func printInspection(w io.Writer, in *inspection, o importer.Options) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	access := in.Access
	if in.Reason != "" {
		access += ": " + in.Reason
	}
	fmt.Fprintf(t, "archive:\t%s\n", oneLine(in.Source))
	fmt.Fprintf(t, "format:\t%s, compression: %s\n", in.Format, in.Compression)
	fmt.Fprintf(t, "access:\t%s\n", access)
	fmt.Fprintf(t, "size:\t%s\n", size(in.Size))
	fmt.Fprintf(t, "index digest:\t%s\n\n", in.IndexDigest)
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print the inspection: %w", err)
	}
	fmt.Fprintln(t, "IMAGE\tPLATFORM\tSIZE\tDIGEST")
	for _, img := range in.Images {
		printImage(t, img)
	}
	if in.Plan != nil {
		printPlan(t, in.Plan, o)
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
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", name, p.Platform, platformSize(p), img.Digest)
	} else {
		fmt.Fprintf(w, "%s\t\t\t%s\n", name, img.Digest)
		for _, p := range img.Platforms {
			fmt.Fprintf(w, "\t%s\t%s\t%s\n", p.Platform, platformSize(p), p.Digest)
		}
	}
	if img.Problem != "" {
		fmt.Fprintf(w, "  %s\n", img.Problem)
	}
}

func platformSize(p inspectedPlatform) string {
	switch {
	case p.Missing == 0:
		return size(p.Size)
	case p.Size == 0:
		return "not in the archive"
	case p.Missing == 1:
		return size(p.Size) + ", 1 blob is not in the archive"
	}
	return fmt.Sprintf("%s, %d blobs are not in the archive", size(p.Size), p.Missing)
}

// printPlan says for each needed blob whether it would be moved, and why.
func printPlan(w io.Writer, p *importer.Plan, o importer.Options) {
	move := 0
	for _, b := range p.Blobs {
		if !b.Present {
			move++
		}
	}
	fmt.Fprintf(w, "\nAn import into %s (namespace %s) would move %d of %d blobs, %s of %s.\n\n",
		o.Address, o.Namespace, move, len(p.Blobs), size(p.Bytes.Move), size(p.Bytes.Total))
	fmt.Fprintln(w, "PUBLISHED NAME\tPLATFORM\tMANIFEST")
	for _, img := range p.Images {
		fmt.Fprintf(w, "%s\t%s\t%s\n", img.Name, img.Platform, img.Manifest)
	}
	fmt.Fprintln(w, "\nBLOB\tKIND\tSIZE\tACTION")
	blobs := slices.Clone(p.Blobs)
	slices.SortStableFunc(blobs, func(a, b importer.PlannedBlob) int { return int(b.Size - a.Size) })
	for _, b := range blobs {
		action := "move: containerd lacks it"
		if b.Present {
			action = "keep: it is there"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", b.Digest, blobKind(b.Descriptor), size(b.Size), action)
	}
}

// blobKind names what a media type says, for OCI and docker alike.
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
