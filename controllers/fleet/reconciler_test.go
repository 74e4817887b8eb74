package fleet

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
)

var epoch = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

func newArchive(name string) *v1alpha1.ImageArchive {
	return &v1alpha1.ImageArchive{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, UID: types.UID("uid-" + name), Generation: 1, CreationTimestamp: metav1.NewTime(epoch),
		},
		Spec: v1alpha1.ImageArchiveSpec{Source: v1alpha1.Source{File: &v1alpha1.FileSource{Path: name + ".tar"}}},
	}
}

// edited is a copy with another generation.
func edited(a *v1alpha1.ImageArchive, edit func(*v1alpha1.ImageArchive)) *v1alpha1.ImageArchive {
	a = a.DeepCopy()
	a.Generation++
	edit(a)
	return a
}

func short(conditions []metav1.Condition) string {
	s := ""
	for i, c := range conditions {
		if i > 0 {
			s += " "
		}
		s += fmt.Sprintf("%s=%s/%s", c.Type, c.Status, c.Reason)
	}
	return s
}

// maxObject is what an object may take, as JSON without managedFields.
const maxObject = 16 << 10

func jsonLen(t *testing.T, o any) int {
	t.Helper()
	b, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return len(b)
}

// longTexts are long, and longer in JSON than they look.
var longTexts = map[string]string{
	"plain": strings.Repeat("x", 5*condition.MaxText), "escaped": strings.Repeat("<", 5*condition.MaxText),
	"wide": strings.Repeat("ü€", 5*condition.MaxText),
}

// aggregated is the status of an archive that so many nodes have failed to import.
func aggregated(
	a *v1alpha1.ImageArchive, nodes []metav1.PartialObjectMetadata, states map[string]*v1alpha1.NodeImageState, failed int,
) *v1alpha1.ImageArchiveStatus {
	selected, invalid := (&snapshot{nodes, states}).selected(a)
	ro := &rollout{failures: map[string]failure{}}
	for i := range failed {
		ro.failures[fmt.Sprint("failed-", i)] = failure{since: epoch}
	}
	return aggregate(a, selected, invalid, ro, epoch)
}

func TestImageArchiveIsSmall(t *testing.T) {
	for name, text := range longTexts {
		a := newArchive("a")
		nodes, states := cluster(make([]saying, 100)...)
		for i := range nodes {
			node := &nodes[i]
			node.Name = fmt.Sprintf("%d-", i) + strings.Repeat("n", 250)
			state := &v1alpha1.NodeImageState{}
			state.Name = node.Name
			e := v1alpha1.ArchiveState{Name: a.Name, UID: a.UID, ObservedGeneration: a.Generation}
			e.LastError = &v1alpha1.ImportError{Reason: v1alpha1.ReasonTruncated, Message: fmt.Sprint(i, text)}
			state.Status.Archives = []v1alpha1.ArchiveState{e}
			states[node.Name] = state
		}
		a.Status = *aggregated(a, nodes, states, 100)
		if n := jsonLen(t, a); n > maxObject || len(a.Status.Failures) != maxFailures {
			t.Errorf("%s: %d bytes, %d failures", name, n, len(a.Status.Failures))
		}
		for _, c := range a.Status.Conditions {
			if len(c.Message) > condition.MaxText {
				t.Errorf("%s: a message of %d bytes", name, len(c.Message))
			}
		}
	}
}

// The controller knows nothing of drop-ins: they count nowhere.
func TestDropInsDoNotCount(t *testing.T) {
	nodes, states := cluster(saysReady)
	before := aggregated(newArchive("a"), nodes, states, 0)
	with := states[nodes[0].Name]
	for i, says := range []saying{saysReady, saysStalled, saysImporting} {
		e := v1alpha1.ArchiveState{Name: fmt.Sprintf("drop-in/%d.tar", i), UID: types.UID(fmt.Sprintf("drop-in-%d", i)), ObservedGeneration: 1}
		says(&e)
		with.Status.Archives = append(with.Status.Archives, e)
	}
	if after := aggregated(newArchive("a"), nodes, states, 0); cmp.Diff(before, after) != "" {
		t.Errorf("another status: %s", cmp.Diff(before, after))
	}
}

// api is an API server whose cache shows at once what is written. Its writes fail as a test wants.
type api struct {
	client.Client
	writes, reads int
	fails         error
}

