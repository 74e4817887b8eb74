package envtest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/node"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/internal/source"
)

// fakeNode is a node whose containerd remembers what was imported, and fails or hangs as a test wants.
type fakeNode struct {
	name string
	dir  string // of its archives

	dropIns bool // it has a drop-in directory

	mu       sync.Mutex
	imported map[published]importer.Result
	runtime  error
	hang     bool          // imports go on until they are stopped, or resume is closed
	resume   chan struct{} // what hung then fails
	fail     error
	checks   int
	imports  []string
	released []string

	hangs []string // archives of which each import hangs

	losses  map[string]string // by archive, what of its images is missing
	repairs bool              // a repair mends losses
	sweeps  [][]importer.Owner
	sweep   error       // what a sweep ends with
	events  chan string // of images that change

	checkInterval time.Duration
	releaseDelay  time.Duration
}

// published is an owner whose images are there, whatever is to become of them later.
type published importer.Owner

// testDigest is what the archives' index.json has, and their images.
const testDigest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func publishedBy(o importer.Owner) published {
	o.Deletion = ""
	return published(o)
}

func newFakeNode(t *testing.T, name string) *fakeNode {
	t.Helper()
	create(t, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"node": name}}})
	t.Cleanup(func() {
		err := admin.Delete(context.Background(), &v1alpha1.NodeImageState{ObjectMeta: metav1.ObjectMeta{Name: name}})
		if client.IgnoreNotFound(err) != nil {
			t.Error(err)
		}
	})
	return &fakeNode{name: name, dir: t.TempDir(), imported: map[published]importer.Result{}, losses: map[string]string{}, releaseDelay: 2 * time.Second, events: make(chan string, 10), resume: make(chan struct{})}
}

func (f *fakeNode) Runtime(context.Context) (importer.Runtime, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return importer.Runtime{Version: "v2.4.2", Snapshotter: "overlayfs", Platform: "linux/amd64"}, f.runtime
}

func (f *fakeNode) Imported(_ context.Context, o importer.Owner) (importer.Result, string, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.checks++
	r, ok := f.imported[publishedBy(o)]
	return r, f.losses[o.Name], ok, nil
}

func (f *fakeNode) Repair(_ context.Context, o importer.Owner) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.repairs || f.losses[o.Name] == "" {
		return 0, nil
	}
	delete(f.losses, o.Name)
	return 1, nil
}

// Sweep forgets the imports of all but the wanted owners.
func (f *fakeNode) Sweep(_ context.Context, wanted []importer.Owner, known func(string) bool) (released []importer.Released, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sweeps = append(f.sweeps, wanted)
	if f.sweep != nil {
		return nil, f.sweep
	}
	for o, r := range f.imported {
		if !slices.ContainsFunc(wanted, func(w importer.Owner) bool { return w.UID == o.UID }) && known(o.UID) {
			delete(f.imported, o)
			released = append(released, importer.Released{Owner: importer.Owner(o), Deleted: r.Names})
		}
	}
	return released, nil
}

func (f *fakeNode) Watch(ctx context.Context, changed func(name string)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case name := <-f.events:
			changed(name)
		}
	}
}

func (f *fakeNode) Import(ctx context.Context, b source.Blob, r importer.Request) (importer.Result, error) {
	f.mu.Lock()
	f.imports = append(f.imports, r.Owner.Name)
	hang, fail := f.hang || slices.Contains(f.hangs, r.Owner.Name), f.fail
	f.mu.Unlock()
	r.Progress(importer.Progress{Phase: importer.PhaseTransferring, Done: 30, Skipped: 10, Total: 100})
	if hang {
		select {
		case <-ctx.Done():
			return importer.Result{}, ctx.Err()
		case <-f.resume:
			return importer.Result{}, source.ErrUnavailable
		}
	}
	if fail != nil {
		return importer.Result{}, fail
	}
	result := importer.Result{
		Images:      []importer.Image{{Name: "docker.io/library/a:1", Digest: testDigest}, {Name: "docker.io/library/b:1", Digest: testDigest}},
		Names:       []string{"docker.io/library/a:1", "docker.io/library/b:1"},
		IndexDigest: testDigest, Size: b.Size(), Validator: b.Validator(),
		Bytes: importer.Bytes{Read: 95, Written: 90, Skipped: 10},
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.imported[publishedBy(r.Owner)] = result
	delete(f.losses, r.Owner.Name)
	return result, nil
}

func (f *fakeNode) Release(_ context.Context, uid string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.released = append(f.released, uid)
	return nil
}

// set changes the node's behaviour.
func (f *fakeNode) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fakeNode) importCount() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.imports)
}

