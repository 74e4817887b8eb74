package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/internal/source"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeImporter does what a test tells it to.
type fakeImporter struct {
	runtime   error
	hang      string // the method that containerd does not answer
	found     bool
	loss      string
	repairing time.Duration
	importing func(context.Context, source.Blob, importer.Request) (importer.Result, error)
	released  []string
	sweep     error
	swept     [][]importer.Owner
	known     []string // to sweeps
	mu        sync.Mutex
	repaired  int
	watch     func(ctx context.Context, changed func(string)) error
}

// ask is how long containerd takes to answer.
func (f *fakeImporter) ask(ctx context.Context, method string) error {
	if f.hang != method {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

// asked is of whose archives sweeps knew, and who was wanted at the last one.
func (f *fakeImporter) asked() (known []string, wanted []importer.Owner) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := len(f.swept); n > 0 {
		wanted = f.swept[n-1]
	}
	return slices.Clone(f.known), wanted
}

func (f *fakeImporter) Runtime(ctx context.Context) (importer.Runtime, error) {
	if err := f.ask(ctx, "Runtime"); err != nil {
		return importer.Runtime{}, err
	}
	return importer.Runtime{Version: "v2"}, f.runtime
}

func (f *fakeImporter) Imported(ctx context.Context, _ importer.Owner) (importer.Result, string, bool, error) {
	return importer.Result{}, f.loss, f.found, f.ask(ctx, "Imported")
}

func (f *fakeImporter) Import(ctx context.Context, b source.Blob, r importer.Request) (importer.Result, error) {
	return f.importing(ctx, b, r)
}

func (f *fakeImporter) Repair(ctx context.Context, _ importer.Owner) (int, error) {
	f.repaired++
	time.Sleep(f.repairing)
	return 1, f.ask(ctx, "Repair")
}

func (f *fakeImporter) Sweep(ctx context.Context, wanted []importer.Owner, known func(string) bool) ([]importer.Released, error) {
	f.mu.Lock()
	f.swept, f.known = append(f.swept, wanted), append(f.known, knownText(known))
	f.mu.Unlock()
	return nil, errors.Join(f.ask(ctx, "Sweep"), f.sweep)
}

func (f *fakeImporter) Watch(ctx context.Context, changed func(string)) error {
	if f.watch != nil {
		return f.watch(ctx, changed)
	}
	<-ctx.Done()
	return nil
}

func (f *fakeImporter) Release(ctx context.Context, uid string) error {
	f.released = append(f.released, uid)
	return f.ask(ctx, "Release")
}

// startWorker runs a worker until the test ends. Each value of the channel is a wake.
func startWorker(t *testing.T, f *fakeImporter) (*worker, *prometheus.Registry, chan struct{}) {
	t.Helper()
	registry := prometheus.NewRegistry()
	wakes := make(chan struct{}, 10)
	w := &worker{importer: f, metrics: newMetrics(registry), open: func(context.Context, v1alpha1.Source) (source.Blob, error) {
		return source.OpenStream(strings.NewReader("archive"), "test"), nil
	}}
	w.onWake(func() { wakes <- struct{}{} })
	ctx, cancel := context.WithCancel(t.Context())
	var started sync.WaitGroup
	started.Go(func() {
		if err := w.Start(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); started.Wait() })
	<-wakes
	return w, registry, wakes
}

func importJob() *job {
	a := newArchive("a", 0)
	return &job{kind: jobImport, uid: a.UID, archive: a, owner: importer.Owner{UID: "uid-a", SpecHash: "7"}}
}

func TestWorkerImports(t *testing.T) {
	release := make(chan struct{})
	f := &fakeImporter{importing: func(_ context.Context, b source.Blob, r importer.Request) (importer.Result, error) {
		if r.Owner.SpecHash != "7" || !r.Keep {
			t.Errorf("request %+v", r)
		}
		s, err := b.Section(t.Context(), 0, -1)
		if err != nil {
			t.Error(err)
		}
		buf := make([]byte, 3)
		if _, err := s.Read(buf); err != nil {
			t.Error(err)
		}
		r.Progress(importer.Progress{Phase: importer.PhaseTransferring, Done: 3})
		<-release
		r.Progress(importer.Progress{Phase: importer.PhaseUnpacking, Done: 3})
		return importer.Result{Bytes: importer.Bytes{Written: 2, Skipped: 1}}, nil
	}}
	w, registry, wakes := startWorker(t, f)
	if !w.begin(importJob()) {
		t.Fatal("refused the first job")
	}
	if w.begin(importJob()) {
		t.Error("took a second job of the same archive")
	}
	if !w.begin(&job{kind: jobSweep}) {
		t.Fatal("refused another job")
	}
	<-wakes
	if ended := w.collect(); len(ended) != 1 || ended[0].job.kind != jobSweep {
		t.Fatalf("ended %+v", ended)
	}
	if r := w.running(time.Now()); len(r) != 1 || r[0].kind != jobImport || r[0].stopping {
		t.Errorf("running %+v", r)
	}
	close(release)
	<-wakes
	if w.begin(importJob()) {
		t.Error("took a job before the outcome of the last one of this archive was collected")
	}
	if r := w.running(time.Now()); len(r) != 1 || !r[0].stopping || r[0].progress.Phase != importer.PhaseUnpacking {
		t.Errorf("ended, and not collected: %+v", r)
	}
	ended := w.collect()
	if len(ended) != 1 || len(w.collect()) != 0 || len(w.running(time.Now())) != 0 {
		t.Fatalf("collected %+v", ended)
	}
	o := ended[0]
	if o.err != nil || o.stopped || o.result.Bytes.Written != 2 || o.runtime.Version != "v2" || o.read == 0 {
		t.Fatalf("outcome %+v", o)
	}
	w.metrics.count(o)
	want := `
		# HELP tarlift_imports_total Attempts at an import that ended, by reason; Imported is success.
		# TYPE tarlift_imports_total counter
		tarlift_imports_total{reason="Imported"} 1
		# HELP tarlift_skipped_bytes_total Bytes of needed blobs that were present before successful imports.
		# TYPE tarlift_skipped_bytes_total counter
		tarlift_skipped_bytes_total 1
		# HELP tarlift_written_bytes_total Bytes committed to containerd's content store by successful imports.
		# TYPE tarlift_written_bytes_total counter
		tarlift_written_bytes_total 2
		# HELP tarlift_imports_in_progress Imports that run now.
		# TYPE tarlift_imports_in_progress gauge
		tarlift_imports_in_progress 0
	`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "tarlift_imports_total", "tarlift_skipped_bytes_total",
		"tarlift_written_bytes_total", "tarlift_imports_in_progress"); err != nil {
		t.Error(err)
	}
	if n := testutil.CollectAndCount(w.metrics.phases); n != 2 {
		t.Errorf("%d phases were timed, want 2", n)
	}
	if problems, err := testutil.GatherAndLint(registry); err != nil || len(problems) > 0 {
		t.Errorf("metrics: %v %v", problems, err)
	}
}

