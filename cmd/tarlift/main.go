// Tarlift is what a person types at a desk: it makes the archives that agents import.
package main

import (
	"context"
	"errors"
	"io"
	"os"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/tarlift/tarlift/internal/bundle"
	"github.com/tarlift/tarlift/internal/cli"
	"github.com/tarlift/tarlift/internal/reason"
)

// version is set when tarlift is built: -ldflags "-X main.version=…".
var version = "unknown"

func main() {
	os.Exit(run(cli.SignalContext(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run executes one command line and returns the exit code.
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	return cli.Run(ctx, newRootCommand(), failures, args, in, out, errOut)
}

func newRootCommand() *cobra.Command {
	return cli.NewRoot("tarlift", "Make the archives that agents import",
		newBundleCommand(),
		newExportCommand(),
		cli.NewVersionCommand(version),
	)
}

// reasonOutput is the reason of an archive that cannot be written where it should be.
const reasonOutput = "OutputFailed"

var failures = cli.Failures{Classify: classify, Remedies: map[string]string{
	reason.Truncated:          "get the archive again: this copy is incomplete",
	reason.DigestMismatch:     "get the archive again: this one is damaged",
	reason.ContentIncomplete:  "choose other platforms with --platform, leave the image out, or get the image with all of its blobs",
	reason.NoMatchingPlatform: "choose other platforms with --platform, or leave the image out",
	reason.InsufficientDisk:   "free space there, or write elsewhere",
	reason.SourceDenied:       "see --help for credentials, and check the file's owner and mode",
	reason.RuntimeUnavailable: "is containerd running, is --address its socket, and may you write to the socket?",
	reasonOutput:              "may you write there?",
}}

// outputError is a failure of the file that is written.
type outputError struct{ error }

func (e outputError) Unwrap() error { return e.error }

func classify(err error) string {
	name := cli.Classify(err)
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return reason.InsufficientDisk
	case errors.Is(err, bundle.ErrNoPlatform):
		return reason.NoMatchingPlatform
	case name == reason.ImportFailed && errors.As(err, new(outputError)):
		return reasonOutput
	}
	return name
}
