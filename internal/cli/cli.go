// Package cli is what the command lines of agent and tarlift have in common: how a command runs and fails, how it opens
// an archive, and how it prints results and progress.
package cli

import (
	"context"
	"fmt"
	"io"
	stdlog "log"
	"os"
	"os/signal"
	"syscall"

	"github.com/containerd/log"
	"github.com/spf13/cobra"
)

// SignalContext returns a context that ends with the first signal to stop. The second signal kills the process.
func SignalContext() context.Context {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx
}

// NewRoot returns a program's root command.
func NewRoot(name, short string, commands ...*cobra.Command) *cobra.Command {
	root := &cobra.Command{
		Use:           name,
		Short:         short,
		SilenceErrors: true, // Run prints them
		SilenceUsage:  true,
		// Suggestions take several lines, and --help lists all commands.
		DisableSuggestions: true,
		RunE: func(*cobra.Command, []string) error {
			return Usagef("a command is missing")
		},
	}
	root.AddCommand(commands...)
	return root
}

// Run executes one command line, reports its failure, and returns the exit code. It returns soon after ctx ends.
func Run(ctx context.Context, root *cobra.Command, failures Failures, args []string, in io.Reader, out, errOut io.Writer) int {
	// containerd's client library also logs the errors that it returns, between the lines of progress or JSON.
	log.L.Logger.SetLevel(log.PanicLevel)
	// net/http logs what a server sends unasked: raw text from outside.
	stdlog.SetOutput(io.Discard)

	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)

	// A failure before a command's own code runs is one of the command line.
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
		return ExitOK
	}
	if !started {
		err = UsageError{err}
	}
	return failures.report(ctx, cmd, err, wantsJSON(cmd, args, started))
}

// NewVersionCommand returns the command that prints a program's version.
func NewVersionCommand(version string) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), version)
			return err //nolint:wrapcheck // says what could not be written
		},
	}
}
