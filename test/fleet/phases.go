package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/api/v1alpha1"
)

// archiveFile is what every node has in its archive directory.
const archiveFile = "archive.tar"

// phase is what was measured while something went on.
type phase struct {
	length   time.Duration // of the whole
	took     time.Duration // from apply until all archives were Ready; 0 where none were applied
	sent     workerReport
	server   metrics // what was counted meanwhile
	revision int64   // of etcd: writes of whomever
	archives map[string][]archiveWrite

	apiCPU, etcdCPU, controllerCPU, agentsCPU time.Duration
	apiMemory, etcdMemory, agentsMemory       int64 // the largest resident sets so far; the agents' together
	controllerMemory, controllerAnon          int64 // the largest so far; anonymous, at the end
}

// archiveWrite is one change of an ImageArchive, as a client sees it.
type archiveWrite struct {
	when           time.Time
	ready, stalled bool
	size           int // of the object as JSON
	messages       string
}

// follower sees every change of ImageArchives.
type follower struct {
	watch watch.Interface
	done  chan struct{} // closed when the watch has ended

	mu     sync.Mutex
	writes map[string][]archiveWrite
}

func (p *controlPlane) follow(ctx context.Context) (*follower, error) {
	w, err := p.client.Watch(ctx, &v1alpha1.ImageArchiveList{})
	if err != nil {
		return nil, fmt.Errorf("watch ImageArchives: %w", err)
	}
	f := &follower{watch: w, done: make(chan struct{}), writes: map[string][]archiveWrite{}}
	go func() {
		defer close(f.done)
		for event := range w.ResultChan() {
			if a, ok := event.Object.(*v1alpha1.ImageArchive); ok && event.Type == watch.Modified {
				f.take(a)
			}
		}
	}()
	return f, nil
}

