// The agent puts the images of archives into containerd: as a node's agent in a cluster, or from the command
// line without one.
package main

import (
	"context"
	"io"
	stdlog "log"
	"os"
	"os/signal"
	"syscall"

	"github.com/containerd/log"
	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal asks to stop; the second, handled by nobody any more, kills.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run executes one command line and returns the exit code. It returns soon after ctx ends.
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	// containerd's client library also logs what it returns as errors, as text between progress or lines of JSON.
	log.L.Logger.SetLevel(log.PanicLevel)
	// net/http logs there what a server sends unasked: text from outside, as it is.
	stdlog.SetOutput(io.Discard)

	root := newRootCommand()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)

	// What fails before a command's own code runs is the command line.
	started := false
	for _, c := range root.Commands() {
		inner := c.RunE
		c.RunE = func(cmd *cobra.Command, args []string) error {
			started = true
			return inner(cmd, args)
		}
	}
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	if !started {
		err = usageError{err}
	}
	return reportFailure(cmd, err, wantsJSON(cmd, args, started))
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "agent",
		Short:         "Put the images of archives into containerd, without a registry",
		SilenceErrors: true, // reportFailure prints them
		SilenceUsage:  true,
		// They take several lines, and --help, which is pointed to, lists all commands.
		DisableSuggestions: true,
		RunE: func(*cobra.Command, []string) error {
			return usagef("a command is missing")
		},
	}
	root.AddCommand(
		newImportCommand(),
		newInspectCommand(),
		newBundleCommand(),
		newExportCommand(),
		newNodeCommand(),
		newControllerCommand(),
		newDoctorCommand(),
		newVersionCommand(),
	)
	return root
}
