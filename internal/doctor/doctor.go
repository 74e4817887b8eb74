// Package doctor examines what imports on a node need: containerd, its disks and CRI, the images that were imported, the
// clock, and the API server with the agent's rights there. It changes nothing.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tarlift/tarlift/internal/cli"
	"github.com/tarlift/tarlift/internal/importer"
)

// Options say what to examine.
type Options struct {
	Containerd importer.Options
	// Kubeconfig is a file; empty for a pod's service account. Without either no cluster is examined.
	Kubeconfig string
	// NodeName is this Node's; empty if it is not known.
	NodeName string
	// SecretNamespace is that of the Secrets that sources name; empty if there are none.
	SecretNamespace string
	// Timeout is for each question.
	Timeout time.Duration
}

// Verdict is the result of a check.
type Verdict string

// The verdicts.
const (
	OK   Verdict = "ok"
	Warn Verdict = "warn" // it works, but not as one would expect
	Fail Verdict = "fail" // imports fail, or their images are of no use
	Skip Verdict = "skip" // there is nothing to check, or no way to check it
)

// Finding is what a check has found.
type Finding struct {
	Check   string  `json:"check"`
	Verdict Verdict `json:"verdict"`
	Found   string  `json:"found"`
	Remedy  string  `json:"remedy,omitempty"` // what to do, for Warn and Fail
}

// Examine runs all checks. If ctx ends, the findings are incomplete.
func Examine(ctx context.Context, o Options) []Finding {
	e := &examination{timeout: o.Timeout}
	e.examineContainerd(ctx, o.Containerd)
	e.examineCluster(ctx, o)
	return e.findings
}

// examination collects findings.
type examination struct {
	timeout  time.Duration
	findings []Finding
}

func (e *examination) add(check string, v Verdict, remedy, format string, args ...any) {
	found := cli.OneLine(fmt.Sprintf(format, args...))
	e.findings = append(e.findings, Finding{Check: check, Verdict: v, Found: found, Remedy: cli.OneLine(remedy)})
}

func (e *examination) ok(check, format string, args ...any) { e.add(check, OK, "", format, args...) }

func (e *examination) warn(check, remedy, format string, args ...any) {
	e.add(check, Warn, remedy, format, args...)
}

func (e *examination) fail(check, remedy, format string, args ...any) {
	e.add(check, Fail, remedy, format, args...)
}

// failed adds an error in place of an answer.
func (e *examination) failed(check, remedy string, err error) { e.add(check, Fail, remedy, "%v", err) }

func (e *examination) skip(found string, checks ...string) {
	for _, check := range checks {
		e.add(check, Skip, "", "%s", found)
	}
}

// returnTime is how long a question may take to return its own error after its time is over.
const returnTime = 100 * time.Millisecond

// ask asks a question that may hang, and that may ignore its context. An answer that comes too late is dropped.
func ask[T any](ctx context.Context, e *examination, question func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, e.timeout)
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
		case <-time.After(returnTime):
			a.err = ctx.Err()
		}
	}
	if a.err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		a.err = fmt.Errorf("no answer within %s", e.timeout)
	}
	return a.value, a.err
}
