package node

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/internal/source"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var epoch = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// noJitter makes waits as long as they may get.
func noJitter() float64 { return 1 }

const (
	digest1 = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
	digest2 = "sha256:2222222222222222222222222222222222222222222222222222222222222222"
)

// newArchive is an ImageArchive that is age old at the epoch.
func newArchive(name string, age time.Duration) *v1alpha1.ImageArchive {
	return &v1alpha1.ImageArchive{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, UID: types.UID("uid-" + name), Generation: 1, CreationTimestamp: metav1.NewTime(epoch.Add(-age)),
		},
		Spec: v1alpha1.ImageArchiveSpec{Source: v1alpha1.Source{File: &v1alpha1.FileSource{Path: name + ".tar"}}},
	}
}

// fakeContainerd has what was imported into it, and fails as a test wants. What an import does is up to the archive's name:
// "slow…" reads for an hour, "unpack…" unpacks for an hour, "silent…" reads nothing for ever, "trickle…" 800 bytes a second;
// any other ends after a second.
type fakeContainerd struct {
	mu       sync.Mutex
	have     map[string]importer.Result // by UID and spec hash
	missing  map[string]string          // by the archive's name
	repairs  bool                       // a repair mends what is missing
	fail     map[string]error           // imports of an archive
	down     error
	hang     string   // the call that is not answered
	calls    []string // "check a", "import a", "release uid-a", "repair a", "sweep …"
	began    time.Time
	ended    map[string]time.Duration // since began, of imports that went well
	result   importer.Result
	swept    func(wanted []importer.Owner, known func(string) bool) ([]importer.Released, error)
	watching func(ctx context.Context, changed func(string)) error
}

var imported = importer.Result{
	Images: []importer.Image{{Name: "docker.io/library/a:1", Digest: digest1}, {Name: "docker.io/library/b:1", Digest: digest2}},
	Names:  []string{"docker.io/library/a:1", "docker.io/library/b:1"}, IndexDigest: digest1, Size: 100,
	Bytes: importer.Bytes{Read: 70, Written: 60, Skipped: 40},
}

func newContainerd() *fakeContainerd {
	return &fakeContainerd{have: map[string]importer.Result{}, missing: map[string]string{}, fail: map[string]error{}, began: time.Now(),
		ended: map[string]time.Duration{}, result: imported}
}

func key(o importer.Owner) string { return o.UID + " " + o.SpecHash }

// call notes a call, and fails as containerd does.
func (f *fakeContainerd) call(ctx context.Context, kind, name string) error {
	f.mu.Lock()
	f.calls = append(f.calls, strings.TrimSpace(kind+" "+name))
	down, hang := f.down, f.hang == kind
	f.mu.Unlock()
	if hang {
		<-ctx.Done()
		return ctx.Err()
	}
	return down
}

func (f *fakeContainerd) Runtime(context.Context) (importer.Runtime, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return importer.Runtime{Version: "v2.4.2", Snapshotter: "overlayfs", Platform: "linux/amd64"}, f.down
}

func (f *fakeContainerd) Imported(ctx context.Context, o importer.Owner) (importer.Result, string, bool, error) {
	err := f.call(ctx, "check", o.Name)
	f.mu.Lock()
	defer f.mu.Unlock()
	r, ok := f.have[key(o)]
	return r, f.missing[o.Name], ok, err
}

func (f *fakeContainerd) Repair(ctx context.Context, o importer.Owner) (int, error) {
	err := f.call(ctx, "repair", o.Name)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.repairs && err == nil {
		delete(f.missing, o.Name)
		return 1, nil
	}
	return 0, err
}

func (f *fakeContainerd) Release(ctx context.Context, uid string) error {
	return f.call(ctx, "release", uid)
}

func (f *fakeContainerd) Sweep(ctx context.Context, wanted []importer.Owner, known func(string) bool) ([]importer.Released, error) {
	var names []string
	for _, o := range wanted {
		names = append(names, strings.TrimSpace(o.Name+" "+string(o.Deletion)))
	}
	if err := f.call(ctx, "sweep", strings.Join(names, ", ")); err != nil || f.swept == nil {
		return nil, err
	}
	return f.swept(wanted, known)
}

func (f *fakeContainerd) Watch(ctx context.Context, changed func(string)) error {
	if f.watching != nil {
		return f.watching(ctx, changed)
	}
	<-ctx.Done()
	return nil
}

func (f *fakeContainerd) Import(ctx context.Context, b source.Blob, r importer.Request) (importer.Result, error) {
	name := strings.TrimPrefix(r.Owner.Name, v1alpha1.DropInPrefix)
	if err := f.call(ctx, "import", name); err != nil {
		return importer.Result{}, err
	}
	phase, duration := importer.PhaseTransferring, time.Hour
	switch {
	case strings.HasPrefix(name, "unpack"):
		phase = importer.PhaseUnpacking
	case !strings.HasPrefix(name, "slow") && !strings.HasPrefix(name, "silent") && !strings.HasPrefix(name, "trickle"):
		duration = time.Second
	}
	r.Progress(importer.Progress{Phase: phase, Total: 100, Done: 30, Skipped: 10})
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // whoever opened the source closes it then
	done := make(chan struct{})
	go func() {
		defer close(done)
		if s, err := b.Section(ctx, 0, -1); err == nil {
			_, _ = io.Copy(io.Discard, s)
		}
	}()
	select {
	case <-ctx.Done():
		<-done
		return importer.Result{}, ctx.Err()
	case <-time.After(duration):
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fail[name]; err != nil {
		return importer.Result{}, err
	}
	result := f.result
	result.Validator = b.Validator()
	f.have[key(r.Owner)] = result
	delete(f.missing, name)
	f.ended[name] = time.Since(f.began)
	return result, nil
}

// taken are the calls since the last time.
func (f *fakeContainerd) taken() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	calls := f.calls
	f.calls = nil
	return calls
}

