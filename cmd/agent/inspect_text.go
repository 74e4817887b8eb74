package main

import (
	"cmp"
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
	printRow(t, "archive:", in.Source)
	printRow(t, "format:", in.Format+", compression: "+in.Compression)
	printRow(t, "access:", access)
	printRow(t, "size:", size(in.Size))
	printRow(t, "index digest:", in.IndexDigest.String())
	fmt.Fprintln(t)
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print the inspection: %w", err)
	}
	printRow(t, "IMAGE", "PLATFORM", "SIZE", "DIGEST")
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
		printRow(w, name, p.Platform, platformSize(p), img.Digest.String())
	} else {
		printRow(w, name, "", "", img.Digest.String())
		for _, p := range img.Platforms {
			printRow(w, "", p.Platform, platformSize(p), p.Digest.String())
		}
	}
	if img.Problem != "" {
		printRow(w, "  "+img.Problem)
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

// printBlobs says for each needed blob whether it would be moved, and why.
func printBlobs(w io.Writer, p *importer.Plan) {
	fmt.Fprintln(w)
	printRow(w, "BLOB", "KIND", "SIZE", "ACTION")
	blobs := slices.Clone(p.Blobs)
	slices.SortStableFunc(blobs, func(a, b importer.PlannedBlob) int { return cmp.Compare(b.Size, a.Size) })
	for _, b := range blobs {
		action := "move: containerd lacks it"
		if b.Present {
			action = "keep: it is there"
		}
		printRow(w, b.Digest.String(), blobKind(b.Descriptor), size(b.Size), action)
	}
}

// printDisks says what an import would need of each file system, and what there is.
func printDisks(w io.Writer, disks []*importer.Disk) {
	if len(disks) == 0 {
		return
	}
	fmt.Fprintln(w)
	printRow(w, "WRITES TO", "NEEDS", "FREE", "RESERVED")
	for _, d := range disks {
		needs := size(d.Blobs)
		if d.Unpacked > 0 {
			needs += " and about " + size(d.Unpacked) + " of files"
		}
		roots := strings.Join(d.Roots, ", ")
		if d.Unknown != "" {
			printRow(w, roots, needs, "unknown: "+d.Unknown)
			continue
		}
		printRow(w, roots, needs, size(d.Free)+" of "+size(d.Total), size(d.Reserve))
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
