package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/internal/reason"
	"github.com/tarlift/tarlift/internal/source"
)

// Importer is what the agent needs of containerd; *importer.Importer is one.
type Importer interface {
	// Runtime asks containerd who it is.
	Runtime(ctx context.Context) (importer.Runtime, error)
	// Imported says whether an owner's images are there, and what of them is missing, in words: nothing if they are complete.
	// It opens no source.
	Imported(ctx context.Context, o importer.Owner) (r importer.Result, missing string, found bool, err error)
	// Repair gives images that are there back what they have lost and needs no source: pins and labels.
	Repair(ctx context.Context, o importer.Owner) (repaired int, err error)
	// Import publishes the images of an archive, each name complete or not at all. A repetition writes what is missing.
	Import(ctx context.Context, src source.Blob, req importer.Request) (importer.Result, error)
	// Release drops what failed imports of the owner with this UID have kept.
	Release(ctx context.Context, uid string) error
	// Sweep ends the claims on images of all owners but the wanted, as each one's deletion policy says, drops what failed
	// imports of theirs have kept, and records the wanted ones' policies. Owners whose UID known does not say yes to are
	// skipped, since nobody can say whether they are wanted.
	Sweep(ctx context.Context, wanted []importer.Owner, known func(uid string) bool) ([]importer.Released, error)
	// Watch tells the name of each image that is changed or deleted, and "" for each snapshot that is deleted, until ctx
	// ends or containerd does.
	Watch(ctx context.Context, changed func(name string)) error
}

var _ Importer = (*importer.Importer)(nil)

const (
	// askTimeout is how long containerd may take to say who it is, which takes it milliseconds.
	askTimeout = 30 * time.Second
	// workTimeout is how long containerd may take over what shows no progress: going through the content of all images
	// of an archive, and deleting what leases held. Both take seconds on a slow disk.
	workTimeout = 5 * time.Minute
	// probeTimeout is how long a source may take to say whether it has changed; an object store that has to restore a
	// cold object takes seconds.
	probeTimeout = 30 * time.Second
)

// syncer brings archives onto the node, one state for each. What asks containerd it does at once; imports and probes of
// sources run in its pool.
type syncer struct {
	importer Importer
	resolve  func(context.Context, v1alpha1.Source) (Location, error)
	metrics  *metrics
	events   *events
	interval time.Duration // between checks, see archiveState
	now      func() time.Time
	jitter   func() float64
	log      logr.Logger
	// wake is called after the state of an archive changed, outside sync; with no name where a sweep is due.
	wake func(name string)
	// changed is called when there may be something to report.
	changed func()

	pool pool

	mu      sync.Mutex
	states  map[string]*archiveState // by name
	runtime *v1alpha1.RuntimeInfo    // nil: not known yet
}

// sync does what is to be done about an archive now. It returns when there will be more to do, 0 for when something changes.
// There is one call at a time for each name.
func (s *syncer) sync(ctx context.Context, w *want, restored *v1alpha1.ArchiveState) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.states[w.name]
	if st == nil {
		st = newState(w, s.interval, s.jitter)
		if restored != nil {
			st.restore(restored, s.now())
		}
		st.takeAdmission()
		s.states[w.name] = st
	} else {
		st.update(w, s.now())
	}
	for acted := false; ctx.Err() == nil; acted = true {
		action, wait := st.next(s.now())
		if acted || action != nothing {
			s.changed()
		}
		switch action {
		case nothing:
			return wait
		case stopping:
			j := st.job
			s.unlocked(func() { s.pool.stop(j) })
			return 0
		case release:
			s.release(ctx, st)
		case check, repair:
			s.check(ctx, st, action == repair)
		case importing:
			if !s.submitImport(ctx, st) {
				continue
			}
			return 0
		case probing:
			s.submitProbe(st)
			return 0
		}
	}
	return 0
}

// remove forgets an archive. It is false while a job of it has not ended: its end wakes the caller.
func (s *syncer) remove(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.states[name]
	if st == nil {
		return true
	}
	if j := st.job; j != nil {
		s.unlocked(func() { s.pool.stop(j) })
		if st.job != nil {
			return false
		}
	}
	delete(s.states, name)
	s.changed()
	return true
}

