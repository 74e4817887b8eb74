// Command fleet measures what Tarlift asks of an API server: a real one with its etcd, the real controller, and
// thousands of agents that are real but for their containerd, with tokens, watches and connections of their own. `make
// bench-fleet` builds what it needs, and docs/scale.md has what came out.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/tarlift/tarlift/api/v1alpha1"
)

// options say what is measured.
type options struct {
	nodes, archives int
	workers         int           // processes that share the agents
	agent           string        // the binary whose controller is measured
	share           bool          // the agents of a worker share connections
	idle            time.Duration // how long the idle fleet is looked at
	quiet           time.Duration // for how long, at least, nobody must have written to count as done
	rollout         int           // percentage of the nodes that may import at a time; 0: no rollout
	importTime      time.Duration // of the rollout's imports
	patience        time.Duration // for archives to become Ready
	profiles        string        // the directory for profiles, empty for none
}

func main() {
	if os.Getenv(workerEnv) != "" {
		os.Exit(workerMain())
	}
	var o options
	flag.IntVar(&o.nodes, "nodes", 5000, "how many nodes")
	flag.IntVar(&o.archives, "archives", 20, "how many ImageArchives")
	flag.IntVar(&o.workers, "workers", 4, "how many processes the agents share")
	flag.StringVar(&o.agent, "agent", "bin/agent", "the agent's binary, for the controller")
	flag.BoolVar(&o.share, "share-connections", false, "let the agents of a process share connections to the API server")
	flag.DurationVar(&o.idle, "idle", time.Minute, "how long to look at the idle fleet")
	flag.DurationVar(&o.quiet, "quiet", 12*time.Second, "for how long, at least, no agent must have written to count as done")
	flag.IntVar(&o.rollout, "rollout", 20, "percentage of the nodes that a rollout lets import at a time; 0: no rollout")
	flag.DurationVar(&o.importTime, "import-time", 2*time.Second, "how long an import of the rollout takes")
	flag.DurationVar(&o.patience, "patience", 30*time.Minute, "how long to wait for archives to become Ready")
	flag.StringVar(&o.profiles, "profiles", "", "a directory for profiles of the API server, and what each kind of request took")
	small := flag.Int("small", 500, "measure so many nodes first, so that growth is seen; 0: do not")
	flag.Parse()
	if o.nodes < 1 || o.archives < 1 || o.workers < 1 || o.rollout < 0 || o.rollout > 100 {
		fmt.Fprintln(os.Stderr, "fleet: at least one node, archive and worker; a rollout of 0 to 100 %")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o, *small)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "fleet:", err)
		os.Exit(1)
	}
}

// run measures and prints the table, also when something was missed; that is an error.
func run(ctx context.Context, o options, small int) error {
	log.SetLogger(logr.Discard())
	if o.profiles != "" {
		if err := os.MkdirAll(o.profiles, 0o700); err != nil {
			return err
		}
	}
	var results []result
	sizes := []int{small, o.nodes}
	if small == 0 || small >= o.nodes {
		sizes = sizes[1:]
	}
	for _, n := range sizes {
		o.nodes = n
		r, err := measure(ctx, o, os.Stderr)
		if err != nil {
			err = fmt.Errorf("%d nodes: %w", n, err)
			if len(results) > 0 {
				err = errors.Join(err, printTable(os.Stdout, results))
			}
			return err
		}
		results = append(results, r)
	}
	if err := printTable(os.Stdout, results); err != nil {
		return err
	}
	return judge(results)
}

// result is what a run has measured.
type result struct {
	nodes, archives       int
	start, all, idle, one phase
	rollout               *phase

	maxConcurrent, concurrent, imports float64 // of the rollout
	stateSize, archiveSize             float64 // of the largest object
}

// last is the phase that was measured last.
func (r result) last() *phase {
	if r.rollout != nil {
		return r.rollout
	}
	return &r.one
}