func newAPI(objects ...client.Object) *api {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			panic(err)
		}
	}
	return &api{Client: fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).
		WithStatusSubresource(&v1alpha1.ImageArchive{}, &v1alpha1.NodeImageState{}).Build()}
}

func (c *api) Get(ctx context.Context, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
	c.reads++
	return c.Client.Get(ctx, key, o, opts...)
}

func (c *api) Patch(ctx context.Context, o client.Object, p client.Patch, opts ...client.PatchOption) error {
	if c.fails != nil {
		return c.fails
	}
	c.writes++
	return c.Client.Patch(ctx, o, p, opts...)
}

// rig is a reconciler over nodes, on a clock of its own.
type rig struct {
	*Reconciler
	t   *testing.T
	c   *api
	at  time.Time
	log *events.FakeRecorder
}

func newRig(t *testing.T, a *v1alpha1.ImageArchive, sayings ...saying) *rig {
	t.Helper()
	objects := []client.Object{a}
	nodes, states := cluster(sayings...)
	for i := range nodes {
		node := &corev1.Node{ObjectMeta: nodes[i].ObjectMeta}
		node.UID = types.UID("uid-" + node.Name)
		objects = append(objects, node)
		if s := states[node.Name]; s != nil {
			objects = append(objects, s)
		}
	}
	r := &rig{t: t, c: newAPI(objects...), at: epoch, log: events.NewFakeRecorder(100)}
	r.Reconciler = &Reconciler{Client: r.c, Recorder: r.log}
	r.setup(r.c, func() time.Time { return r.at })
	return r
}

// reconcile is one call, after a while.
func (r *rig) reconcile(d time.Duration) time.Duration {
	r.t.Helper()
	r.at = r.at.Add(d)
	result, err := r.Reconcile(r.t.Context(), ctrl.Request{NamespacedName: types.NamespacedName{Name: "a"}})
	if err != nil {
		r.t.Fatal(err)
	}
	return result.RequeueAfter
}

func (r *rig) archive() *v1alpha1.ImageArchive {
	r.t.Helper()
	a := &v1alpha1.ImageArchive{}
	if err := r.c.Get(r.t.Context(), types.NamespacedName{Name: "a"}, a); err != nil {
		r.t.Fatal(err)
	}
	return a
}

// say makes a node report something else.
func (r *rig) say(node string, says saying) {
	r.t.Helper()
	state := &v1alpha1.NodeImageState{}
	if err := r.c.Get(r.t.Context(), types.NamespacedName{Name: node}, state); err != nil {
		r.t.Fatal(err)
	}
	e := v1alpha1.ArchiveState{Name: "a", UID: "uid-a", ObservedGeneration: 1}
	says(&e)
	state.Status.Archives = []v1alpha1.ArchiveState{e}
	if err := r.c.Status().Update(r.t.Context(), state); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) events() (list []string) {
	for {
		select {
		case e := <-r.log.Events:
			list = append(list, e)
		default:
			return list
		}
	}
}

// A field that a status has no more goes, too.
func TestClearedFieldsGo(t *testing.T) {
	r := newRig(t, newArchive("a"), saysStalled)
	r.reconcile(0)
	if s := r.archive().Status; short(s.Conditions) != "Ready=False/Truncated Stalled=True/Truncated" || len(s.Failures) != 1 {
		t.Fatalf("status %+v", s)
	}
	r.say("n0", saysReady)
	r.reconcile(time.Minute)
	if s := r.archive().Status; short(s.Conditions) != "Ready=True/Imported" || s.Failures != nil || s.Nodes.Failed != 0 {
		t.Errorf("status %+v", s)
	}
}

// Counts of few nodes are a second old at most; what becomes ready does not wait. An idle archive is not written.
func TestStatusIsWrittenInTime(t *testing.T) {
	r := newRig(t, newArchive("a"), saysPending, saysPending)
	r.reconcile(0)
	writes := r.c.writes
	r.reconcile(time.Minute)
	if r.c.writes != writes {
		t.Error("written without a change")
	}
	r.say("n0", saysImporting)
	r.reconcile(time.Second)
	r.say("n1", saysImporting)
	if wait := r.reconcile(100 * time.Millisecond); wait <= 0 || wait > time.Second {
		t.Errorf("waits %s", wait)
	}
	r.reconcile(time.Second)
	if n := r.archive().Status.Nodes; n.Importing != 2 {
		t.Errorf("counts %+v", n)
	}
	r.say("n0", saysReady)
	r.say("n1", saysReady)
	r.reconcile(10 * time.Millisecond)
	if s := r.archive().Status; !meta.IsStatusConditionTrue(s.Conditions, "Ready") {
		t.Errorf("status %+v", s)
	}
}

