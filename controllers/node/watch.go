package node

import (
	"context"
	"sync"
	"time"

	"github.com/go-logr/logr"

	"github.com/tarlift/tarlift/controllers/condition"
)

const (
	// debounceTime is how long changes are collected that follow each other: removing an image by hand takes several.
	debounceTime = time.Second
	// maxChanges bounds the names that are remembered meanwhile: beyond, everything counts as changed.
	maxChanges = 4096
)

// changes are what has changed in containerd, and when.
type changes struct {
	names map[string]time.Time // of images; "" is a snapshot that is gone
	all   time.Time            // zero: nothing else; otherwise there may be changes that were not seen
}

// watcher follows what others do to images, so that losses are noticed as they happen.
type watcher struct {
	importer Importer
	changed  func(changes)
	jitter   func() float64
	log      logr.Logger

	mu    sync.Mutex
	timer *time.Timer // nil: nothing has changed since changed was called
	seen  changes
}

// Start watches until ctx ends, over as many connections as it takes. It makes watcher a Runnable.
func (w *watcher) Start(ctx context.Context) error {
	var failures backoff
	for ctx.Err() == nil {
		begin := time.Now()
		// What happened while nobody watched is missed. A connection takes milliseconds, and one that fails most often does
		// so sooner.
		missed := time.AfterFunc(debounceTime, func() { w.note(func(now time.Time) { w.seen.all = now }) })
		err := w.importer.Watch(ctx, func(name string) { w.note(func(now time.Time) { w.seen.add(name, now) }) })
		missed.Stop()
		if ctx.Err() != nil {
			break
		}
		now := time.Now()
		if now.Sub(begin) > runtimeRetryLimit {
			failures.reset()
		}
		failures.failed(now, runtimeRetryLimit, w.jitter)
		if err != nil && failures.failures == 1 {
			w.log.Error(nil, "Lost containerd's events; trying again", "error", condition.ErrorText(err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(failures.readyAt.Sub(now)):
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer != nil {
		w.timer.Stop()
	}
	return nil
}

func (c *changes) add(name string, now time.Time) {
	if c.names == nil {
		c.names = map[string]time.Time{}
	}
	if c.names[name] = now; len(c.names) > maxChanges {
		*c = changes{all: now}
	}
}

// note takes down a change; the first since the last call of changed sets the time of the next.
func (w *watcher) note(take func(now time.Time)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	take(time.Now())
	if w.timer != nil {
		return
	}
	w.timer = time.AfterFunc(debounceTime, func() {
		w.mu.Lock()
		seen := w.seen
		w.seen, w.timer = changes{}, nil
		w.mu.Unlock()
		w.changed(seen)
	})
}