func TestWorkerStops(t *testing.T) {
	began := make(chan struct{}, 2)
	f := &fakeImporter{importing: func(ctx context.Context, _ source.Blob, _ importer.Request) (importer.Result, error) {
		began <- struct{}{}
		<-ctx.Done()
		return importer.Result{}, errors.New("whatever came of it")
	}}
	w, registry, wakes := startWorker(t, f)
	other := importJob()
	other.uid = "uid-b"
	w.stop("uid-a") // nothing runs
	if !w.begin(importJob()) || !w.begin(other) {
		t.Fatal("refused")
	}
	<-began
	<-began
	w.stop("uid-a")
	w.stop("uid-a")
	<-wakes
	if ended := w.collect(); len(ended) != 1 || ended[0].job.uid != "uid-a" || !ended[0].stopped {
		t.Errorf("outcomes %+v", ended)
	}
	if r := w.running(time.Now()); len(r) != 1 || r[0].uid != "uid-b" || r[0].stopping {
		t.Errorf("running %+v", r)
	}
	want := "# HELP tarlift_imports_in_progress Imports that run now.\n# TYPE tarlift_imports_in_progress gauge\ntarlift_imports_in_progress 1\n"
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "tarlift_imports_in_progress"); err != nil {
		t.Error(err)
	}
}

func TestWorkerAsksForTheRuntimeFirst(t *testing.T) {
	f := &fakeImporter{runtime: importer.ErrRuntimeUnavailable}
	w, _, wakes := startWorker(t, f)
	w.open = func(context.Context, v1alpha1.Source) (source.Blob, error) {
		t.Error("opened the source without a containerd to import into")
		return nil, source.ErrUnavailable
	}
	for _, kind := range []jobKind{jobSweep, jobCheck, jobImport} {
		j := importJob()
		j.kind = kind
		w.begin(j)
		<-wakes
		if o := w.collect()[0]; !errors.Is(o.err, importer.ErrRuntimeUnavailable) || o.runtime != nil {
			t.Errorf("%s: %+v", kind, o)
		}
	}
	if len(f.swept) > 0 {
		t.Error("swept without a containerd")
	}
}

