package node

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/internal/source"
)

// loop is a node's reconciler with its worker, without an API server and on synctest's clock.
type loop struct {
	*Reconciler
	t     *testing.T
	f     *fakeImporter
	view  nodeView
	wakes chan struct{}
	began time.Time

	mu    sync.Mutex
	ended map[string]time.Duration // since the loop began, of imports that went well
}

// newLoop imports archives that are called by what they do: "quick…" takes a second, "slow…" reads for an hour,
// "unpack…" unpacks for an hour, "silent…" gives nothing, "trickle…" a byte a second.
func newLoop(t *testing.T, l limits, archives ...string) *loop {
	lo := &loop{t: t, f: &fakeImporter{}, wakes: make(chan struct{}, 100), began: time.Now(), ended: map[string]time.Duration{}}
	lo.f.importing = lo.importArchive
	lo.Reconciler = &Reconciler{agenda: newAgenda(noJitter), watcher: &watcher{}, worker: &worker{
		importer: lo.f, open: openPlayed, metrics: newMetrics(prometheus.NewRegistry()),
		wake: func() { lo.wakes <- struct{}{} },
	}}
	lo.agenda.limits = l
	for i, name := range archives {
		lo.view.archives = append(lo.view.archives, newArchive(name, time.Duration(len(archives)-i)*time.Hour))
	}
	ctx, cancel := context.WithCancel(t.Context())
	var started sync.WaitGroup
	started.Go(func() {
		if err := lo.worker.Start(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); started.Wait() })
	return lo
}

// run reconciles as the manager would for a while.
func (lo *loop) run(d time.Duration) {
	ctx := ctrl.LoggerInto(lo.t.Context(), logr.Discard())
	for end := time.After(d); ; {
		now := time.Now()
		lo.takeIn(ctx, &lo.view, now)
		wait := lo.steer(ctx, now)
		if wait == 0 {
			wait = time.Hour
		}
		select {
		case <-end:
			return
		case <-lo.wakes:
		case <-time.After(wait):
		}
	}
}

// running are the archives that are being imported.
func (lo *loop) running() []string {
	var names []string
	for _, r := range lo.worker.running(time.Now()) {
		names = append(names, r.owner.Name)
	}
	return names
}

func (lo *loop) importArchive(ctx context.Context, b source.Blob, r importer.Request) (importer.Result, error) {
	phase, duration := importer.PhaseTransferring, time.Hour
	switch {
	case strings.HasPrefix(r.Owner.Name, "unpack"):
		phase = importer.PhaseUnpacking
	case strings.HasPrefix(r.Owner.Name, "quick"):
		duration = time.Second
	}
	r.Progress(importer.Progress{Phase: phase})
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // whoever opened the source closes it then
	done := make(chan struct{})
	go func() {
		defer close(done)
		consume(ctx, lo.t, b)
	}()
	select {
	case <-ctx.Done():
		<-done
		return importer.Result{}, ctx.Err()
	case <-time.After(duration):
	}
	lo.mu.Lock()
	defer lo.mu.Unlock()
	lo.ended[r.Owner.Name] = time.Since(lo.began)
	return importer.Result{}, nil
}

// consume reads until there is no more to come.
func consume(ctx context.Context, t *testing.T, b source.Blob) {
	s, err := b.Section(ctx, 0, -1)
	if err == nil {
		_, err = io.Copy(io.Discard, s)
	}
	if err != nil && ctx.Err() == nil {
		t.Error(err)
	}
}

// played is the bytes of an archive that come at a pace.
type played struct {
	piece int // bytes
	every time.Duration
	end   chan struct{}
}

func (p played) Read(b []byte) (int, error) {
	select {
	case <-p.end:
		return 0, io.EOF
	case <-time.After(p.every):
		return min(p.piece, len(b)), nil
	}
}

func (p played) Close() error { close(p.end); return nil }

func openPlayed(_ context.Context, s v1alpha1.Source) (source.Blob, error) {
	p := played{piece: 64 << 10, every: 100 * time.Millisecond, end: make(chan struct{})}
	switch {
	case strings.HasPrefix(s.File.Path, "silent"), strings.HasPrefix(s.File.Path, "unpack"):
		p.every = 24 * time.Hour
	case strings.HasPrefix(s.File.Path, "trickle"):
		p.piece, p.every = 1, time.Second
	}
	return source.OpenStream(p, s.File.Path), nil
}