// Counts of a large fleet are written rarely, however many archives move.
func TestStatusOfALargeFleet(t *testing.T) {
	r := newRig(t, newArchive("a"))
	status := func(desired int32) *v1alpha1.ImageArchiveStatus {
		return &v1alpha1.ImageArchiveStatus{Nodes: &v1alpha1.NodeCounts{Desired: desired}}
	}
	for desired, want := range map[int32]time.Duration{3: time.Second, 500: 10 * time.Second, 5000: 50 * time.Second} {
		if got := r.statusWait(status(desired), &archiveMemory{when: epoch}, 3); got != want {
			t.Errorf("%d nodes: %s, want %s", desired, got, want)
		}
	}
	var last time.Duration
	for range 20 {
		last = max(last, r.statusWait(status(5000), &archiveMemory{when: epoch}, 5000))
	}
	if last < 3*time.Minute || last > 5*time.Minute { // 20 writes that wake 5,000 agents each, at 500 a second
		t.Errorf("the last of twenty archives waits %s", last)
	}
}

// An archive's first failure of each kind is an Event on it, and so is that it becomes ready.
func TestEvents(t *testing.T) {
	r := newRig(t, newArchive("a"), saysRetrying, saysPending)
	expect := func(want ...string) {
		t.Helper()
		got := r.events()
		if len(got) != len(want) {
			t.Fatalf("Events %q, want %q", got, want)
		}
		for i := range want {
			if !strings.HasPrefix(got[i], want[i]) {
				t.Errorf("Event %q, want %q", got[i], want[i])
			}
		}
	}
	r.reconcile(0)
	expect("Warning SourceNotFound n0: no")
	r.say("n1", saysRetrying)
	r.reconcile(time.Minute)
	expect()
	r.say("n1", saysStalled)
	r.reconcile(time.Minute)
	expect("Warning Truncated 0 of 2 nodes ready")
	r.say("n0", saysReady)
	r.say("n1", saysReady)
	r.reconcile(time.Minute)
	expect("Normal Imported 2 images: 2 of 2 nodes ready, from an archive of 45MiB")
}

// A typo in a selector is no success.
func TestNoNodesSelected(t *testing.T) {
	a := newArchive("a")
	a.Spec.NodeSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"site": "tpyo"}}
	r := newRig(t, a, saysReady)
	r.reconcile(0)
	s := r.archive().Status
	if got := short(s.Conditions); got != "Ready=False/NoNodesSelected Reconciling=True/NoNodesSelected" || !strings.Contains(s.Conditions[0].Message, "site=tpyo") {
		t.Errorf("%s: %s", got, s.Conditions[0].Message)
	}
	if e := r.events(); len(e) != 1 || !strings.HasPrefix(e[0], "Warning NoNodesSelected") {
		t.Errorf("Events %q", e)
	}
}

// Names of archives that are not there cost a look into the cache each, and nothing that lasts.
func TestUnknownArchivesCostNothing(t *testing.T) {
	r := newRig(t, newArchive("a"), saysReady)
	state := &v1alpha1.NodeImageState{}
	for i := range 10_000 {
		state.Status.Archives = append(state.Status.Archives, v1alpha1.ArchiveState{Name: fmt.Sprint("x", i), UID: "x"})
	}
	state.Status.Archives = append(state.Status.Archives, v1alpha1.ArchiveState{Name: "a", UID: "other"}, v1alpha1.ArchiveState{Name: "a", UID: "uid-a"})
	if got := r.archivesOf(t.Context(), state); len(got) != 1 || got[0].Name != "a" {
		t.Errorf("%d requests", len(got))
	}
	if len(r.archives) > 0 || r.c.writes > 0 {
		t.Errorf("%d remembered, %d writes", len(r.archives), r.c.writes)
	}
}

func requestFor(name string) ctrl.Request {
	return ctrl.Request{NamespacedName: types.NamespacedName{Name: name}}
}
