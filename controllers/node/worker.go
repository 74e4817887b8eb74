package node

import (
	"context"
	"fmt"
	"runtime/debug"
	"slices"
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
	// Imported says whether an owner's images are there, and what of them is missing, in words: nothing if they are whole.
	// It opens no source.
	Imported(ctx context.Context, o importer.Owner) (r importer.Result, loss string, found bool, err error)
	// Repair gives images that are there back what they have lost and needs no source: pins and labels.
	Repair(ctx context.Context, o importer.Owner) (repaired int, err error)
	// Import publishes the images of an archive, each name complete or not at all. A repetition writes what is missing.
	Import(ctx context.Context, src source.Blob, req importer.Request) (importer.Result, error)
	// Release drops what failed imports of the archive with this UID have kept.
	Release(ctx context.Context, uid string) error
	// Sweep ends the claims on images of all owners but the wanted, as each one's deletion policy says, drops what failed
	// imports of theirs have kept, and records the wanted ones' policies. Owners whose UID known does not say yes to are
	// skipped, since nobody can say whether they are wanted.
	Sweep(ctx context.Context, wanted []importer.Owner, known func(uid string) bool) ([]importer.Released, error)
	// Watch tells the name of each image that is changed or deleted, and "" for each snapshot that is deleted, until ctx
	// ends or containerd does.
	Watch(ctx context.Context, changed func(name string)) error
}

// job is one thing that a worker does. What asks containerd, but for releases, asks who it is first.
type job struct {
	kind      jobKind
	uid       types.UID              // of the archive, empty for a sweep
	archive   *v1alpha1.ImageArchive // not changed by anybody
	owner     importer.Owner
	wanted    []importer.Owner // of a sweep
	unknown   unknown          // when it began
	repair    bool             // before a check: what needs no source
	names     []string         // that are known to be published for the owner
	validator string           // of the source as it was, for a probe
}

type jobKind int

const (
	jobRelease jobKind = iota // drops leftovers
	jobSweep                  // ends claims on images that nobody wants any more
	jobCheck                  // asks whether the images are there
	jobImport                 // opens the source and imports
	jobProbe                  // asks the source whether it has changed
)

func (k jobKind) String() string {
	return [...]string{"release", "sweep", "check", "import", "probe"}[k]
}

// outcome is what became of a job.
type outcome struct {
	job      *job
	err      error
	stopped  bool      // it was told to stop, so that err means nothing
	at       time.Time // as of when it tells what containerd has: a check's beginning, an import's end
	runtime  *importer.Runtime
	found    bool                // of a check: images of the owner are there
	loss     string              // and what of them is missing, empty for nothing
	repaired int                 // images
	released []importer.Released // by a sweep
	result   importer.Result
	opened   bool  // of an import: the source could be opened
	read     int64 // bytes taken from it
	changed  bool  // of a probe
	duration time.Duration

	validator string // of the source that was opened
}

// worker does jobs beside the reconciler, which stays free to watch and to report. Which ones, and how many at a time,
// the agenda decides; of one archive there is never more than one.
type worker struct {
	importer Importer
	open     func(context.Context, v1alpha1.Source) (source.Blob, error)
	changed  func(ctx context.Context, s v1alpha1.Source, validator string) (bool, error)
	metrics  *metrics

	mu    sync.Mutex
	base  context.Context // of all jobs; nil until the manager has started the worker
	wake  func()          // tells the reconciler that a job has ended
	jobs  sync.WaitGroup
	tasks []*task // until the reconciler has collected their outcomes, in the order in which they began
}

// task is a job from its beginning until its outcome is collected.
type task struct {
	*job
	cancel   context.CancelFunc
	stopping bool         // it has been told to end
	read     func() int64 // bytes taken from the source; nil until that is open
	progress importer.Progress
	pulse    pulse
	outcome  *outcome // nil while it runs
}

// activity is a task as it was looked at.
type activity struct {
	*job
	progress importer.Progress
	moved    time.Time // when an import was last seen to make progress
	stopping bool      // it has been told to end, or has
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

// begin starts a job. It is refused until the outcome of the last one of the same archive has been collected, and when
// the worker is not up.
func (w *worker) begin(j *job) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.base == nil || w.base.Err() != nil || w.taskOf(j.uid) != nil {
		return false
	}
	ctx, cancel := context.WithCancel(w.base)
	t := &task{job: j, cancel: cancel, progress: importer.Progress{Phase: importer.PhaseIndexing}, pulse: pulse{at: time.Now()}}
	w.tasks = append(w.tasks, t)
	w.jobs.Go(func() {
		defer cancel()
		o := w.do(ctx, t)
		o.stopped = ctx.Err() != nil
		w.mu.Lock()
		t.outcome = o
		wake, idle := w.wake, !slices.ContainsFunc(w.tasks, func(t *task) bool { return t.outcome == nil })
		w.mu.Unlock()
		if wake != nil {
			wake()
		}
		if idle && j.kind == jobImport {
			debug.FreeOSMemory() // until the next archive the node has better use for it
		}
	})
	return true
}

func (w *worker) taskOf(uid types.UID) *task {
	for _, t := range w.tasks {
		if t.uid == uid {
			return t
		}
	}
	return nil
}

