package controllers

import (
	"context"
	"fmt"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/internal/source"
)

// Importer is what the node's reconciler needs of containerd; *importer.Importer is one.
type Importer interface {
	// Runtime asks containerd who it is.
	Runtime(ctx context.Context) (importer.Runtime, error)
	// Imported says whether an owner's images are there and whole. It opens no source.
	Imported(ctx context.Context, o importer.Owner) (importer.Result, bool, error)
	// Import makes the images of an archive appear, all or none.
	Import(ctx context.Context, src source.Blob, req importer.Request) (importer.Result, error)
	// Release drops what failed imports of the archive with this UID have kept.
	Release(ctx context.Context, uid string) error
}

// job is one thing that a worker does. All but releases ask for the runtime first.
type job struct {
	kind    jobKind
	uid     types.UID
	archive *v1alpha1.ImageArchive // not changed by anybody
	owner   importer.Owner
}

type jobKind int

const (
	jobProbe   jobKind = iota // asks for the runtime only
	jobRelease                // drops leftovers
	jobCheck                  // asks whether the images are there
	jobImport                 // opens the source and imports
)

func (k jobKind) String() string {
	return [...]string{"probe", "release", "check", "import"}[k]
}

// outcome is what became of a job.
type outcome struct {
	job      *job
	err      error
	stopped  bool // it was told to stop, so that err means nothing
	runtime  *importer.Runtime
	whole    bool // of a check
	result   importer.Result
	read     int64 // bytes taken from the source
	duration time.Duration
}

// worker does one job at a time beside the reconciler, which stays free to watch and to report.
type worker struct {
	importer Importer
	open     func(context.Context, v1alpha1.Source) (source.Blob, error)
	metrics  *metrics

	mu       sync.Mutex
	base     context.Context // of all jobs; nil until the manager has started the worker
	wake     func()          // tells the reconciler that a job has ended
	jobs     sync.WaitGroup
	current  *job
	cancel   context.CancelFunc
	progress importer.Progress
	ended    *outcome // until the reconciler has collected it
}

// Start lets jobs begin until ctx ends, and returns when the last one has cleared up. It makes worker a Runnable.
func (w *worker) Start(ctx context.Context) error {
	w.mu.Lock()
	w.base = ctx
	wake := w.wake
	w.mu.Unlock()
	if wake != nil {
		wake()
	}
	<-ctx.Done()
	w.mu.Lock() // from here on no job begins that Wait would miss
	w.base = nil
	w.mu.Unlock()
	w.jobs.Wait()
	return nil
}

// onWake sets whom to tell when a job has ended.
func (w *worker) onWake(wake func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wake = wake
}

// begin starts a job. It is refused while another one runs or has not been collected, and when the worker is not up.
func (w *worker) begin(j *job) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.base == nil || w.base.Err() != nil || w.current != nil || w.ended != nil {
		return false
	}
	ctx, cancel := context.WithCancel(w.base)
	w.current, w.cancel, w.progress = j, cancel, importer.Progress{Phase: importer.PhaseIndexing}
	w.jobs.Go(func() {
		defer cancel()
		o := w.do(ctx, j)
		o.stopped = ctx.Err() != nil
		w.mu.Lock()
		w.current, w.ended = nil, o
		wake := w.wake
		w.mu.Unlock()
		if wake != nil {
			wake()
		}
	})
	return true
}

// stop tells the running job to end; it has when collect returns its outcome. It says whether that is news to the job.
func (w *worker) stop() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.current == nil || w.cancel == nil {
		return false
	}
	w.cancel()
	w.cancel = nil
	return true
}

// collect returns the outcome of a job that has ended, once.
func (w *worker) collect() *outcome {
	w.mu.Lock()
	defer w.mu.Unlock()
	o := w.ended
	w.ended = nil
	return o
}

// running is the job that runs, nil for none, and how far it is.
func (w *worker) running() (*job, importer.Progress) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.current, w.progress
}

func (w *worker) do(ctx context.Context, j *job) *outcome {
	o := &outcome{job: j}
	begin := time.Now()
	defer func() { o.duration = time.Since(begin) }()
	if j.kind == jobRelease {
		o.err = within(ctx, workTimeout, func(ctx context.Context) error { return w.importer.Release(ctx, string(j.uid)) })
		return o
	}
	var runtime importer.Runtime
	o.err = within(ctx, askTimeout, func(ctx context.Context) (err error) {
		runtime, err = w.importer.Runtime(ctx)
		return err
	})
	if o.err != nil {
		return o
	}
	o.runtime = &runtime
	switch j.kind {
	case jobCheck:
		o.err = within(ctx, workTimeout, func(ctx context.Context) (err error) {
			o.result, o.whole, err = w.importer.Imported(ctx, j.owner)
			return err
		})
	case jobImport:
		w.metrics.inProgress.Inc()
		defer w.metrics.inProgress.Dec()
		w.importArchive(ctx, j, o)
	}
	return o
}

const (
	// askTimeout is how long containerd may take to say who it is, which takes it milliseconds.
	askTimeout = 30 * time.Second
	// workTimeout is how long containerd may take over what no progress is seen of: going through the content of all
	// images of an archive, and deleting what a lease held. Both take seconds on a slow disk.
	workTimeout = 5 * time.Minute
)

// within runs a call of containerd that has this long. One that hangs is as good as none that answers.
func within(ctx context.Context, limit time.Duration, call func(context.Context) error) error {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := call(limited)
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		return fmt.Errorf("no answer within %s: %w", limit, importer.ErrRuntimeUnavailable)
	}
	return err
}

func (w *worker) importArchive(ctx context.Context, j *job, o *outcome) {
	blob, err := w.open(ctx, j.archive.Spec.Source)
	if err != nil {
		o.err = err
		return
	}
	defer blob.Close()
	defer func() { o.read = blob.BytesRead() }()

	phases := phaseTimer{metrics: w.metrics}
	defer phases.end()
	req := requestFor(j.archive)
	req.Owner = j.owner
	req.Progress = func(p importer.Progress) {
		w.mu.Lock()
		defer w.mu.Unlock()
		phases.enter(p.Phase)
		w.progress = p
	}
	o.result, o.err = w.importer.Import(ctx, blob, req)
}
