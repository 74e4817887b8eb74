package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/tarlift/tarlift/test/cluster"
)

// machine is this machine's platform alone.
var machine = []string{"linux/" + runtime.GOARCH}

// bench runs the cases one after the other.
type bench struct {
	pairs int
	agent client
	ctr   client
}

func newBench(pairs int) (*bench, error) {
	root, err := cluster.ModuleRoot()
	if err != nil {
		return nil, err
	}
	tools, err := cluster.ToolsDir()
	if err != nil {
		return nil, err
	}
	return &bench{
		pairs: pairs,
		agent: client{name: "agent", path: filepath.Join(root, "bin", "agent"), reports: true, args: func(socket, archive string, unpack bool) []string {
			args := []string{"import", "-o", "json", "--progress", "none", "--address", socket}
			if !unpack {
				args = append(args, "--no-unpack")
			}
			return append(args, archive)
		}},
		ctr: client{name: "ctr", path: filepath.Join(tools, "ctr"), args: func(socket, archive string, unpack bool) []string {
			args := []string{"--address", socket, "--namespace", "k8s.io", "images", "import", "--local"}
			if !unpack {
				args = append(args, "--no-unpack")
			}
			return append(args, archive)
		}},
	}, nil
}

// outcome is what a case came to. The i-th runs of agent and ctr were made one after the other.
type outcome struct {
	benchCase
	agent, ctr []sample
}

// measure runs a case.
func (b *bench) measure(ctx context.Context, c benchCase) (o outcome, err error) {
	o.benchCase = c
	path, err := c.archive.ensure()
	if err != nil {
		return o, err
	}
	if err := warm(path); err != nil {
		return o, err
	}
	runAgent, stopAgent, err := b.runner(ctx, b.agent, c, path)
	if err != nil {
		return o, err
	}
	defer func() { err = errors.Join(err, stopAgent()) }()
	runCtr, stopCtr := runner(nil), func() error { return nil }
	if !c.alone {
		if runCtr, stopCtr, err = b.runner(ctx, b.ctr, c, path); err != nil {
			return o, err
		}
	}
	defer func() { err = errors.Join(err, stopCtr()) }()
	for range b.pairs {
		s, err := runAgent()
		if err != nil {
			return o, err
		}
		o.agent = append(o.agent, s)
		if c.alone {
			continue
		}
		if s, err = runCtr(); err != nil {
			return o, err
		}
		o.ctr = append(o.ctr, s)
	}
	return o, nil
}

// runner measures one run of one client.
type runner func() (sample, error)

// runner returns how to run a client in this case, and what to call when all runs are made.
func (b *bench) runner(ctx context.Context, cl client, c benchCase, path string) (runner, func() error, error) {
	run := func(n *cluster.Node) (sample, error) {
		// What was written before is not this run's to wait for.
		unix.Sync()
		s, err := cl.run(cl.args(n.ContainerdAddress, path, !c.noUnpack))
		if err == nil {
			fmt.Fprintf(os.Stderr, "%s: %s took %.2f s, peak %s\n", c.name, cl.name, s.seconds, size(s.peak))
		}
		return s, err
	}
	if !c.again {
		return func() (s sample, err error) {
			n, err := cluster.StartContainerd(ctx, cluster.ContainerdOptions{})
			if err != nil {
				return s, err
			}
			defer func() { err = errors.Join(err, n.Stop()) }()
			return run(n)
		}, func() error { return nil }, nil
	}
	n, err := cluster.StartContainerd(ctx, cluster.ContainerdOptions{})
	if err != nil {
		return nil, nil, err
	}
	if _, err := cl.run(cl.args(n.ContainerdAddress, path, !c.noUnpack)); err != nil {
		return nil, nil, errors.Join(err, n.Stop())
	}
	return func() (sample, error) { return run(n) }, n.Stop, nil
}

// warm reads a file, so that the first run does not pay for what the others find in memory.
func warm(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(io.Discard, f)
	return err
}
