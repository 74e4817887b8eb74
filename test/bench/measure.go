package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/tarlift/tarlift/test/cluster"
)

// bench runs the cases one after the other.
type bench struct {
	pairs      int
	agent, ctr client
}

// outcome is what a case came to. The i-th runs of agent and ctr were made one after the other.
type outcome struct {
	benchCase
	need       need
	agent, ctr []sample
}

// trial is a case with its archives.
type trial struct {
	benchCase
	files, before []file
	server        *server // nil without
}

// measure runs a case.
func (b *bench) measure(ctx context.Context, c benchCase) (o outcome, err error) {
	o.benchCase = c
	t := trial{benchCase: c}
	if t.files, err = ensure(c.archives); err != nil {
		return o, err
	}
	if t.before, err = ensure(c.before); err != nil {
		return o, err
	}
	o.need = needOf(t.files, t.before)
	for _, f := range slices.Concat(t.before, t.files) {
		if err := warm(f.path); err != nil {
			return o, err
		}
	}
	if c.http {
		if t.server, err = newServer(filepath.Dir(t.files[0].path)); err != nil {
			return o, err
		}
		defer func() { err = errors.Join(err, t.server.Close()) }()
	}
	runAgent, stopAgent, err := t.runner(ctx, b.agent)
	if err != nil {
		return o, err
	}
	defer func() { err = errors.Join(err, stopAgent()) }()
	runCtr, stopCtr := runner(nil), nothing
	if !c.alone {
		if runCtr, stopCtr, err = t.runner(ctx, b.ctr); err != nil {
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

func nothing() error { return nil }

// runner returns how to run a client in this case, and what to call when all runs are made.
func (t trial) runner(ctx context.Context, cl client) (runner, func() error, error) {
	if t.keep {
		n, err := t.prepare(ctx, cl)
		if err != nil {
			return nil, nil, err
		}
		return func() (sample, error) { return t.run(cl, n) }, n.Stop, nil
	}
	return func() (s sample, err error) {
		n, err := t.prepare(ctx, cl)
		if err != nil {
			return s, err
		}
		defer func() { err = errors.Join(err, n.Stop()) }()
		return t.run(cl, n)
	}, nothing, nil
}

// decompressInside keeps containerd from using igzip or unpigz, which some machines have: what went through a pipe to
// them would count as written.
var decompressInside = []string{"CONTAINERD_DISABLE_IGZIP=1", "CONTAINERD_DISABLE_PIGZ=1"}

// prepare starts a containerd and has the client import what shall be there before.
func (t trial) prepare(ctx context.Context, cl client) (*cluster.Node, error) {
	n, err := cluster.StartContainerd(ctx, cluster.ContainerdOptions{Env: decompressInside})
	if err != nil {
		return nil, err
	}
	for _, f := range t.before {
		if _, err := cl.run(n.ContainerdAddress, t.noUnpack, f, nil); err != nil {
			return nil, errors.Join(err, n.Stop())
		}
	}
	return n, nil
}

// run measures a client that imports the archives one after the other.
func (t trial) run(cl client, n *cluster.Node) (sample, error) {
	// What was written before is not this run's to wait for.
	unix.Sync()
	d := daemon(n.Containerd.PID())
	before, err := d.written()
	if err := errors.Join(err, d.resetPeak()); err != nil {
		return sample{}, err
	}
	var sum sample
	for _, f := range t.files {
		s, err := cl.run(n.ContainerdAddress, t.noUnpack, f, t.server)
		if err != nil {
			return sum, err
		}
		sum.add(s)
	}
	after, err := d.written()
	sum.written = after - before
	peak, err2 := d.peak()
	sum.daemonPeak = peak
	fmt.Fprintf(os.Stderr, "%s: %s took %.2f s, read %s (says %s), containerd wrote %s (it says %s)\n", t.name, cl.name, sum.seconds,
		size(sum.read), size(sum.reported.Read), size(sum.written), size(sum.reported.Written))
	return sum, errors.Join(err, err2)
}

// add adds what a client did next.
func (s *sample) add(next sample) {
	s.seconds += next.seconds
	s.read += next.read
	s.peak = max(s.peak, next.peak)
	s.reported.Read += next.reported.Read
	s.reported.Written += next.reported.Written
}

// need is what a case takes at least, in bytes.
type need struct {
	read     int64 // of the archives
	stored   int64 // to the content store
	unpacked int64 // the files of layers that are new
}

func needOf(files, before []file) need {
	var out need
	have := contents{}
	for _, f := range before {
		for d, b := range f.needed {
			have[d] = b
		}
	}
	for _, f := range files {
		for d, b := range f.needed {
			if _, ok := have[d]; ok {
				continue
			}
			have[d] = b
			out.stored += b.Stored
			out.unpacked += b.Unpacked
			if !f.Zstd {
				out.read += b.Stored
			}
		}
		if f.Zstd { // can only be read from start to end
			out.read += f.size
		}
	}
	return out
}

// writtenAtLeast is what containerd has to write.
func (o outcome) writtenAtLeast() int64 {
	if o.noUnpack {
		return o.need.stored
	}
	return o.need.stored + o.need.unpacked
}
