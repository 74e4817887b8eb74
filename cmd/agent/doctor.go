package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/tarlift/tarlift/internal/importer"
)

// verdict is what a check came to.
type verdict string

const (
	verdictOK   verdict = "ok"
	verdictWarn verdict = "warn" // it works, but not as one would expect
	verdictFail verdict = "fail" // imports fail, or their images are of no use
	verdictSkip verdict = "skip" // there is nothing to check, or no way to
)

// finding is a line of what the doctor says.
type finding struct {
	Check   string  `json:"check"`
	Verdict verdict `json:"verdict"`
	Found   string  `json:"found"`
	Remedy  string  `json:"remedy,omitempty"` // what to do
}

// diagnosis is what -o json prints.
type diagnosis struct {
	OK     bool      `json:"ok"` // no check has failed
	Checks []finding `json:"checks"`
}

// doctor gathers findings. Each question has a time limit, also where what is asked does not heed one.
type doctor struct {
	timeout  time.Duration
	findings []finding
}

func (d *doctor) add(check string, v verdict, remedy, format string, args ...any) {
	f := finding{Check: check, Verdict: v, Found: oneLine(fmt.Sprintf(format, args...))}
	if v == verdictWarn || v == verdictFail {
		f.Remedy = remedy
	}
	d.findings = append(d.findings, f)
}

func (d *doctor) ok(check, format string, args ...any) { d.add(check, verdictOK, "", format, args...) }

func (d *doctor) skip(check, format string, args ...any) {
	d.add(check, verdictSkip, "", format, args...)
}

// failed is a question that got no answer.
func (d *doctor) failed(check, remedy string, err error) {
	d.add(check, verdictFail, remedy, "%v", err)
}

// graceTime is what a question gets to come back with its own error after its time.
const graceTime = 100 * time.Millisecond

// ask puts a question that may hang. An answer that comes too late is dropped.
func ask[T any](ctx context.Context, d *doctor, question func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	type answer struct {
		value T
		err   error
	}
	answers := make(chan answer, 1)
	go func() {
		v, err := question(ctx)
		answers <- answer{v, err}
	}()
	var a answer
	select {
	case a = <-answers:
	case <-ctx.Done():
		select {
		case a = <-answers:
		case <-time.After(graceTime):
			a.err = ctx.Err()
		}
	}
	if a.err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		a.err = fmt.Errorf("no answer within %s", d.timeout)
	}
	return a.value, a.err
}

// doctorFlags are the flags of `agent doctor`.
type doctorFlags struct {
	containerd      importer.Options
	kubeconfig      string
	nodeName        string
	secretNamespace string
	timeout         time.Duration
}

// doctorTimeout is enough for what a node that works answers within milliseconds, and for a disk that is busy.
const doctorTimeout = 5 * time.Second

func newDoctorCommand() *cobra.Command {
	var f doctorFlags
	cmd := &cobra.Command{
		Use:   "doctor [flags]",
		Short: "Look for what would keep imports, or their images, from working here",
		Long: `Look for what would keep imports, or their images, from working on this machine: containerd, CRI, disks, images that
were imported, what was left of imports, the clock; and where there is a kubeconfig or a pod's service account, the API
server, the CRDs, rights and the node's own NodeImageState. Nothing is changed, imports that run are not disturbed.

Exit code 0: nothing failed. 1: at least one check did.`,
		Example: `  agent doctor
  agent doctor -o json --kubeconfig /etc/kubernetes/kubelet.conf --node-name node-a
  kubectl -n tarlift-system exec daemonset/tarlift-node -- /agent doctor`,
		Args: cobra.NoArgs,
	}
	flags := cmd.Flags()
	addContainerd(flags, &f.containerd)
	flags.StringVar(&f.kubeconfig, "kubeconfig", os.Getenv("KUBECONFIG"), "`file` that leads to the API server (default: $KUBECONFIG, else the pod's service account)")
	flags.StringVar(&f.nodeName, "node-name", os.Getenv("NODE_NAME"), "`name` of this Node (default: $NODE_NAME)")
	flags.StringVar(&f.secretNamespace, "secret-namespace", os.Getenv("POD_NAMESPACE"),
		"`namespace` of the Secrets that sources name (default: $POD_NAMESPACE)")
	flags.DurationVar(&f.timeout, "timeout", doctorTimeout, "`time` that each question may take")
	output := addOutput(flags)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if f.timeout <= 0 {
			return usagef("--timeout must be more than 0")
		}
		return runDoctor(cmd, f, output.value)
	}
	return cmd
}

func runDoctor(cmd *cobra.Command, f doctorFlags, format string) error {
	d := &doctor{timeout: f.timeout}
	d.examineContainerd(cmd.Context(), f.containerd)
	d.examineCluster(cmd.Context(), f)
	if err := cmd.Context().Err(); err != nil {
		return fmt.Errorf("examine this machine: %w", err)
	}
	failed := 0
	for _, c := range d.findings {
		if c.Verdict == verdictFail {
			failed++
		}
	}
	out := cmd.OutOrStdout()
	if format == outputJSON {
		if err := printJSON(out, diagnosis{OK: failed == 0, Checks: d.findings}); err != nil {
			return err
		}
	} else {
		printFindings(out, d.findings, isTerminal(out) && os.Getenv("NO_COLOR") == "")
	}
	if failed > 0 {
		return toldError{fmt.Errorf("%d of %d checks failed", failed, len(d.findings))}
	}
	return nil
}

// colours of a terminal, by verdict: green, yellow, red, grey.
var colours = map[verdict]string{verdictOK: "32", verdictWarn: "33", verdictFail: "31", verdictSkip: "90"}

func printFindings(w io.Writer, findings []finding, coloured bool) {
	width := 0
	for _, f := range findings {
		width = max(width, len(f.Check))
	}
	for _, f := range findings {
		word := fmt.Sprintf("%-4s", f.Verdict)
		if coloured {
			word = "\x1b[" + colours[f.Verdict] + "m" + word + "\x1b[0m"
		}
		fmt.Fprintf(w, "%s  %-*s  %s\n", word, width, f.Check, f.Found)
		if f.Remedy != "" {
			fmt.Fprintf(w, "%*s  -> %s\n", len("warn  ")+width, "", f.Remedy)
		}
	}
}
