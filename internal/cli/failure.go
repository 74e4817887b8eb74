package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/tarlift/tarlift/internal/reason"
)

// Exit codes: scripts and unit files depend on them.
const (
	ExitOK          = 0
	ExitFailed      = 1
	ExitUsage       = 2   // the command line is wrong
	ExitInterrupted = 130 // by a signal (128 + SIGINT, as shells count)
)

// Reasons that only command lines have, beside those of package reason.
const (
	ReasonUsage       = "Usage"
	ReasonInterrupted = "Interrupted"
)

// UsageError is a command line that is wrong.
type UsageError struct{ error }

// Unwrap returns what is wrong.
func (e UsageError) Unwrap() error { return e.error }

// Usagef returns a UsageError.
func Usagef(format string, args ...any) error { return UsageError{fmt.Errorf(format, args...)} }

// Printed returns the failure of a command that has printed all of its standard output already.
func Printed(err error) error { return printedError{err} }

type printedError struct{ error }

func (e printedError) Unwrap() error { return e.error }

// Failure is what a command prints of an error.
type Failure struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// Failures is what a program knows about its failures.
type Failures struct {
	// Classify returns an error's reason.
	Classify func(error) string
	// Remedies say, by reason, what to do about a failure whose message does not say it.
	Remedies map[string]string
}

// Explain gives an error its reason, a message of one line, and the exit code.
func (f Failures) Explain(ctx context.Context, err error) (Failure, int) {
	switch {
	case errors.As(err, new(UsageError)):
		return Failure{ReasonUsage, OneLine(err.Error())}, ExitUsage
	case ctx.Err() != nil:
		// The signal caused every failure after it. The text also says whether cleaning up failed.
		return Failure{ReasonInterrupted, OneLine("interrupted: " + err.Error())}, ExitInterrupted
	}
	name := f.Classify(err)
	message := OneLine(err.Error())
	if remedy := f.Remedies[name]; remedy != "" {
		message += " (" + remedy + ")"
	}
	return Failure{name, message}, ExitFailed
}

// report prints why cmd failed and returns its exit code: on standard error for people, and on standard output if the
// caller reads JSON there.
func (f Failures) report(ctx context.Context, cmd *cobra.Command, err error, asJSON bool) int {
	failure, code := f.Explain(ctx, err)
	fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\n", cmd.CommandPath(), failure.Message)
	if code == ExitUsage {
		fmt.Fprintf(cmd.ErrOrStderr(), "Try '%s --help'.\n", cmd.CommandPath())
	}
	if asJSON && !errors.As(err, new(printedError)) {
		_ = PrintJSON(cmd.OutOrStdout(), struct { // the exit code says as much
			Error Failure `json:"error"`
		}{failure})
	}
	return code
}

// wantsJSON reports whether the caller reads JSON. Parsing ends at the first wrong flag, which --output may follow:
// then the arguments are searched for --output alone.
func wantsJSON(cmd *cobra.Command, args []string, parsed bool) bool {
	if parsed {
		flag := cmd.Flags().Lookup(outputFlag)
		return flag != nil && flag.Value.String() == OutputJSON
	}
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	flags.ParseErrorsAllowlist.UnknownFlags = true
	flags.BoolP("help", "h", false, "") // pflag's own would print
	short := "o"
	if flag := cmd.Flags().Lookup(outputFlag); flag != nil {
		short = flag.Shorthand // none where -o is the archive to write
	}
	output := flags.StringP(outputFlag, short, OutputText, "")
	_ = flags.Parse(args) // reported already; what precedes a second mistake counts
	return *output == OutputJSON
}

// Classify is package reason's, for programs whose failures have no other reasons.
func Classify(err error) string {
	name, _ := reason.Classify(err)
	return name
}