func (f *follower) take(a *v1alpha1.ImageArchive) {
	text, _ := json.Marshal(a) // it was made of JSON
	ready := meta.FindStatusCondition(a.Status.Conditions, v1alpha1.ConditionReady)
	w := archiveWrite{
		when:    time.Now(),
		ready:   ready != nil && ready.Status == metav1.ConditionTrue && ready.ObservedGeneration == a.Generation,
		stalled: meta.IsStatusConditionTrue(a.Status.Conditions, v1alpha1.ConditionStalled),
		size:    len(text),
	}
	if ready != nil {
		w.messages = ready.Message
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.writes[a.Name] = append(f.writes[a.Name], w)
}

// of returns the writes of these archives so far.
func (f *follower) of(names []string) map[string][]archiveWrite {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := map[string][]archiveWrite{}
	for _, name := range names {
		m[name] = append([]archiveWrite(nil), f.writes[name]...)
	}
	return m
}

// waitReady returns when all of these were Ready once.
func (f *follower) waitReady(ctx context.Context, names []string) (last time.Time, err error) {
	for {
		last = time.Time{}
		missing, news := "", ""
		for name, writes := range f.of(names) {
			when := time.Time{}
			for _, w := range writes {
				if w.ready && when.IsZero() {
					when = w.when
				}
				news = w.messages
			}
			if when.IsZero() {
				missing = name + ": " + news
			}
			if when.After(last) {
				last = when
			}
		}
		if missing == "" {
			return last, nil
		}
		select {
		case <-ctx.Done():
			return last, fmt.Errorf("wait until %s is ready: %w", missing, ctx.Err())
		case <-f.done:
			return last, errors.New("the watch of ImageArchives has ended")
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// apply creates archives and waits until they are Ready and the agents have nothing more to tell.
func (f *fleet) apply(ctx context.Context, name string, specs map[string]v1alpha1.ImageArchiveSpec, patience time.Duration) (phase, error) {
	follower, err := f.plane.follow(ctx)
	if err != nil {
		return phase{}, err
	}
	defer follower.watch.Stop()
	return f.measure(ctx, name, func(p *phase) error {
		limited, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		begin := time.Now()
		var names []string
		for name, spec := range specs {
			names = append(names, name)
			a := &v1alpha1.ImageArchive{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}
			if err := f.plane.client.Create(ctx, a); err != nil {
				return err
			}
		}
		last, err := follower.waitReady(limited, names)
		if err != nil {
			return err
		}
		p.took = last.Sub(begin)
		if err := f.settle(ctx, p); err != nil {
			return err
		}
		p.archives = follower.of(names)
		return nil
	})
}

// settle returns when no agent has written for a while.
func (f *fleet) settle(ctx context.Context, p *phase) error {
	for last := time.Now(); time.Since(last) < f.quiet; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
		r, err := f.report(wordReport)
		if err != nil {
			return err
		}
		if len(r.Sent) > 0 {
			last = time.Now()
		}
		p.sent.add(r)
	}
	return nil
}

// measure does something and says what that took of whom.
func (f *fleet) measure(ctx context.Context, name string, do func(*phase) error) (p phase, err error) {
	p.sent = newReport(nil, nil)
	before, err := f.snapshot(ctx)
	if err != nil {
		return p, err
	}
	if _, err := f.report(wordBegin); err != nil {
		return p, err
	}
	profiled := f.profile(ctx, name)
	begin := time.Now()
	if err := do(&p); err != nil {
		return p, err
	}
	r, err := f.report(wordReport)
	if err != nil {
		return p, err
	}
	p.sent.add(r)
	p.length = time.Since(begin)
	after, err := f.snapshot(ctx)
	if err != nil {
		return p, err
	}
	p.server, p.revision = after.server.since(before.server), after.revision-before.revision
	if err := profiled(p.server); err != nil {
		return p, err
	}
	p.apiCPU, p.etcdCPU = after.apiCPU-before.apiCPU, after.etcdCPU-before.etcdCPU
	p.controllerCPU, p.agentsCPU = after.controllerCPU-before.controllerCPU, after.agentsCPU-before.agentsCPU
	p.apiMemory, p.etcdMemory, p.agentsMemory = after.apiMemory, after.etcdMemory, after.agentsMemory
	p.controllerMemory, p.controllerAnon = after.controllerMemory, after.controllerAnon
	return p, nil
}

// snapshot has counters and sizes as they are, in a phase of no length.
func (f *fleet) snapshot(ctx context.Context) (s phase, err error) {
	if s.server, err = f.plane.metrics(ctx); err != nil {
		return s, err
	}
	var list v1alpha1.ImageArchiveList
	if err := f.plane.client.List(ctx, &list, client.Limit(1)); err != nil {
		return s, err
	}
	if _, err := fmt.Sscan(list.ResourceVersion, &s.revision); err != nil {
		return s, fmt.Errorf("resource version %q: %w", list.ResourceVersion, err)
	}
	var errs []error
	cpu := func(sum *time.Duration, p process) {
		d, err := p.cpu()
		*sum, errs = *sum+d, append(errs, err)
	}
	memory := func(sum *int64, p process, key string) {
		n, err := p.memory(key)
		*sum, errs = *sum+n, append(errs, err)
	}
	cpu(&s.apiCPU, f.plane.apiServer)
	cpu(&s.etcdCPU, f.plane.etcd)
	cpu(&s.controllerCPU, f.controllerProcess())
	memory(&s.apiMemory, f.plane.apiServer, "VmHWM")
	memory(&s.etcdMemory, f.plane.etcd, "VmHWM")
	memory(&s.controllerMemory, f.controllerProcess(), "VmHWM")
	memory(&s.controllerAnon, f.controllerProcess(), "RssAnon")
	cpu(&s.agentsCPU, process(os.Getpid()))
	for _, w := range f.workers {
		cpu(&s.agentsCPU, w.process())
		memory(&s.agentsMemory, w.process(), "VmHWM")
	}
	return s, errors.Join(errs...)
}