func (f *fakeContainerd) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
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

func openPlayed(path string) source.Blob {
	p := played{piece: 64 << 10, every: 100 * time.Millisecond, end: make(chan struct{})}
	path = strings.TrimPrefix(path, v1alpha1.DropInPrefix)
	switch {
	case strings.HasPrefix(path, "silent"), strings.HasPrefix(path, "unpack"):
		p.every = 24 * time.Hour
	case strings.HasPrefix(path, "trickle"):
		p.piece, p.every = 800, time.Second
	}
	return source.OpenStream(p, path)
}

type playedLocation struct {
	path    string
	changed func(validator string) (bool, error)
}

func (l playedLocation) Open(context.Context) (source.Blob, error) { return openPlayed(l.path), nil }

func (l playedLocation) Changed(_ context.Context, validator string) (bool, error) {
	return l.changed(validator)
}

// failingReader is an API server that is away.
type failingReader struct {
	client.Reader
	err error
}

func (f failingReader) Get(context.Context, client.ObjectKey, client.Object, ...client.GetOption) error {
	return f.err
}

// rig runs a syncer on synctest's clock, as the node's controller does: each archive is synced when something wakes it, and
// when its wait is over.
type rig struct {
	*syncer
	t        *testing.T
	f        *fakeContainerd
	wants    map[string]*want
	restored map[string]*v1alpha1.ArchiveState
	wakes    chan string
	sweeps   int                  // that were asked for
	due      map[string]time.Time // zero: not before something wakes it
	secrets  client.Reader
	changed  func(validator string) (bool, error) // what a source says
}

func newRig(t *testing.T, archives ...*v1alpha1.ImageArchive) *rig {
	t.Helper()
	r := &rig{t: t, f: newContainerd(), wants: map[string]*want{}, wakes: make(chan string, 1000), due: map[string]time.Time{},
		restored: map[string]*v1alpha1.ArchiveState{}}
	r.syncer = &syncer{
		importer: r.f, metrics: newMetrics(prometheus.NewRegistry()), events: &events{node: "n"}, interval: 10 * time.Minute,
		now: time.Now, jitter: noJitter, log: logr.Discard(), changed: func() {}, wake: func(name string) { r.wakes <- name },
		states: map[string]*archiveState{},
	}
	r.resolve = func(ctx context.Context, s v1alpha1.Source) (Location, error) {
		if s.File == nil {
			return Sources{Secrets: r.secrets}.Resolve(ctx, s)
		}
		return playedLocation{s.File.Path, r.changed}, nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	var started sync.WaitGroup
	started.Go(func() {
		if err := r.pool.Start(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); started.Wait() })
	for _, a := range archives {
		r.see(a)
	}
	return r
}

// see makes an archive wanted, or wanted as it is now.
func (r *rig) see(a *v1alpha1.ImageArchive, admitted ...v1alpha1.Admission) {
	r.wants[a.Name], r.due[a.Name] = wantOf(a, admitted), time.Now()
}

// run syncs for a while.
func (r *rig) run(d time.Duration) {
	ctx := ctrl.LoggerInto(r.t.Context(), logr.Discard())
	for end := time.Now().Add(d); ; {
		next := end
		for _, name := range slices.Sorted(maps.Keys(r.wants)) {
			at := r.due[name]
			if !at.IsZero() && !at.After(time.Now()) {
				wait := r.sync(ctx, r.wants[name], r.restored[name])
				if at = (time.Time{}); wait > 0 {
					at = time.Now().Add(wait)
				}
				r.due[name] = at
			}
			if !at.IsZero() && at.Before(next) {
				next = at
			}
		}
		if !time.Now().Before(end) {
			synctest.Wait()
			return
		}
		select {
		case name := <-r.wakes:
			if name == "" {
				r.sweeps++
				continue
			}
			r.due[name] = time.Now()
		case <-time.After(time.Until(next)):
		}
	}
}

// entry is what is reported of an archive now.
func (r *rig) entry(name string) v1alpha1.ArchiveState {
	r.t.Helper()
	status, _, _ := r.report("v1", nil, time.Now())
	for _, e := range status.Archives {
		if e.Name == name {
			return e
		}
	}
	r.t.Fatalf("no entry for %s", name)
	return v1alpha1.ArchiveState{}
}

// expect compares an archive's entry, in short, such as "ready" or "Ready=False/Importing Reconciling=True/Importing".
func (r *rig) expect(name, want string) {
	r.t.Helper()
	if got := short(r.entry(name)); got != want {
		r.t.Errorf("%s is %q, want %q", name, got, want)
	}
}

// did compares the calls of containerd since the last time.
func (r *rig) did(want ...string) {
	r.t.Helper()
	if got := r.f.taken(); !slices.Equal(got, want) {
		r.t.Errorf("did %q, want %q", got, want)
	}
}

func short(e v1alpha1.ArchiveState) string {
	var s []string
	if e.Ready {
		s = append(s, "ready")
	}
	for _, c := range e.Conditions {
		s = append(s, fmt.Sprintf("%s=%s/%s", c.Type, c.Status, c.Reason))
	}
	return strings.Join(s, " ")
}

// edited is a copy with another generation.
func edited(a *v1alpha1.ImageArchive, edit func(*v1alpha1.ImageArchive)) *v1alpha1.ImageArchive {
	a = a.DeepCopy()
	a.Generation++
	edit(a)
	return a
}

func requested(a *v1alpha1.ImageArchive, value string) *v1alpha1.ImageArchive {
	a = a.DeepCopy()
	a.Annotations = map[string]string{v1alpha1.AnnotationReconcileRequestedAt: value}
	return a
}
