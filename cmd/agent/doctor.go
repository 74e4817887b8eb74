package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/tarlift/tarlift/internal/cli"
	"github.com/tarlift/tarlift/internal/doctor"
)

// doctorTimeout is enough for a busy disk: a healthy node answers within milliseconds.
const doctorTimeout = 5 * time.Second

func newDoctorCommand() *cobra.Command {
	var o doctor.Options
	cmd := &cobra.Command{
		Use:   "doctor [flags]",
		Short: "Check what keeps imports, or their images, from working here",
		Long: `Check what keeps imports, or their images, from working on this machine: containerd, CRI, disks, imported images,
leftovers of interrupted imports, and the clock. With a kubeconfig or a pod's service account, also check the API
server, the CRDs, the agent's rights, and this node's NodeImageState. The command changes nothing and does not disturb
running imports.

Exit codes: 0: no check failed. 1: at least one check failed. 2: the command line is wrong. 130: interrupted.`,
		Example: `  agent doctor
  agent doctor -o json --kubeconfig /etc/kubernetes/kubelet.conf --node-name node-a
  kubectl -n tarlift-system exec daemonset/tarlift-node -- /agent doctor`,
		Args: cobra.NoArgs,
	}
	flags := cmd.Flags()
	addContainerd(flags, &o.Containerd)
	flags.StringVar(&o.Kubeconfig, "kubeconfig", os.Getenv("KUBECONFIG"),
		"kubeconfig `file` of the API server (default: $KUBECONFIG, else the pod's service account)")
	addNodeName(flags, &o.NodeName)
	addSecretNamespace(flags, &o.SecretNamespace)
	flags.DurationVar(&o.Timeout, "timeout", doctorTimeout, "`time` that each question may take")
	output := cli.AddOutput(flags, "o")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if o.Timeout <= 0 {
			return cli.Usagef("--timeout must be more than 0")
		}
		findings := doctor.Examine(cmd.Context(), o)
		if err := cmd.Context().Err(); err != nil {
			return fmt.Errorf("examine this machine: %w", err)
		}
		return reportFindings(cmd.OutOrStdout(), findings, output.Value)
	}
	return cmd
}

// diagnosis is what -o json prints.
type diagnosis struct {
	OK     bool             `json:"ok"` // no check has failed
	Checks []doctor.Finding `json:"checks"`
}

// reportFindings prints the findings. It returns an error if a check has failed.
func reportFindings(w io.Writer, findings []doctor.Finding, format string) error {
	failed := 0
	for _, f := range findings {
		if f.Verdict == doctor.Fail {
			failed++
		}
	}
	if format == cli.OutputJSON {
		if err := cli.PrintJSON(w, diagnosis{OK: failed == 0, Checks: findings}); err != nil {
			return err
		}
	} else {
		printFindings(w, findings, cli.IsTerminal(w) && os.Getenv("NO_COLOR") == "")
	}
	if failed > 0 {
		return cli.Printed(fmt.Errorf("%d of %d checks failed", failed, len(findings)))
	}
	return nil
}

// colours of a terminal: green, yellow, red, grey.
var colours = map[doctor.Verdict]string{doctor.OK: "32", doctor.Warn: "33", doctor.Fail: "31", doctor.Skip: "90"}

func printFindings(w io.Writer, findings []doctor.Finding, coloured bool) {
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
