package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/tarlift/tarlift/api/v1alpha1"
)

// workerEnv makes this program, or its test, a worker.
const workerEnv = "TARLIFT_FLEET_WORKER"

// workerOrder is the first line that a worker reads. Each line after it, wordBegin or wordReport, asks for a
// workerReport, and the end of its input ends it: so it does not outlive who started it.
type workerOrder struct {
	Host             string
	CA               []byte
	ArchiveDir       string
	ShareConnections bool
	Agents           []agentSpec
}

const (
	wordBegin  = "begin" // a new count
	wordReport = "report"
)

// workerReport is what a worker's agents have written. The first says that all of them are up.
type workerReport struct {
	Error   string
	Sent    map[string]int // since the last report, by kind
	Seconds map[int64]int  // since the last report, by Unix time
	Most    map[string]int // since wordBegin: the most of a kind by one agent
}

// starting is how many agents of a worker start at a time.
const starting = 16

// workerMain is the program as a worker.
func workerMain() int {
	if err := work(context.Background(), os.Stdin, json.NewEncoder(os.Stdout)); err != nil {
		fmt.Fprintln(os.Stderr, "worker:", err)
		return 1
	}
	return 0
}

func work(ctx context.Context, in io.Reader, out *json.Encoder) error {
	ctrl.SetLogger(logr.Discard())
	if err := v1alpha1.AddToScheme(scheme.Scheme); err != nil {
		return err
	}
	lines := bufio.NewReader(in)
	var order workerOrder
	if line, err := lines.ReadBytes('\n'); err != nil {
		return fmt.Errorf("read the order: %w", err)
	} else if err := json.Unmarshal(line, &order); err != nil {
		return fmt.Errorf("read the order: %w", err)
	}
	// What ctrl.GetConfig makes of a limit that nobody has set: none.
	server := &rest.Config{Host: order.Host, QPS: -1, TLSClientConfig: rest.TLSClientConfig{CAData: order.CA}}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	running, ctx := errgroup.WithContext(ctx)
	agents, err := startAll(ctx, running, server, order)
	if err := out.Encode(newReport(agents, err)); err != nil {
		return err
	}
	for err == nil {
		var word string
		if word, err = lines.ReadString('\n'); err != nil {
			break
		}
		if strings.TrimSpace(word) == wordBegin {
			for _, a := range agents {
				a.sent.begin()
			}
		}
		err = out.Encode(newReport(agents, context.Cause(ctx)))
	}
	cancel()
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return errors.Join(err, running.Wait())
}

// startAll returns when all agents have filled their caches.
func startAll(ctx context.Context, running *errgroup.Group, server *rest.Config, order workerOrder) ([]*agent, error) {
	agents := make([]*agent, len(order.Agents))
	starts, startCtx := errgroup.WithContext(ctx)
	starts.SetLimit(starting)
	for i, spec := range order.Agents {
		starts.Go(func() error {
			a, err := newAgent(server, spec, order)
			if err != nil {
				return fmt.Errorf("agent of %s: %w", spec.Node, err)
			}
			agents[i] = a
			running.Go(func() error { return a.run(ctx) })
			limited, cancel := context.WithTimeout(startCtx, time.Minute)
			defer cancel()
			if !a.mgr.GetCache().WaitForCacheSync(limited) {
				return fmt.Errorf("agent of %s: its caches are not filled: %w", spec.Node, limited.Err())
			}
			return nil
		})
	}
	return agents, starts.Wait()
}

func newReport(agents []*agent, err error) workerReport {
	r := workerReport{Sent: map[string]int{}, Most: map[string]int{}, Seconds: map[int64]int{}}
	if err != nil {
		r.Error = err.Error()
	}
	for _, a := range agents {
		if a == nil {
			continue
		}
		a.sent.takeInto(&r)
	}
	return r
}