// publishedCount is the number of owners whose images are there.
func (f *fakeNode) publishedCount() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.imported)
}

func (f *fakeNode) checkCount() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.checks
}

func (f *fakeNode) hasReleased(uid string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Contains(f.released, uid)
}

// deleteAndSweep deletes an archive and waits for a sweep that does not keep what is there for it.
func (f *fakeNode) deleteAndSweep(t *testing.T, a *v1alpha1.ImageArchive) {
	t.Helper()
	sweeps := func() (n int) {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, wanted := range f.sweeps {
			if !slices.ContainsFunc(wanted, func(o importer.Owner) bool { return o.UID == string(a.UID) }) {
				n++
			}
		}
		return n
	}
	before := sweeps()
	if err := admin.Delete(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	f.waitFor(t, a.Name, "")
	eventually(t, "a sweep", func() (bool, string) { return sweeps() > before, "" })
}

// put lays an archive into the node's archive directory.
func (f *fakeNode) put(t *testing.T, name string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(f.dir, name), []byte(strings.Repeat("x", 2<<20)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// as is a configuration with the rights of one of the project's service accounts.
func as(account string) *rest.Config {
	c := rest.CopyConfig(adminConfig)
	c.Impersonate = rest.ImpersonationConfig{
		UserName: "system:serviceaccount:" + systemNamespace + ":" + account,
		Groups:   []string{"system:serviceaccounts", "system:serviceaccounts:" + systemNamespace, "system:authenticated"},
	}
	return c
}

// onNode has the rights of the agent on a node: the admission policy looks at what a pod's token says of its node.
func onNode(name string) *rest.Config {
	c := as("tarlift-node")
	c.Impersonate.Extra = map[string][]string{"authentication.kubernetes.io/node-name": {name}}
	return c
}

// process is a running `agent node` or `agent controller`.
type process struct {
	writes atomic.Int64 // of status, as requests
	stop   func()
}

// start runs the node's agent with the rights that its role gives, until stop or the end of the test.
func (f *fakeNode) start(t *testing.T) *process { return f.startOver(t, adminConfig.Host) }

// startOver is start with an API server at this address.
func (f *fakeNode) startOver(t *testing.T, server string) *process {
	t.Helper()
	conf := onNode(f.name)
	conf.Host = server
	return start(t, conf, ctrl.Options{Cache: node.Cache(f.name), MapperProvider: node.Kinds}, func(mgr ctrl.Manager) error {
		return (&node.Reconciler{
			Client:   mgr.GetClient(),
			Importer: f,
			Sources:  node.Sources{Secrets: mgr.GetAPIReader(), Namespace: systemNamespace, ArchiveDir: f.dir},
			NodeName: f.name,
			Metrics:  prometheus.NewRegistry(),

			CheckInterval: f.checkInterval,
			ReleaseDelay:  f.releaseDelay,
			DropIns:       f.dropIns,
		}).SetupWithManager(mgr)
	})
}

func start(t *testing.T, conf *rest.Config, options ctrl.Options, setup func(ctrl.Manager) error) *process {
	t.Helper()
	p := &process{}
	conf.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			if r.Method != http.MethodGet && strings.Contains(r.URL.Path, "/tarlift.dev/") {
				p.writes.Add(1)
			}
			return next.RoundTrip(r)
		})
	})
	options.Scheme = scheme.Scheme
	options.Metrics = metricsserver.Options{BindAddress: "0"}
	options.HealthProbeBindAddress = "0"
	options.Controller = config.Controller{SkipNameValidation: ptr.To(true)} // several run in this process
	mgr, err := ctrl.NewManager(conf, options)
	if err != nil {
		t.Fatal(err)
	}
	if err := setup(mgr); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := mgr.Start(ctx); err != nil {
			t.Error(err)
		}
	})
	p.stop = func() { cancel(); running.Wait() }
	t.Cleanup(p.stop)
	return p
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// eventually waits for a condition that the fast majority of runs meets in milliseconds.
func eventually(t *testing.T, what string, met func() (bool, string)) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		ok, got := met()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s; it is %s", patience, what, got)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// waitFor waits until the node's entry for an archive is ready, or has these conditions, and returns it.
func (f *fakeNode) waitFor(t *testing.T, archive, want string) v1alpha1.ArchiveState {
	t.Helper()
	var entry v1alpha1.ArchiveState
	eventually(t, archive+" to be "+want, func() (bool, string) {
		var state v1alpha1.NodeImageState
		if err := admin.Get(t.Context(), client.ObjectKey{Name: f.name}, &state); err != nil {
			return false, err.Error()
		}
		for _, entry = range state.Status.Archives {
			if entry.Name == archive {
				got := entryText(entry)
				return got == want, got
			}
		}
		return want == "", "not listed"
	})
	return entry
}