// measure runs one fleet from its start to its end.
func measure(ctx context.Context, o options, progress io.Writer) (r result, err error) {
	begin := time.Now()
	say := func(format string, args ...any) {
		fmt.Fprintf(progress, "%6.1f s  %d nodes: %s\n", time.Since(begin).Seconds(), o.nodes, fmt.Sprintf(format, args...))
	}
	r = result{nodes: o.nodes, archives: o.archives}
	// Longer where agents spread their writes over longer: 14.3 ms a node, a twelfth more with each archive, up to 100 s.
	quiet := max(o.quiet, min(time.Duration(o.nodes*(12+o.archives))*1200*time.Microsecond, 100*time.Second))
	f := &fleet{profiles: o.profiles, quiet: quiet}
	defer func() { err = errors.Join(err, f.stop()) }()
	if f.dir, err = os.MkdirTemp("", "tarlift-fleet-"); err != nil {
		return r, err
	}
	say("starting etcd and the API server")
	if f.plane, err = startControlPlane(ctx); err != nil {
		return r, err
	}
	say("making Nodes and tokens")
	specs, err := f.plane.makeNodes(ctx, o.nodes)
	if err != nil {
		return r, err
	}
	if err := f.startController(ctx, o.agent); err != nil {
		return r, err
	}
	say("starting agents")
	if r.start, err = f.measure(ctx, "start", func(p *phase) error {
		sent, err := f.startAgents(specs, o.workers, o.share)
		if err != nil {
			return err
		}
		p.sent.add(sent)
		return f.settle(ctx, p)
	}); err != nil {
		return r, err
	}
	say("applying %d archives", o.archives)
	if r.all, err = f.apply(ctx, "all", fileArchives(o.archives), o.patience); err != nil {
		return r, err
	}
	if r.stateSize, err = f.plane.largestState(ctx); err != nil {
		return r, err
	}
	say("ready after %.1f s; looking at the idle fleet", r.all.took.Seconds())
	if r.idle, err = f.measure(ctx, "idle", func(*phase) error { return wait(ctx, o.idle) }); err != nil {
		return r, err
	}
	say("applying one more archive")
	one := map[string]v1alpha1.ImageArchiveSpec{"one-more": fileSpec()}
	if r.one, err = f.apply(ctx, "one", one, o.patience); err != nil {
		return r, err
	}
	if o.rollout > 0 {
		say("ready after %.1f s; rolling out to %d %% of the nodes at a time", r.one.took.Seconds(), o.rollout)
		if err := f.rollOut(ctx, o, &r); err != nil {
			return r, err
		}
	}
	say("done")
	r.archiveSize = largestArchive(r)
	return r, nil
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func fileSpec() v1alpha1.ImageArchiveSpec {
	return v1alpha1.ImageArchiveSpec{Source: v1alpha1.Source{File: &v1alpha1.FileSource{Path: archiveFile}}}
}

func fileArchives(n int) map[string]v1alpha1.ImageArchiveSpec {
	m := map[string]v1alpha1.ImageArchiveSpec{}
	for i := range n {
		m[fmt.Sprintf("production-line-images-%02d", i)] = fileSpec()
	}
	return m
}

// rollOut applies an archive whose imports take a while, and counts them at its origin.
func (f *fleet) rollOut(ctx context.Context, o options, r *result) (err error) {
	server, err := newOrigin(o.importTime)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.close()) }()
	spec := v1alpha1.ImageArchiveSpec{
		Source:  v1alpha1.Source{HTTP: &v1alpha1.HTTPSource{URL: server.url}},
		Rollout: &v1alpha1.Rollout{MaxConcurrent: ptr.To(intstr.FromString(fmt.Sprintf("%d%%", o.rollout)))},
	}
	p, err := f.apply(ctx, "rollout", map[string]v1alpha1.ImageArchiveSpec{"rollout": spec}, o.patience)
	if err != nil {
		return err
	}
	most, served := server.counts()
	r.rollout, r.concurrent, r.imports = &p, float64(most), float64(served)
	r.maxConcurrent = math.Ceil(float64(o.nodes) * float64(o.rollout) / 100)
	return nil
}

// largestState is the size of the largest NodeImageState, as JSON without managedFields.
func (p *controlPlane) largestState(ctx context.Context) (float64, error) {
	most := 0
	var list v1alpha1.NodeImageStateList
	for {
		if err := p.client.List(ctx, &list, client.Limit(250), client.Continue(list.Continue)); err != nil {
			return 0, err
		}
		for i := range list.Items {
			list.Items[i].ManagedFields = nil
			text, err := json.Marshal(&list.Items[i])
			if err != nil {
				return 0, err
			}
			most = max(most, len(text))
		}
		if list.Continue == "" {
			return float64(most), nil
		}
	}
}

// largestArchive is the size of the largest ImageArchive that was written.
func largestArchive(r result) float64 {
	most := 0
	for _, p := range []*phase{&r.all, &r.one, r.rollout} {
		if p == nil {
			continue
		}
		for _, writes := range p.archives {
			for _, w := range writes {
				most = max(most, w.size)
			}
		}
	}
	return float64(most)
}
