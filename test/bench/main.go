// Command bench measures `agent import` beside `ctr images import --local`: the programs themselves, on the same
// archives, each on a containerd of its own that nothing else uses. `make bench` builds what it needs, and
// docs/performance.md has what came out.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/tarlift/tarlift/test/cluster"
)

func main() {
	only := flag.String("case", "", "run only the case of this `name`")
	pairs := flag.Int("pairs", 3, "how often each client runs, the two in turn")
	flag.Parse()
	selected, err := selectCases(*only)
	if err == nil && *pairs < 1 {
		err = fmt.Errorf("-pairs %d: at least one", *pairs)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	cluster.Isolate(func() int {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		return exitCode(run(ctx, selected, *pairs))
	})
}

func exitCode(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

// run measures the cases and prints the table, also when one of them missed what it must reach; that is an error.
func run(ctx context.Context, selected []benchCase, pairs int) error {
	b, err := newBench(pairs)
	if err != nil {
		return err
	}
	outcomes := make([]outcome, 0, len(selected))
	for _, c := range selected {
		o, err := b.measure(ctx, c)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		outcomes = append(outcomes, o)
	}
	fmt.Println()
	if err := printTable(os.Stdout, outcomes); err != nil {
		return err
	}
	return judge(os.Stdout, outcomes)
}