// unlocked calls f without the lock, which is held before and after.
func (s *syncer) unlocked(f func()) {
	s.mu.Unlock()
	defer s.mu.Lock()
	f()
}

// release drops what failed attempts have kept.
func (s *syncer) release(ctx context.Context, st *archiveState) {
	uid := st.owner().UID
	var err error
	s.unlocked(func() {
		err = within(ctx, workTimeout, func(ctx context.Context) error { return s.importer.Release(ctx, uid) })
	})
	if st.leftovers = err != nil; err != nil {
		st.releaseAt = s.now().Add(runtimeRetryLimit)
	}
}

// check asks containerd what it has of an archive, after a repair of what needs no source if that is wanted.
func (s *syncer) check(ctx context.Context, st *archiveState, repairs bool) {
	if st.requested != st.observed {
		st.observed, st.repairTried = st.requested, false
		st.reset()
	}
	owner, hash, f := st.owner(), st.owner().SpecHash, found{at: s.now()}
	var runtime importer.Runtime
	var err error
	s.unlocked(func() {
		err = within(ctx, askTimeout, func(ctx context.Context) (err error) {
			runtime, err = s.importer.Runtime(ctx)
			return err
		})
		if err == nil {
			err = within(ctx, workTimeout, func(ctx context.Context) (err error) {
				if repairs {
					if f.repaired, err = s.importer.Repair(ctx, owner); err != nil {
						return err
					}
					f.at = s.now() // what the repair has changed needs no other check
				}
				f.result, f.missing, f.there, err = s.importer.Imported(ctx, owner)
				return err
			})
		}
		s.metrics.measure(ctx, s.importer)
	})
	if ctx.Err() != nil || hash != st.owner().SpecHash {
		return
	}
	if err != nil {
		s.failed(st, err, false, repairs)
		return
	}
	const most = 128 // as the API server has it
	s.runtime = &v1alpha1.RuntimeInfo{
		Version: condition.ClipTo(runtime.Version, most), Snapshotter: condition.ClipTo(runtime.Snapshotter, most),
		Platform: condition.ClipTo(runtime.Platform, most),
	}
	e := st.handleCheck(f, repairs, s.now())
	s.tell(st, e, importer.Result{}, 0, f.repaired)
}

// failed notes a failure, and emits an Event if it is new.
func (s *syncer) failed(st *archiveState, err error, imported, repairs bool) {
	isNew := st.handleFailure(err, repairs, s.now())
	name, terminal := reason.Classify(err)
	if isNew || imported { // a containerd that is away is asked every few seconds
		s.log.Error(nil, map[bool]string{true: "Import failed", false: "Check failed"}[imported], "archive", st.name, "reason", name,
			"terminal", terminal, "attempt", st.entry.Attempts, "error", condition.ErrorText(err))
	}
	if isNew {
		s.events.add(st.want, corev1.EventTypeWarning, name, condition.ErrorText(err))
	}
}

// submitImport queues an import. It is false if there is something else to do first.
func (s *syncer) submitImport(ctx context.Context, st *archiveState) bool {
	var location Location
	var err error
	spec := st.source
	s.unlocked(func() { location, err = s.resolve(ctx, spec) })
	switch {
	case ctx.Err() != nil:
		return false
	case errors.Is(err, ErrSecretUnavailable): // nothing was tried yet
		st.waiting = "waiting for the API server to give the Secret of spec.source"
		st.failed(s.now(), secretRetryLimit, st.jitter)
		return false
	case err != nil:
		st.entry.Attempts++
		s.failed(st, err, true, false)
		return false
	}
	st.waiting = ""
	req := st.request
	req.Owned = slices.Clone(st.names)
	run := &importRun{syncer: s, st: st, name: st.name, generation: st.generation, request: req, location: location}
	s.submit(st, importing, &job{created: st.request.Owner.Created, yields: st.yields, run: run.run, moved: run.moved, end: run.end})
	return true
}

