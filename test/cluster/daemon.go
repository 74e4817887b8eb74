package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

const (
	// The slowest daemon takes 4 s on an idle machine of two cores.
	readyTimeout = 3 * time.Minute
	// The API server takes 10 s when watches are open.
	stopTimeout = 45 * time.Second

	readyPoll = 50 * time.Millisecond
	readyTry  = 5 * time.Second
	nagEvery  = 10 * time.Second
)

// Daemon is a program that is started and stopped, also several times. Its
// methods may be called from any goroutine.
type Daemon struct {
	Name string
	Log  string // path of the file with all it printed, over all starts

	path, waitsFor string
	args, env      []string
	start          func(*exec.Cmd) error       // starts it here or on its node
	ready          func(context.Context) error // nil error: it serves
	progress       *progress

	mu      sync.Mutex
	current *process
}

type process struct {
	cmd    *exec.Cmd
	exited chan struct{}
	err    error // how it ended; to be read after exited is closed
}

// Start starts the daemon and waits until it serves. On an error, whose text
// includes the end of the log, it is not running.
func (d *Daemon) Start(ctx context.Context) error {
	p, err := d.launch()
	if err != nil {
		return fmt.Errorf("start %s: %w", d.Name, err)
	}
	d.progress.say("%s: waiting for %s", d.Name, d.waitsFor)
	began := time.Now()
	if err := d.await(ctx, p); err != nil {
		err = fmt.Errorf("start %s: %w; the end of %s:\n%s", d.Name, err, d.Log, tail(d.Log))
		d.Kill()
		return err
	}
	d.progress.say("%s: ready after %.1f s", d.Name, time.Since(began).Seconds())
	return nil
}

func (d *Daemon) launch() (*process, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.current != nil && !d.current.ended() {
		return nil, errors.New("it is running")
	}
	log, err := os.OpenFile(d.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(d.path, d.args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = d.env, log, log
	// A group of its own: Ctrl-C is for the one who started all this.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.start(cmd); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, exited: make(chan struct{})}
	go func() {
		defer close(p.exited)
		p.err = cmd.Wait()
	}()
	d.current = p
	return p, nil
}

// await returns nil when the daemon serves, else why not.
func (d *Daemon) await(ctx context.Context, p *process) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, fmt.Errorf("not ready within %s", readyTimeout))
	defer cancel()
	nag := time.NewTicker(nagEvery)
	defer nag.Stop()
	for {
		try, done := context.WithTimeout(ctx, readyTry)
		err := d.ready(try)
		done()
		if err == nil {
			return nil
		}
		select {
		case <-p.exited:
			return fmt.Errorf("it ended before it was ready: %w", exitError(p.err))
		case <-ctx.Done():
			return fmt.Errorf("waited for %s (%w): %w", d.waitsFor, err, context.Cause(ctx))
		case <-nag.C:
			d.progress.say("%s: still waiting for %s: %v", d.Name, d.waitsFor, err)
		case <-time.After(readyPoll):
		}
	}
}

func exitError(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}

// Stop asks the daemon to end (SIGTERM) and waits until it has; it is killed
// when that takes too long or ctx ends. A daemon that is not running is fine.
func (d *Daemon) Stop(ctx context.Context) error {
	p := d.running()
	if p == nil {
		return nil
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	ctx, cancel := context.WithTimeoutCause(ctx, stopTimeout, fmt.Errorf("did not end within %s", stopTimeout))
	defer cancel()
	select {
	case <-p.exited:
		return nil
	case <-ctx.Done():
		d.Kill()
		return fmt.Errorf("stop %s: killed: %w", d.Name, context.Cause(ctx))
	}
}

// Kill ends the daemon at once (SIGKILL) and waits until it has ended.
func (d *Daemon) Kill() {
	if p := d.running(); p != nil {
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
}

// Restart is [Daemon.Stop], then [Daemon.Start].
func (d *Daemon) Restart(ctx context.Context) error {
	if err := d.Stop(ctx); err != nil {
		return err
	}
	return d.Start(ctx)
}

// PID is the process ID as tests see it, 0 when the daemon is not running.
func (d *Daemon) PID() int {
	if p := d.running(); p != nil {
		return p.cmd.Process.Pid
	}
	return 0
}

func (d *Daemon) running() *process {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.current == nil || d.current.ended() {
		return nil
	}
	return d.current
}

func (p *process) ended() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}
