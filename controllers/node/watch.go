package node

import (
	"context"
	"sync"
	"time"

	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/tarlift/tarlift/controllers/condition"
)

const (
	// debounceTime is how long changes are collected that follow each other: removing an image by hand takes several.
	debounceTime = time.Second
	// maxDisturbed bounds the names that are remembered meanwhile: beyond, all is looked at.
	maxDisturbed = 4096
)

// disturbance is what has changed in containerd, and when.
type disturbance struct {
	names map[string]time.Time // of images; "" is a snapshot that is gone
	all   time.Time            // zero: nothing else; otherwise there may be changes that were not seen
}

// watcher follows what others do to images, so that losses are noticed as they happen.
type watcher struct {
	importer Importer
	jitter   func() float64

	mu    sync.Mutex
	wake  func()      // tells the reconciler that something is to be collected
	timer *time.Timer // nil: nothing has changed since the last collection
	ripe  bool        // what has changed may be collected
	seen  disturbance
}

// Start watches until ctx ends, over as many connections as it takes. It makes watcher a Runnable.
func (w *watcher) Start(ctx context.Context) error {
	log := ctrl.LoggerFrom(ctx).WithName("watch")
	var failures attempt
	for ctx.Err() == nil {
		begin := time.Now()
		// What happened while nobody watched is missed. A connection takes milliseconds, and one that fails most often does
		// so sooner.
		missed := time.AfterFunc(debounceTime, w.missed)
		err := w.importer.Watch(ctx, w.changed)
		missed.Stop()
		if ctx.Err() != nil {
			break
		}
		now := time.Now()
		if now.Sub(begin) > runtimeRetryLimit {
			failures.reset()
		}
		failures.failed(now, runtimeRetryLimit, w.jitter)
		if err != nil && failures.tries == 1 {
			log.Info("Lost sight of containerd's events", "error", condition.ErrorText(err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(failures.notBefore.Sub(now)):
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer != nil {
		w.timer.Stop()
	}
	return nil
}

// onWake sets whom to tell.
func (w *watcher) onWake(wake func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wake = wake
}

func (w *watcher) changed(name string) {
	w.note(func(now time.Time) {
		if w.seen.names == nil {
			w.seen.names = map[string]time.Time{}
		}
		if w.seen.names[name] = now; len(w.seen.names) > maxDisturbed {
			w.seen = disturbance{all: now}
		}
	})
}

func (w *watcher) missed() { w.note(func(now time.Time) { w.seen.all = now }) }

// note takes down a change; the first since the last collection sets the time of the next.
func (w *watcher) note(take func(now time.Time)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	take(time.Now())
	if w.timer != nil {
		return
	}
	w.timer = time.AfterFunc(debounceTime, func() {
		w.mu.Lock()
		w.ripe = true
		wake := w.wake
		w.mu.Unlock()
		if wake != nil {
			wake()
		}
	})
}

// collect returns what has changed, each change once, when it is time.
func (w *watcher) collect() disturbance {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.ripe {
		return disturbance{}
	}
	d := w.seen
	w.seen, w.timer, w.ripe = disturbance{}, nil, false
	return d
}