// secretRetryLimit bounds the wait before the API server is asked again for a Secret.
const secretRetryLimit = 10 * time.Second

func (s *syncer) submit(st *archiveState, kind action, j *job) {
	st.job, st.kind, st.jobHash = j, kind, st.owner().SpecHash
	s.unlocked(func() { s.pool.submit(j) })
}

func (s *syncer) submitProbe(st *archiveState) {
	var changed bool
	var err error
	spec, validator := st.source, st.validator
	s.submit(st, probing, &job{
		created: st.request.Owner.Created,
		moved:   func() (int64, bool) { return 0, false }, // it has a timeout of its own
		run: func(ctx context.Context) {
			ctx, cancel := context.WithTimeout(ctx, probeTimeout)
			defer cancel()
			var location Location
			if location, err = s.resolve(ctx, spec); err == nil {
				changed, err = location.Changed(ctx, validator)
			}
		},
		end: func(cause error) {
			s.ended(st, func(current bool) {
				if current && cause == nil {
					s.tell(st, st.handleProbe(changed, err, s.now()), importer.Result{}, 0, 0)
				}
			})
		},
	})
}

// ended takes over what became of a job, which is current unless the spec has changed meanwhile.
func (s *syncer) ended(st *archiveState, handle func(current bool)) {
	s.mu.Lock()
	current := st.jobHash == st.owner().SpecHash
	st.job, st.running = nil, nil
	handle(current)
	name := st.name
	s.mu.Unlock()
	s.wake(name)
	s.changed()
}

// importRun is one attempt at an import.
type importRun struct {
	*syncer
	st         *archiveState
	name       string
	generation int64
	request    importer.Request
	location   Location

	blob     source.Blob // nil until it is open
	result   importer.Result
	err      error
	at       time.Time // of the end
	duration time.Duration
}

func (r *importRun) run(ctx context.Context) {
	begin := r.now()
	r.mu.Lock()
	r.st.started(begin)
	r.mu.Unlock()
	r.changed()
	r.log.Info("Importing", "archive", r.name, "generation", r.generation)
	r.metrics.inProgress.Inc()
	defer r.metrics.inProgress.Dec()
	defer func() {
		r.at = r.now()
		r.duration = r.at.Sub(begin)
	}()
	blob, err := r.location.Open(ctx)
	if err != nil {
		r.err = err
		return
	}
	defer blob.Close()
	r.mu.Lock()
	r.blob = blob
	r.mu.Unlock()
	phases := phaseTimer{metrics: r.metrics}
	defer phases.end()
	r.request.Progress = func(p importer.Progress) {
		r.mu.Lock()
		defer r.mu.Unlock()
		phases.enter(p.Phase)
		if r.st.running != nil {
			*r.st.running = p
		}
	}
	r.result, r.err = r.importer.Import(ctx, blob, r.request)
	r.metrics.measure(ctx, r.importer)
}

// moved is how many bytes the import has read and unpacked. Only what waits for its source can lack progress.
func (r *importRun) moved() (int64, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.st.running
	if p == nil {
		return 0, true
	}
	bytes := p.Unpacked
	if r.blob != nil {
		bytes += r.blob.BytesRead()
	}
	return bytes, p.Phase == importer.PhaseIndexing || p.Phase == importer.PhaseTransferring
}

func (r *importRun) end(cause error) {
	r.ended(r.st, func(current bool) {
		st := r.st
		read := int64(0)
		if r.blob != nil {
			read = r.blob.BytesRead()
		}
		r.metrics.count(r, cause, read)
		switch {
		case !current || r.at.IsZero(): // it was made for another spec, or did not begin
		case r.err == nil:
			r.tell(st, st.handleImport(r.result, r.at, r.now()), r.result, r.duration, 0)
			if r.request.Owner.Deletion != st.owner().Deletion { // the import has recorded the former one
				r.wake("")
			}
			if f := r.result.Former; len(f.Deleted)+len(f.Unpinned)+len(f.InUse)+len(f.Retained) > 0 {
				r.events.add(st.want, corev1.EventTypeNormal, eventReasonReleased, releasedText(f))
			}
		case errors.Is(cause, errYield):
			st.yields++
			st.waiting = fmt.Sprintf("cancelled after %s without progress, since others waited; what it has brought is kept", stallTime)
			st.failed(r.now(), retryLimit, st.jitter)
		case cause == nil:
			st.yields = 0
			if r.blob != nil {
				st.validator = r.blob.Validator()
			}
			r.failed(st, r.err, true, false)
		}
	})
}