// entryText is an entry's conditions, or that it is ready.
func entryText(e v1alpha1.ArchiveState) string {
	if e.Ready && len(e.Conditions) == 0 {
		return ready
	}
	return short(e.Conditions)
}

func short(conditions []metav1.Condition) string {
	var s []string
	for _, c := range conditions {
		s = append(s, fmt.Sprintf("%s=%s/%s", c.Type, c.Status, c.Reason))
	}
	return strings.Join(s, " ")
}

const (
	ready     = "ready"
	importing = "Ready=False/Importing Reconciling=True/Importing"
)

// newArchive creates an ImageArchive for the one node that the test uses.
func (f *fakeNode) newArchive(t *testing.T, name string) *v1alpha1.ImageArchive {
	t.Helper()
	a := typed[v1alpha1.ImageArchive](t, archiveWith(t, name, fileSource+"nodeSelector: {matchLabels: {node: "+f.name+"}}"))
	createCounted(t, a)
	return a
}

// createCounted also counts the node, as the controller would: else its agent would take its time with each report.
func createCounted(t *testing.T, a *v1alpha1.ImageArchive) {
	t.Helper()
	create(t, a)
	counted := client.RawPatch(types.MergePatchType, []byte(`{"status":{"nodes":{"desired":1,"ready":0,"importing":0,"failed":0,"pending":1,"summary":"0/1"}}}`))
	if err := admin.Status().Patch(t.Context(), a, counted); err != nil {
		t.Fatal(err)
	}
}

func update(t *testing.T, a *v1alpha1.ImageArchive, change func()) {
	t.Helper()
	before := a.DeepCopy()
	change()
	if err := admin.Patch(t.Context(), a, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
}

// way leads to the API server, and can be cut.
type way struct {
	address, target string

	mu       sync.Mutex
	listener net.Listener
	conns    []net.Conn
	relays   sync.WaitGroup
}

func newWay(t *testing.T, target string) *way {
	t.Helper()
	w := &way{address: "127.0.0.1:0", target: target}
	w.open(t)
	t.Cleanup(func() { w.cut(); w.relays.Wait() })
	return w
}

func (w *way) open(t *testing.T) {
	t.Helper()
	l, err := net.Listen("tcp", w.address)
	if err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.listener, w.address = l, l.Addr().String()
	w.relays.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			w.relay(in)
		}
	})
}

func (w *way) relay(in net.Conn) {
	out, err := net.Dial("tcp", w.target)
	if err != nil {
		in.Close()
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conns = append(w.conns, in, out)
	for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
		w.relays.Go(func() {
			_, _ = io.Copy(pair[0], pair[1])
			pair[0].Close()
		})
	}
}

func (w *way) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.listener.Close()
	for _, c := range w.conns {
		c.Close()
	}
	w.conns = nil
}
