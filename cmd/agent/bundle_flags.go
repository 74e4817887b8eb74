package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/tarlift/tarlift/internal/bundle"
	"github.com/tarlift/tarlift/internal/importer"
)

// writesArchive marks commands that write an archive: what to do about their failures is another thing.
const writesArchive = "writes-archive"

// bundleFlags are what the commands that write archives have in common. Here -o is the archive; what is printed has only
// its long name.
type bundleFlags struct {
	file       string
	output     choice
	show       choice
	platforms  []string
	containerd importer.Options
}

func (f *bundleFlags) add(flags *pflag.FlagSet) {
	f.output = newChoice(outputText, outputJSON)
	f.show = newChoice(progressAuto, progressPlain, progressNone)
	flags.StringVarP(&f.file, "file", "o", "", "`file` to write the archive to, - for standard output")
	flags.Var(&f.output, outputFlag, "what to print on standard output")
	flags.Var(&f.show, "progress", "how to show progress on standard error")
	flags.StringArrayVar(&f.platforms, "platform", nil, "`platform` to take, such as linux/arm64 (repeatable; default: all that are there whole)")
	addSocket(flags, &f.containerd)
}

// check is what can be said before anything is opened.
func (f *bundleFlags) check(out io.Writer) ([]ocispec.Platform, error) {
	switch {
	case f.file == "":
		return nil, usagef("-o is missing: the file to write, or - for standard output")
	case f.file == outputJSON || f.file == outputText:
		return nil, usagef("-o names the archive here: for what is printed say --output %[1]s, or -o ./%[1]s for a file of that name", f.file)
	case f.file == "-" && f.output.value == outputJSON:
		return nil, usagef("--output json and -o - both want standard output")
	case f.file == "-" && isTerminal(out):
		return nil, usagef("standard output is a terminal; name a file with -o")
	}
	var list []ocispec.Platform
	for _, s := range f.platforms {
		p, err := platforms.Parse(s)
		if err != nil {
			return nil, usagef("--platform %q: %w", s, err)
		}
		list = append(list, platforms.Normalize(p))
	}
	return list, nil
}

// bundled is what --output json prints, and what FILE.json has.
type bundled struct {
	File        string         `json:"file"` // without directories; empty on standard output
	Digest      string         `json:"digest"`
	Size        int64          `json:"size"`
	IndexDigest digest.Digest  `json:"indexDigest"`
	Images      []bundle.Image `json:"images"`
}

// printBundled tells what was written; beside an archive on standard output, on standard error.
func printBundled(cmd *cobra.Command, f *bundleFlags, r bundled) error {
	w := cmd.OutOrStdout()
	if f.output.value == outputJSON {
		return printJSON(w, r)
	}
	if f.file == "-" {
		w = cmd.ErrOrStderr()
	}
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	printRow(t, "IMAGE", "PLATFORMS", "DIGEST")
	for _, img := range r.Images {
		list := strings.Join(img.Platforms, ", ")
		if len(img.LeftOut) > 0 {
			list += fmt.Sprintf(" (of %d)", len(img.Platforms)+len(img.LeftOut))
		}
		printRow(t, img.Name, list, img.Digest.String())
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print the result: %w", err)
	}
	name := r.File
	if name == "" {
		name = "standard output"
	}
	_, err := fmt.Fprintf(w, "\n%s: %s\ndigest: %s\nindex digest: %s\n", oneLine(name), size(r.Size), r.Digest, r.IndexDigest)
	return err //nolint:wrapcheck // says what could not be written
}

// Phases of writing an archive.
const (
	phaseReading importer.Phase = "reading" // a stream into a file
	phaseWriting importer.Phase = "writing"
)

// meter reports progress a few times a second, and at the end.
type meter struct {
	to   func(importer.Progress)
	last time.Time
}

// meterInterval is that of an import.
const meterInterval = 100 * time.Millisecond

func newMeter(to func(importer.Progress)) *meter { return &meter{to: to} }

func (m *meter) report(phase importer.Phase, done, total int64) {
	if now := time.Now(); now.Sub(m.last) >= meterInterval || done == total {
		m.last = now
		m.to(importer.Progress{Phase: phase, Done: done, Total: max(total, 0)})
	}
}

// outputError is a failure of the file that is written.
type outputError struct{ error }

func (e outputError) Unwrap() error { return e.error }

// identified is an error that is also another by errors.Is.
type identified struct {
	error
	also error
}

func (e identified) Unwrap() []error { return []error{e.error, e.also} }

// explainWriting gives errors of writing archives the identities that reasons are found by.
func explainWriting(err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return identified{err, importer.ErrInsufficientDisk}
	case errors.Is(err, bundle.ErrNoPlatform):
		return identified{err, importer.ErrNoMatchingPlatform}
	}
	return err
}