// tell logs and counts what happened to an archive, and emits an Event.
func (s *syncer) tell(st *archiveState, e outcome, r importer.Result, took time.Duration, repaired int) {
	typ, name, text := corev1.EventTypeNormal, "", ""
	switch e {
	case eventNone:
		return
	case eventImported:
		name, text = v1alpha1.ReasonImported, summary(r, took)
	case eventHealed:
		name, text = eventReasonHealed, condition.Count(repaired, "name")+" repaired, nothing read"
		kind := healedByRepair
		if took > 0 {
			name, text, kind = v1alpha1.ReasonImported, summary(r, took), healedByImport
		}
		s.metrics.heals.WithLabelValues(kind).Inc()
	case eventDrifted:
		typ, name, text = corev1.EventTypeWarning, v1alpha1.ReasonDrifted, st.missing
	case eventSourceChanged:
		name, text = eventReasonSourceChanged, "the source has another archive than before"
	}
	s.log.Info(name, "archive", st.name, "message", text)
	s.events.add(st.want, typ, name, text)
	if st.notVisible != "" && took > 0 {
		s.events.add(st.want, corev1.EventTypeWarning, v1alpha1.ReasonNotVisible, st.notVisible)
	}
}

// invalidate notes what others have changed in containerd, and wakes whom it concerns.
func (s *syncer) invalidate(c changes) {
	s.mu.Lock()
	var woken []string
	now := s.now()
	for name, st := range s.states {
		before, ready := st.invalidated, st.readyAt
		if st.invalidate(c, now); st.invalidated != before || st.readyAt != ready {
			woken = append(woken, name)
		}
	}
	s.mu.Unlock()
	for _, name := range woken {
		s.wake(name)
	}
}

// expects says whether images of an archive are still to come: what earlier archives of its name have brought is kept for it.
func (s *syncer) expects(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.states[name]
	return st == nil || st.expected()
}

// known is what is wanted of an archive as it was synced last.
func (s *syncer) known(name string) (w *want, found bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.states[name]; st != nil {
		return st.want, true
	}
	return nil, false
}

// owners are those of the ImageArchives that there are states of, by name.
func (s *syncer) owners() map[string]importer.Owner {
	s.mu.Lock()
	defer s.mu.Unlock()
	owners := map[string]importer.Owner{}
	for name, st := range s.states {
		if !v1alpha1.IsDropIn(name) {
			owners[name] = st.owner()
		}
	}
	return owners
}

// files are the names of the files that there are states of.
func (s *syncer) files() (names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range s.states {
		if v1alpha1.IsDropIn(name) {
			names = append(names, name)
		}
	}
	return names
}

// sweep ends the claims of owners of one kind, of ImageArchives or of files, that are not wanted.
func (s *syncer) sweep(ctx context.Context, files bool, wanted []importer.Owner) (skipped int, err error) {
	var released []importer.Released
	err = within(ctx, workTimeout, func(ctx context.Context) (err error) {
		released, err = s.importer.Sweep(ctx, wanted, func(uid string) bool { return isFileOwner(uid) == files })
		return err
	})
	for _, r := range released {
		if len(r.Skipped) > 0 {
			skipped++
			continue
		}
		ctrl.LoggerFrom(ctx).Info("Released", "archive", r.Owner.Name, "uid", r.Owner.UID, "retained", r.Retained,
			"unpinned", r.Unpinned, "deleted", r.Deleted, "inUse", r.InUse)
		s.events.add(&want{name: r.Owner.Name}, corev1.EventTypeNormal, eventReasonReleased, releasedText(r))
		s.changed()
	}
	return skipped, err
}

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
