package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers"
	"github.com/tarlift/tarlift/internal/source"
)

// Exit codes: scripts and unit files depend on them.
const (
	exitOK          = 0
	exitFailed      = 1   // nothing changed
	exitUsage       = 2   // the command line makes no sense
	exitInterrupted = 130 // by a signal; nothing changed (128 + SIGINT, as shells count)
)

// Reasons beside those that conditions also have.
const (
	reasonUsage       = "Usage"
	reasonInterrupted = "Interrupted"
	reasonOutput      = "OutputFailed"
)

// usageError is a command line that makes no sense.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// toldError is a failure of which all that is to be printed on standard output has been.
type toldError struct{ error }

func (e toldError) Unwrap() error { return e.error }

// failure is what is printed of an error.
type failure struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// reportFailure prints why cmd failed and returns its exit code: on standard error for people, and on standard
// output when the caller reads JSON there.
func reportFailure(cmd *cobra.Command, err error, asJSON bool) int {
	f, code := explain(cmd, err)
	fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\n", cmd.CommandPath(), f.Message)
	if code == exitUsage {
		fmt.Fprintf(cmd.ErrOrStderr(), "Try '%s --help'.\n", cmd.CommandPath())
	}
	if told := (toldError{}); asJSON && !errors.As(err, &told) {
		_ = printJSON(cmd.OutOrStdout(), struct { // the exit code tells all the same
			Error failure `json:"error"`
		}{f})
	}
	return code
}

// wantsJSON tells whether the caller reads JSON. Parsing ends at the first flag that is wrong, and -o may follow it:
// then only -o is looked for.
func wantsJSON(cmd *cobra.Command, args []string, parsed bool) bool {
	if parsed {
		flag := cmd.Flags().Lookup(outputFlag)
		return flag != nil && flag.Value.String() == outputJSON
	}
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	flags.ParseErrorsAllowlist.UnknownFlags = true
	flags.BoolP("help", "h", false, "") // pflag's own would print
	short := "o"
	if flag := cmd.Flags().Lookup(outputFlag); flag != nil {
		short = flag.Shorthand // none where -o is the archive to write
	}
	output := flags.StringP(outputFlag, short, outputText, "")
	_ = flags.Parse(args) // reported already; what precedes a second mistake counts
	return *output == outputJSON
}

// explain gives an error its reason, a message of one line, and the exit code.
func explain(cmd *cobra.Command, err error) (failure, int) {
	var usage usageError
	switch {
	case errors.As(err, &usage):
		return failure{reasonUsage, oneLine(err.Error())}, exitUsage
	case cmd.Context().Err() != nil:
		// Whatever was under way failed because of that. The text also tells if clearing up failed.
		return failure{reasonInterrupted, oneLine("interrupted: " + err.Error())}, exitInterrupted
	}
	reason, _ := controllers.Classify(err)
	if output := (outputError{}); reason == v1alpha1.ReasonImportFailed && errors.As(err, &output) {
		reason = reasonOutput
	}
	message := oneLine(err.Error())
	if remedy := remedyFor(cmd, reason); remedy != "" {
		message += " (" + remedy + ")"
	}
	return failure{reason, message}, exitFailed
}

// aboutArchive names the archive in an error that is about what it holds. Those of sources name theirs already, and those
// of containerd have none.
func aboutArchive(blob source.Blob, err error) error {
	switch reason, _ := controllers.Classify(err); reason {
	case v1alpha1.ReasonArchiveInvalid, v1alpha1.ReasonTruncated, v1alpha1.ReasonDigestMismatch, v1alpha1.ReasonLimitExceeded,
		v1alpha1.ReasonInvalidName, v1alpha1.ReasonNoMatchingPlatform, v1alpha1.ReasonContentIncomplete:
		return fmt.Errorf("%s: %w", blob, err)
	}
	return err
}

// remedies say what to do about a failure, where its message does not.
var remedies = map[string]string{
	v1alpha1.ReasonTruncated:          "get the archive again: this copy is not all of it",
	v1alpha1.ReasonDigestMismatch:     "get the archive again: this one is damaged, or not the one that is expected",
	v1alpha1.ReasonContentIncomplete:  "write the archive again, with all blobs of this platform",
	v1alpha1.ReasonNoMatchingPlatform: "write the archive for this platform, or choose another one with --platform",
	v1alpha1.ReasonNameConflict:       "remove that image, choose others with --include, or let --conflict=replace move the name",
	v1alpha1.ReasonInsufficientDisk:   "free space there, or keep less with --disk-reserve",
	v1alpha1.ReasonSourceDenied:       "look at --help for credentials, and at the file's owner and mode",
	v1alpha1.ReasonRuntimeUnavailable: "is containerd running, is --address its socket, and may you write to it? 'agent doctor' tells more",
}

// writingRemedies are those of commands that write archives.
var writingRemedies = map[string]string{
	v1alpha1.ReasonContentIncomplete:  "choose platforms that are there with --platform, or leave the image out, or get it whole",
	v1alpha1.ReasonNoMatchingPlatform: "choose other platforms with --platform, or leave the image out",
	v1alpha1.ReasonInsufficientDisk:   "free space there, or write elsewhere",
	reasonOutput:                      "may you write there?",
}

func remedyFor(cmd *cobra.Command, reason string) string {
	if _, writes := cmd.Annotations[writesArchive]; writes {
		if remedy, ok := writingRemedies[reason]; ok {
			return remedy
		}
	}
	return remedies[reason]
}

// oneLine makes text from anywhere fit for a terminal and a log: no line breaks, no control characters that a
// name or a server could smuggle in.
func oneLine(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case r == '\n':
			b.WriteString("; ") // what errors.Join puts between errors
		case !strconv.IsPrint(r):
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		default:
			b.WriteRune(r)
		}
		s = s[size:]
	}
	return b.String()
}
