package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
)

// startWatcher runs a watcher until the test ends; each value of the channel is what it tells of.
func startWatcher(t *testing.T, watch func(context.Context, func(string)) error) chan changes {
	t.Helper()
	told := make(chan changes, 100)
	w := &watcher{importer: &fakeContainerd{watching: watch}, jitter: noJitter, log: logr.Discard(), changed: func(c changes) { told <- c }}
	ctx, cancel := context.WithCancel(t.Context())
	var started sync.WaitGroup
	started.Go(func() {
		if err := w.Start(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); started.Wait() })
	return told
}

func TestWatcherCollects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		names := make(chan string)
		told := startWatcher(t, func(ctx context.Context, changed func(string)) error {
			for {
				select {
				case <-ctx.Done():
					return nil
				case name := <-names:
					changed(name)
				}
			}
		})
		begin := time.Now()
		if c := <-told; c.all.IsZero() || time.Since(begin) != 2*debounceTime { // what was missed before the connection
			t.Errorf("%+v after %s", c, time.Since(begin))
		}
		begin = time.Now()
		names <- "a"
		names <- ""
		time.Sleep(debounceTime / 2)
		names <- "a"
		c := <-told
		if len(c.names) != 2 || !c.all.IsZero() || time.Since(begin) != debounceTime || c.names["a"].Sub(begin) != debounceTime/2 {
			t.Errorf("%+v after %s", c, time.Since(begin))
		}
		for i := range maxChanges + 1 {
			names <- fmt.Sprint(i)
		}
		if c := <-told; len(c.names) > 0 || c.all.IsZero() {
			t.Errorf("%d names: so many that everything counts as changed", len(c.names))
		}
		time.Sleep(time.Hour)
		if len(told) > 0 {
			t.Error("told of nothing")
		}
	})
}

// A containerd that is away is asked again with growing waits, and only a connection that holds tells that something
// may have been missed.
func TestWatcherReconnects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		var attempts []time.Duration
		told := startWatcher(t, func(ctx context.Context, _ func(string)) error {
			attempts = append(attempts, time.Since(begin))
			if len(attempts) < 5 {
				return errors.New("connection refused")
			}
			<-ctx.Done()
			return nil
		})
		c := <-told
		synctest.Wait()
		want := []time.Duration{0, 2 * time.Second, 6 * time.Second, 14 * time.Second, 29 * time.Second}
		if fmt.Sprint(attempts) != fmt.Sprint(want) {
			t.Errorf("attempts after %v, want %v", attempts, want)
		}
		if c.all.Sub(begin) != want[4]+debounceTime || len(told) > 0 {
			t.Errorf("%+v, and %d times more", c, len(told))
		}
	})
}
