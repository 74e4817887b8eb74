// Command bench measures `agent import` beside `ctr images import --local`: the programs themselves, on the same
// archives, each on a containerd of its own that nothing else uses. `make bench` builds what it needs, and
// docs/performance.md has what came out.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/tarlift/tarlift/test/cluster"
)

// The bound that is asked for on a busy machine needs more pairs to be of use.
const defaultPairs, defaultBusyPairs = 5, 7

func main() {
	only := flag.String("case", "", "run only the case of this `name`")
	busy := flag.Bool("busy", false, "keep one core busy with something else all the time")
	pairs := flag.Int("pairs", 0, fmt.Sprintf("how often each client runs, the two in turn (default %d, with -busy %d)", defaultPairs, defaultBusyPairs))
	flag.Parse()
	selected, err := selectCases(*only)
	if err == nil && *pairs < 0 {
		err = fmt.Errorf("-pairs %d: at least one", *pairs)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	if *busy {
		*pairs = cmp.Or(*pairs, defaultBusyPairs)
	}
	*pairs = cmp.Or(*pairs, defaultPairs)
	cluster.Isolate(func() int {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		return exitCode(run(ctx, selected, *pairs, *busy))
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
func run(ctx context.Context, selected []benchCase, pairs int, busy bool) (err error) {
	b := bench{pairs: pairs}
	if b.agent, b.ctr, err = newClients(); err != nil {
		return err
	}
	if busy {
		stop, err := spin()
		if err != nil {
			return err
		}
		defer stop()
	}
	outcomes := make([]outcome, 0, len(selected))
	for _, c := range selected {
		o, err := b.measure(ctx, c)
		if err != nil {
			err = fmt.Errorf("%s: %w", c.name, err)
			return errors.Join(err, printTable(os.Stdout, outcomes))
		}
		outcomes = append(outcomes, o)
	}
	fmt.Println()
	if err := printTable(os.Stdout, outcomes); err != nil {
		return err
	}
	return judge(os.Stdout, outcomes, busy)
}

// spin keeps a core busy until stop is called.
func spin() (stop func(), err error) {
	cmd := exec.Command("/bin/sh", "-c", "while :; do :; done")
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}, nil
}
