// The agent puts the images of archives into containerd: as a node's agent in a cluster, or from the command line
// without a cluster.
package main

import (
	"context"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/tarlift/tarlift/internal/cli"
	"github.com/tarlift/tarlift/internal/reason"
)

// version is set when the agent is built: -ldflags "-X main.version=…".
var version = "unknown"

func main() {
	os.Exit(run(cli.SignalContext(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run executes one command line and returns the exit code.
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	return cli.Run(ctx, newRootCommand(), failures, args, in, out, errOut)
}

func newRootCommand() *cobra.Command {
	return cli.NewRoot("agent", "Put the images of archives into containerd, without a registry",
		newImportCommand(),
		newInspectCommand(),
		newNodeCommand(),
		newControllerCommand(),
		newDoctorCommand(),
		cli.NewVersionCommand(version),
	)
}

var failures = cli.Failures{Classify: cli.Classify, Remedies: map[string]string{
	reason.Truncated:          "get the archive again: this copy is incomplete",
	reason.DigestMismatch:     "get the archive again: this one is damaged, or another one than expected",
	reason.ContentIncomplete:  "write the archive again, with all blobs of this platform",
	reason.NoMatchingPlatform: "write the archive for this platform, or choose another platform with --platform",
	reason.NameConflict:       "remove that image, choose other images with --include, or move the name with --conflict=replace",
	reason.InsufficientDisk:   "free space there, or reserve less with --disk-reserve",
	reason.SourceDenied:       "see --help for credentials, and check the file's owner and mode",
	reason.RuntimeUnavailable: "is containerd running, is --address its socket, and may you write to the socket? 'agent doctor' tells more",
}}
