package node

import (
	"cmp"
	"context"
	"errors"
	"runtime/debug"
	"slices"
	"sync"
	"time"
)

const (
	// poolSlots is how many imports and probes run at a time. While one waits for its server, or for the disk to sync,
	// another uses what is idle; more would only delay the oldest.
	poolSlots = 4
	// stallTime is after how long without progress a job gives its slot to one that waits. A server that has to fetch or
	// to think first answers sooner. While nobody waits, it is for whoever reads the source to give up.
	stallTime = 30 * time.Second
	// stallBytes within stallTime are no progress: at 1 KiB/s no archive arrives.
	stallBytes = 32 << 10
	// maxYields is how often a job is cancelled for that. A stream begins anew each time, so then it runs to its end.
	maxYields = 2
	// maxUnyielding is how many slots such jobs may take at a time.
	maxUnyielding = poolSlots / 2
)

// errYield is the cause of a cancellation for lack of progress.
var errYield = errors.New("no progress while others wait")

// pool runs a few jobs at a time. The others wait, the oldest archive's first. Its zero value is not started.
type pool struct {
	mu      sync.Mutex
	ctx     context.Context // of all jobs; nil until Start
	wg      sync.WaitGroup
	waiting []*job
	running []*job
	timer   *time.Timer // until observe
}

// job is one import or probe, from its submission to its end.
type job struct {
	created time.Time                     // of the archive
	yields  int                           // how often it was cancelled for lack of progress
	run     func(ctx context.Context)     // does the work until ctx ends
	moved   func() (bytes int64, ok bool) // so far; not ok: what it does now needs no progress
	// end is called once, after run, when the slot is free. The cause is why it was cancelled, nil if it was not.
	end func(cause error)

	ctx    context.Context
	cancel context.CancelCauseFunc
	bytes  int64     // when progress was last seen
	since  time.Time // then
}

// Start runs jobs until ctx ends, and returns when the last one has ended. It makes pool a Runnable.
func (p *pool) Start(ctx context.Context) error {
	p.mu.Lock()
	p.ctx = ctx
	p.dispatch()
	p.mu.Unlock()
	<-ctx.Done()
	p.mu.Lock()
	p.ctx, p.waiting = nil, nil
	if p.timer != nil {
		p.timer.Stop()
	}
	p.mu.Unlock()
	p.wg.Wait()
	return nil
}

// submit queues a job.
func (p *pool) submit(j *job) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting = append(p.waiting, j)
	p.dispatch()
}

// stop ends a job: one that waits at once, one that runs as soon as it can.
func (p *pool) stop(j *job) {
	p.mu.Lock()
	i := slices.Index(p.waiting, j)
	if i >= 0 {
		p.waiting = slices.Delete(p.waiting, i, i+1)
	} else if j.cancel != nil {
		j.cancel(context.Canceled)
	}
	p.mu.Unlock()
	if i >= 0 {
		j.end(context.Canceled)
	}
}

// dispatch starts what there are slots for. p.mu is held.
func (p *pool) dispatch() {
	for p.ctx != nil && p.ctx.Err() == nil && len(p.running) < poolSlots {
		j := p.next()
		if j == nil {
			break
		}
		j.ctx, j.cancel = context.WithCancelCause(p.ctx)
		j.since = time.Now()
		p.running = append(p.running, j)
		p.wg.Go(func() { p.do(j) })
	}
	if p.timer == nil && p.ctx != nil && len(p.waiting) > 0 && len(p.running) > 0 {
		p.timer = time.AfterFunc(stallTime/10, p.observe)
	}
}

// next takes the job that is to run next, nil for none: those that did not yield yet come first, then the oldest archives'.
func (p *pool) next() *job {
	unyielding := 0
	for _, j := range p.running {
		if j.yields >= maxYields {
			unyielding++
		}
	}
	var best *job
	for _, j := range p.waiting {
		if j.yields >= maxYields && unyielding >= maxUnyielding {
			continue
		}
		if best == nil || cmp.Or(cmp.Compare(j.yields, best.yields), j.created.Compare(best.created)) < 0 {
			best = j
		}
	}
	p.waiting = slices.DeleteFunc(p.waiting, func(j *job) bool { return j == best })
	return best
}

func (p *pool) do(j *job) {
	j.run(j.ctx)
	p.mu.Lock()
	p.running = slices.DeleteFunc(p.running, func(r *job) bool { return r == j })
	idle := len(p.running)+len(p.waiting) == 0
	p.dispatch()
	p.mu.Unlock()
	cause := context.Cause(j.ctx)
	j.cancel(nil)
	j.end(cause)
	if idle {
		debug.FreeOSMemory() // until the next archive the node has better use for it
	}
}

// observe cancels jobs that made no progress for stallTime, as many as wait.
func (p *pool) observe() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timer = nil
	now, wait := time.Now(), len(p.waiting)
	for _, j := range p.running {
		if bytes, ok := j.moved(); !ok || bytes-j.bytes >= stallBytes {
			j.bytes, j.since = bytes, now
		}
		stalls := now.Sub(j.since) >= stallTime && j.yields < maxYields
		if stalls && wait > 0 {
			j.cancel(errYield)
		}
		if j.ctx.Err() != nil {
			wait-- // its slot will be free
		}
	}
	p.dispatch()
}
