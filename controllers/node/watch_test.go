package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// startWatcher runs a watcher until the test ends; each value of the channel is a wake.
func startWatcher(t *testing.T, watch func(context.Context, func(string)) error) (*watcher, chan struct{}) {
	t.Helper()
	wakes := make(chan struct{}, 100)
	w := &watcher{importer: &fakeImporter{watch: watch}, jitter: noJitter}
	w.onWake(func() { wakes <- struct{}{} })
	ctx, cancel := context.WithCancel(t.Context())
	var started sync.WaitGroup
	started.Go(func() {
		if err := w.Start(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); started.Wait() })
	return w, wakes
}

func TestWatcherCollects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		changes := make(chan string)
		w, wakes := startWatcher(t, func(ctx context.Context, changed func(string)) error {
			for {
				select {
				case <-ctx.Done():
					return nil
				case name := <-changes:
					changed(name)
				}
			}
		})
		begin := time.Now()
		<-wakes // what was missed before the connection
		if d := w.collect(); d.all.IsZero() || time.Since(begin) != 2*debounceTime {
			t.Errorf("%+v after %s", d, time.Since(begin))
		}
		begin = time.Now()
		changes <- "a"
		changes <- ""
		time.Sleep(debounceTime / 2)
		changes <- "a"
		if d := w.collect(); len(d.names) > 0 {
			t.Errorf("%+v: it may go on", d)
		}
		<-wakes
		d := w.collect()
		if len(d.names) != 2 || !d.all.IsZero() || time.Since(begin) != debounceTime || d.names["a"].Sub(begin) != debounceTime/2 {
			t.Errorf("%+v after %s", d, time.Since(begin))
		}
		if d := w.collect(); len(d.names) > 0 {
			t.Errorf("%+v: twice", d)
		}
		for i := range maxDisturbed + 1 {
			changes <- fmt.Sprint(i)
		}
		<-wakes
		if d := w.collect(); len(d.names) > 0 || d.all.IsZero() {
			t.Errorf("%d names: so many that all is to be looked at", len(d.names))
		}
		time.Sleep(time.Hour)
		if len(wakes) > 0 {
			t.Error("woke for nothing")
		}
	})
}

// A containerd that is away is asked again with growing waits, and only a connection that holds tells that something
// may have been missed.
func TestWatcherReconnects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		var attempts []time.Duration
		w, wakes := startWatcher(t, func(ctx context.Context, _ func(string)) error {
			attempts = append(attempts, time.Since(begin))
			if len(attempts) < 5 {
				return errors.New("connection refused")
			}
			<-ctx.Done()
			return nil
		})
		<-wakes
		synctest.Wait()
		want := []time.Duration{0, 2 * time.Second, 6 * time.Second, 14 * time.Second, 29 * time.Second}
		if fmt.Sprint(attempts) != fmt.Sprint(want) {
			t.Errorf("attempts after %v, want %v", attempts, want)
		}
		if d := w.collect(); d.all.Sub(begin) != want[4]+debounceTime || len(wakes) > 0 {
			t.Errorf("%+v, %d wakes more", d, len(wakes))
		}
	})
}