func TestHungContainerdIsUnavailable(t *testing.T) {
	for hang, kind := range map[string]jobKind{
		"Runtime": jobImport, "Imported": jobCheck, "Release": jobRelease, "Sweep": jobSweep, "Repair": jobCheck,
	} {
		synctest.Test(t, func(t *testing.T) {
			w := &worker{importer: &fakeImporter{hang: hang}}
			j := importJob()
			j.kind, j.repair = kind, hang == "Repair"
			if o := w.do(t.Context(), &task{job: j}); !errors.Is(o.err, importer.ErrRuntimeUnavailable) {
				t.Errorf("%s: %v", hang, o.err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if o := w.do(ctx, &task{job: j}); !errors.Is(o.err, context.Canceled) || errors.Is(o.err, importer.ErrRuntimeUnavailable) {
				t.Errorf("%s, told to stop: %v", hang, o.err)
			}
		})
	}
}

// What a repair writes, containerd tells of; the check that follows has seen it.
func TestWorkerRepairsThenChecks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeImporter{found: true, loss: lost, repairing: time.Second}
		w := &worker{importer: f}
		begin := time.Now()
		j := importJob()
		j.kind = jobCheck
		if o := w.do(t.Context(), &task{job: j}); o.err != nil || !o.found || o.loss != lost || o.repaired != 0 || !o.at.Equal(begin) {
			t.Errorf("a check alone: %+v", o)
		}
		j.repair = true
		if o := w.do(t.Context(), &task{job: j}); o.err != nil || o.repaired != 1 || o.at.Sub(begin) != time.Second || f.repaired != 1 {
			t.Errorf("with a repair: %+v", o)
		}
	})
}

func TestWorkerSweepsAndProbes(t *testing.T) {
	f := &fakeImporter{}
	w := &worker{importer: f, changed: func(_ context.Context, s v1alpha1.Source, validator string) (bool, error) {
		return validator == "old" && s.File.Path == "a.tar", nil
	}}
	wanted := []importer.Owner{{UID: "u"}}
	if o := w.do(t.Context(), &task{job: &job{kind: jobSweep, wanted: wanted}}); o.err != nil || len(f.swept) != 1 || f.swept[0][0] != wanted[0] {
		t.Errorf("%+v, swept %+v", o, f.swept)
	}
	f.runtime = importer.ErrRuntimeUnavailable // which a source has nothing to do with
	j := importJob()
	j.kind, j.validator = jobProbe, "old"
	if o := w.do(t.Context(), &task{job: j}); o.err != nil || !o.changed {
		t.Errorf("%+v", o)
	}
	synctest.Test(t, func(t *testing.T) {
		w := &worker{importer: f, changed: func(ctx context.Context, _ v1alpha1.Source, _ string) (bool, error) {
			<-ctx.Done()
			return false, ctx.Err()
		}}
		begin := time.Now()
		if o := w.do(t.Context(), &task{job: j}); !errors.Is(o.err, source.ErrUnavailable) || time.Since(begin) != probeTimeout {
			t.Errorf("a server that does not answer: %v after %s", o.err, time.Since(begin))
		}
	})
}

// tellingImporter knows its disks.
type tellingImporter struct {
	fakeImporter
	disks []*importer.Disk
}

func (f *tellingImporter) Disks(context.Context, *importer.Plan, importer.Request) ([]*importer.Disk, error) {
	return f.disks, nil
}

func TestWorkerMeasuresDisks(t *testing.T) {
	registry := prometheus.NewRegistry()
	w := &worker{metrics: newMetrics(registry), importer: &tellingImporter{disks: []*importer.Disk{
		{Roots: []string{"/var/lib/containerd"}, Free: 70, Reserve: 15}, {Roots: []string{"/elsewhere"}, Unknown: "not visible"},
	}}}
	j := importJob()
	j.kind = jobCheck
	w.do(t.Context(), &task{job: j})
	want := `
		# HELP tarlift_disk_free_bytes Room on a file system that containerd writes to, as of the last check or import.
		# TYPE tarlift_disk_free_bytes gauge
		tarlift_disk_free_bytes{root="/var/lib/containerd"} 70
		# HELP tarlift_disk_reserve_bytes How much of it imports leave free.
		# TYPE tarlift_disk_reserve_bytes gauge
		tarlift_disk_reserve_bytes{root="/var/lib/containerd"} 15
	`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "tarlift_disk_free_bytes", "tarlift_disk_reserve_bytes"); err != nil {
		t.Error(err)
	}
}

func TestWorkerEndsWithItsJob(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	began, ended := make(chan struct{}), false
	f := &fakeImporter{importing: func(ctx context.Context, _ source.Blob, _ importer.Request) (importer.Result, error) {
		close(began)
		<-ctx.Done()
		ended = true
		return importer.Result{}, ctx.Err()
	}}
	w := &worker{importer: f, metrics: newMetrics(prometheus.NewRegistry()), open: func(context.Context, v1alpha1.Source) (source.Blob, error) {
		return source.OpenStream(strings.NewReader(""), "test"), nil
	}}
	if w.begin(importJob()) {
		t.Error("took a job before the start")
	}
	ready := make(chan struct{}, 1)
	w.onWake(func() {
		select {
		case ready <- struct{}{}:
		default:
		}
	})
	go func() {
		<-ready
		w.begin(importJob())
		<-began
		cancel()
	}()
	if err := w.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if !ended {
		t.Error("returned while its job was running")
	}
	if w.begin(importJob()) {
		t.Error("took a job after the end")
	}
}

// knownText is of whose archives it is known whether they are wanted.
func knownText(known func(string) bool) string {
	return fmt.Sprintf("archives %v, drop-ins %v", known("uid-a"), known(string(dropInArchive("a.tar", fileVersion{}).UID)))
}