// stop tells the job of an archive to end; it has when collect returns its outcome.
func (w *worker) stop(uid types.UID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if t := w.taskOf(uid); t != nil {
		t.stopping = true
		t.cancel()
	}
}

// collect returns the outcomes of the jobs that have ended, each once.
func (w *worker) collect() []*outcome {
	w.mu.Lock()
	defer w.mu.Unlock()
	var ended []*outcome
	w.tasks = slices.DeleteFunc(w.tasks, func(t *task) bool {
		if t.outcome != nil {
			ended = append(ended, t.outcome)
		}
		return t.outcome != nil
	})
	return ended
}

// running is what the worker does, in the order in which it began. A job that has ended is part of it until it is
// collected: before, nobody knows what is to follow.
func (w *worker) running(now time.Time) []activity {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := make([]activity, len(w.tasks))
	for i, t := range w.tasks {
		var read int64
		if t.read != nil {
			read = t.read()
		}
		t.pulse.look(now, t.progress, read)
		list[i] = activity{t.job, t.progress, t.pulse.at, t.stopping || t.outcome != nil}
	}
	return list
}

func (w *worker) do(ctx context.Context, t *task) *outcome {
	begin := time.Now()
	o := &outcome{job: t.job, at: begin}
	defer func() { o.duration = time.Since(begin) }()
	switch t.kind {
	case jobProbe:
		o.changed, o.err = w.probe(ctx, t)
		return o
	case jobRelease:
		o.err = within(ctx, workTimeout, func(ctx context.Context) error { return w.importer.Release(ctx, string(t.uid)) })
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
	switch t.kind {
	case jobSweep:
		o.err = within(ctx, workTimeout, func(ctx context.Context) (err error) {
			o.released, err = w.importer.Sweep(ctx, t.wanted, t.unknown.among)
			return err
		})
	case jobCheck:
		o.err = within(ctx, workTimeout, func(ctx context.Context) error { return w.check(ctx, t, o) })
		w.measure(ctx)
	case jobImport:
		w.metrics.inProgress.Inc()
		defer w.metrics.inProgress.Dec()
		w.importArchive(ctx, t, o)
		w.measure(ctx)
	}
	return o
}

const (
	// askTimeout is how long containerd may take to say who it is, which takes it milliseconds.
	askTimeout = 30 * time.Second
	// workTimeout is how long containerd may take over what no progress is seen of: going through the content of all
	// images of an archive, and deleting what leases held. Both take seconds on a slow disk.
	workTimeout = 5 * time.Minute
	// probeTimeout is how long a source may take to say whether it has changed; an object store that has to bring back a
	// cold object takes seconds.
	probeTimeout = 30 * time.Second
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

func (w *worker) check(ctx context.Context, t *task, o *outcome) (err error) {
	if t.repair {
		if o.repaired, err = w.importer.Repair(ctx, t.owner); err != nil {
			return err
		}
		o.at = time.Now() // what the repair has changed needs no other look
	}
	o.result, o.loss, o.found, err = w.importer.Imported(ctx, t.owner)
	return err
}

func (w *worker) probe(ctx context.Context, t *task) (bool, error) {
	limited, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	changed, err := w.changed(limited, t.archive.Spec.Source, t.validator)
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		return false, fmt.Errorf("no answer within %s: %w", probeTimeout, source.ErrUnavailable)
	}
	return changed, err
}

func (w *worker) importArchive(ctx context.Context, t *task, o *outcome) {
	defer func() { o.at = time.Now() }()
	blob, err := w.open(ctx, t.archive.Spec.Source)
	if err != nil {
		o.err = err
		return
	}
	defer blob.Close()
	o.opened, o.validator = true, blob.Validator()
	defer func() { o.read = blob.BytesRead() }()
	w.mu.Lock()
	t.read = blob.BytesRead
	w.mu.Unlock()

	phases := phaseTimer{metrics: w.metrics}
	defer phases.end()
	req := requestFor(t.archive)
	req.Owner, req.Owned = t.owner, t.names
	req.Progress = func(p importer.Progress) {
		w.mu.Lock()
		defer w.mu.Unlock()
		phases.enter(p.Phase)
		t.progress = p
	}
	o.result, o.err = w.importer.Import(ctx, blob, req)
}

// measure takes down how much room containerd has. It costs a question and a system call, so it goes with what is done
// anyway; of an importer that does not tell, and of disks that it cannot see, nothing is said.
func (w *worker) measure(ctx context.Context) {
	teller, ok := w.importer.(interface {
		Disks(context.Context, *importer.Plan, importer.Request) ([]*importer.Disk, error)
	})
	if !ok {
		return
	}
	limited, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	disks, err := teller.Disks(limited, &importer.Plan{}, importer.Request{})
	if err != nil {
		return
	}
	for _, d := range disks {
		if d.Unknown == "" && len(d.Roots) > 0 {
			w.metrics.diskFree.WithLabelValues(d.Roots[0]).Set(float64(d.Free))
			w.metrics.diskReserve.WithLabelValues(d.Roots[0]).Set(float64(d.Reserve))
		}
	}
}
