package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// fleet is a control plane, the real controller, and workers full of agents.
type fleet struct {
	plane      *controlPlane
	dir        string // for all that it writes; the archive directory of every node, too
	controller *exec.Cmd
	workers    []*worker
	profiles   string        // as in options
	quiet      time.Duration // as in options
}

func (f *fleet) controllerProcess() process { return process(f.controller.Process.Pid) }

// startController starts the agent's binary as `agent controller`, with the rights of its role.
func (f *fleet) startController(ctx context.Context, binary string) error {
	token, err := f.plane.token(ctx, "tarlift-controller", nil)
	if err != nil {
		return err
	}
	kubeconfig := filepath.Join(f.dir, "controller.kubeconfig")
	if err := f.plane.writeKubeconfig(kubeconfig, token); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(f.dir, "controller.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	f.controller = exec.Command(binary, "controller", "--leader-elect", "--leader-election-namespace="+systemNamespace,
		"--metrics-bind-address=0", "--health-probe-bind-address=0")
	f.controller.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig)
	f.controller.Stderr = log
	if err := f.controller.Start(); err != nil {
		f.controller = nil
		return fmt.Errorf("start the controller: %w", err)
	}
	return nil
}

// startAgents divides the agents among workers and returns when all are up, with what they have written until then.
func (f *fleet) startAgents(specs []agentSpec, workers int, share bool) (workerReport, error) {
	archives := filepath.Join(f.dir, "archives")
	if err := os.Mkdir(archives, 0o700); err != nil {
		return workerReport{}, err
	}
	if err := os.WriteFile(filepath.Join(archives, archiveFile), make([]byte, 1<<10), 0o600); err != nil {
		return workerReport{}, err
	}
	for range workers {
		w, err := startWorker()
		if err != nil {
			return workerReport{}, err
		}
		f.workers = append(f.workers, w)
	}
	return f.ask(func(i int, w *worker) (workerReport, error) {
		return w.order(workerOrder{
			Host: f.plane.config.Host, CA: f.plane.config.CAData, ArchiveDir: archives, ShareConnections: share,
			Agents: specs[i*len(specs)/workers : (i+1)*len(specs)/workers],
		})
	})
}

// report asks all workers what their agents have written, or has them begin anew.
func (f *fleet) report(word string) (workerReport, error) {
	return f.ask(func(_ int, w *worker) (workerReport, error) { return w.report(word) })
}

// ask asks all workers at the same time and adds up what they say.
func (f *fleet) ask(question func(i int, w *worker) (workerReport, error)) (workerReport, error) {
	sum := newReport(nil, nil)
	var mu sync.Mutex
	var g errgroup.Group
	for i, w := range f.workers {
		g.Go(func() error {
			r, err := question(i, w)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			sum.add(r)
			return nil
		})
	}
	return sum, g.Wait()
}

// add joins what other agents, or the same ones later, have done.
func (r *workerReport) add(other workerReport) {
	for kind, n := range other.Sent {
		r.Sent[kind] += n
	}
	for s, n := range other.Seconds {
		r.Seconds[s] += n
	}
	for kind, n := range other.Most {
		r.Most[kind] = max(r.Most[kind], n)
	}
}

// stop ends everything, the API server last, and removes the directory.
func (f *fleet) stop() error {
	var errs []error
	for _, w := range f.workers {
		errs = append(errs, w.stop())
	}
	if f.controller != nil {
		errs = append(errs, f.controller.Process.Signal(syscall.SIGTERM))
		if err := f.controller.Wait(); err != nil {
			log, _ := os.ReadFile(f.controller.Stderr.(*os.File).Name())
			errs = append(errs, fmt.Errorf("controller: %w\n%s", err, log[max(0, len(log)-2000):]))
		}
	}
	if f.plane != nil {
		errs = append(errs, f.plane.stop())
	}
	return errors.Join(append(errs, os.RemoveAll(f.dir))...)
}

// worker is a process that runs many agents.
type worker struct {
	cmd     *exec.Cmd
	in      io.WriteCloser
	answers *bufio.Reader
}

// startWorker gives way to the control plane: real agents do not take its processor.
func startWorker() (*worker, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	w := &worker{cmd: exec.Command("nice", "-n", "10", self)}
	w.cmd.Env = append(os.Environ(), workerEnv+"=1",
		// An agent that waits for the processor behind a thousand others would take its connection for dead.
		"HTTP2_PING_TIMEOUT_SECONDS=300",
		// Half of their work would be to collect garbage in so large a heap.
		"GOGC=200")
	w.cmd.Stderr = os.Stderr
	if w.in, err = w.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	w.answers = bufio.NewReader(out)
	if err := w.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a worker: %w", err)
	}
	return w, nil
}

func (w *worker) process() process { return process(w.cmd.Process.Pid) }

func (w *worker) order(o workerOrder) (workerReport, error) {
	if err := json.NewEncoder(w.in).Encode(o); err != nil {
		return workerReport{}, fmt.Errorf("worker: %w", err)
	}
	return w.answer()
}

func (w *worker) report(word string) (workerReport, error) {
	if _, err := io.WriteString(w.in, word+"\n"); err != nil {
		return workerReport{}, fmt.Errorf("worker: %w", err)
	}
	return w.answer()
}

func (w *worker) answer() (r workerReport, err error) {
	line, err := w.answers.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &r)
	}
	if err == nil && r.Error != "" {
		err = errors.New(r.Error)
	}
	if err != nil {
		return r, fmt.Errorf("worker: %w", err)
	}
	return r, nil
}

// stop ends the worker. What it has to tell is told: it is killed, since thousands of agents take their time to end.
func (w *worker) stop() error {
	err := errors.Join(w.in.Close(), w.cmd.Process.Kill())
	var exit *exec.ExitError
	if waited := w.cmd.Wait(); !errors.As(waited, &exit) {
		err = errors.Join(err, waited)
	}
	return err
}

// busiest is the most in any ten seconds, by the second.
func busiest(seconds map[int64]int) float64 {
	most := 0
	for begin := range maps.Keys(seconds) {
		n := 0
		for s := begin; s < begin+10; s++ {
			n += seconds[s]
		}
		most = max(most, n)
	}
	return float64(most) / 10
}