// An import that stalls holds up no other one, which it would do if only one might run.
func TestStalledImportHoldsUpNoOther(t *testing.T) {
	const never = 0
	for _, test := range []struct {
		why      string
		limits   limits
		archives string
		want     time.Duration // when quick has been imported
	}{
		{"by itself", defaultLimits, "quick", time.Second},
		{"beside a stalled one: at once", defaultLimits, "silent quick", time.Second},
		{"beside a stalled one, if only one might run", limits{1, 1, 1}, "silent quick", never},
		{"beside two: when they have shown that they stall", defaultLimits, "silent-1 silent-2 quick", stallTime + time.Second},
		{"beside two that trickle", defaultLimits, "trickle-1 trickle-2 quick", stallTime + time.Second},
		{"beside seven", defaultLimits, "silent-1 silent-2 silent-3 silent-4 silent-5 silent-6 silent-7 quick", 3*stallTime + time.Second},
		{"beside eight: memory has its limit", defaultLimits, "silent-1 silent-2 silent-3 silent-4 silent-5 silent-6 silent-7 silent-8 quick", never},
		{"beside two that read", defaultLimits, "slow-1 slow-2 quick", never},
		{"beside two that unpack", defaultLimits, "unpack-1 unpack-2 quick", never},
		{"beside one of each", defaultLimits, "slow silent quick", stallTime + time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			lo := newLoop(t, test.limits, strings.Fields(test.archives)...)
			lo.run(time.Minute)
			lo.mu.Lock()
			defer lo.mu.Unlock()
			if got := lo.ended["quick"]; got != test.want {
				t.Errorf("%s: after %s, want %s", test.why, got, test.want)
			}
		})
	}
}

func TestStopsOnlyWhatIsNotWanted(t *testing.T) {
	suspend := func(a *v1alpha1.ImageArchive) { a.Spec.Suspend = true }
	for _, test := range []struct {
		why  string
		edit func(archives []*v1alpha1.ImageArchive) []*v1alpha1.ImageArchive
	}{
		{"deleted", func(all []*v1alpha1.ImageArchive) []*v1alpha1.ImageArchive { return all[1:] }},
		{"suspended", func(all []*v1alpha1.ImageArchive) []*v1alpha1.ImageArchive {
			return append([]*v1alpha1.ImageArchive{edited(all[0], suspend)}, all[1:]...)
		}},
	} {
		synctest.Test(t, func(t *testing.T) {
			lo := newLoop(t, defaultLimits, "silent-1", "silent-2", "slow")
			lo.run(time.Minute)
			if got := lo.running(); !slices.Equal(got, []string{"silent-1", "silent-2", "slow"}) {
				t.Fatalf("running %q", got)
			}
			lo.view.archives = test.edit(lo.view.archives)
			lo.run(time.Minute)
			if got := lo.running(); !slices.Equal(got, []string{"silent-2", "slow"}) {
				t.Errorf("%s: running %q", test.why, got)
			}
			for _, uid := range []types.UID{"uid-silent-2", "uid-slow"} {
				if e := lo.agenda.records[uid].entry; e.Attempts != 1 {
					t.Errorf("%s: %d attempts at %s", test.why, e.Attempts, uid)
				}
			}
			_, wanted := lo.f.asked()
			stays := slices.ContainsFunc(wanted, func(o importer.Owner) bool { return o.UID == "uid-silent-1" })
			if stays == (test.why == "deleted") || len(lo.f.released) > 0 {
				t.Errorf("%s: swept all but %v, released %q", test.why, wanted, lo.f.released)
			}
		})
	}
}

// A sweep that fails is tried again, and is told the archives of then. No import waits for it.
func TestSweepIsRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lo := newLoop(t, defaultLimits, "quick-1", "quick-2")
		lo.f.sweep = errors.New("no")
		lo.run(1500 * time.Millisecond)
		lo.f.sweep = nil
		lo.view.archives = lo.view.archives[:1]
		lo.run(time.Minute)
		var got []string
		for _, wanted := range lo.f.swept {
			for _, o := range wanted {
				got = append(got, o.Name+" "+o.UID)
			}
			got = append(got, "|")
		}
		first := []string{"quick-1 uid-quick-1", "quick-2 uid-quick-2", "quick-1 ", "quick-2 ", "|"}
		if want := append(first, "quick-1 uid-quick-1", "|"); !slices.Equal(got, want) {
			t.Errorf("wanted %q, want %q", got, want)
		}
		lo.mu.Lock()
		defer lo.mu.Unlock()
		if got := lo.ended["quick-1"]; got != time.Second {
			t.Errorf("imported after %s", got)
		}
	})
}
