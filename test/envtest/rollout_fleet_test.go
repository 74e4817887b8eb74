package envtest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/api/v1alpha1"
)

// simulatedFleet is nodes whose agents do as they are told about one archive: they ask to be admitted, import while they are, and
// report. What they report is as short as it may be.
type simulatedFleet struct {
	archive string

	mu      sync.Mutex
	agents  map[string]*fleetAgent
	moving  int // agents that import
	most    int // of them at a time
	counted counter
}

type fleetAgent struct {
	dead    bool // it says that it imports, and then nothing
	failing bool // its imports fail for good
	left    bool // its Node was deleted

	generation int64
	reason     string // of Ready
	failed     bool
	attempts   int32
	until      time.Time // of the import
	written    string
	admitted   *metav1.Time
}

// counter counts admissions in the order in which the API server had them.
type counter struct {
	admitted map[string]bool
	most     int
	ever     map[string]bool
}

// newFleet starts agents on this many nodes, until the end of the test.
func newFleet(t *testing.T, archive string, nodes int) *simulatedFleet {
	t.Helper()
	f := &simulatedFleet{archive: archive, agents: map[string]*fleetAgent{}, counted: counter{admitted: map[string]bool{}, ever: map[string]bool{}}}
	ctx, cancel := context.WithCancel(context.Background())
	w, err := admin.Watch(ctx, &v1alpha1.NodeImageStateList{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range nodes {
		f.add(t, i)
	}
	var running sync.WaitGroup
	running.Go(func() { f.count(w.ResultChan()) })
	running.Go(func() {
		for ctx.Err() == nil {
			if err := f.step(ctx); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
		for name := range f.agents {
			state := &v1alpha1.NodeImageState{ObjectMeta: metav1.ObjectMeta{Name: name}}
			if err := admin.Delete(context.Background(), state); client.IgnoreNotFound(err) != nil {
				t.Error(err)
			}
		}
	})
	return f
}

// add adds a node with an agent.
func (f *simulatedFleet) add(t *testing.T, i int) {
	t.Helper()
	name := fmt.Sprintf("%s-%d", f.archive, i)
	create(t, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"fleet": f.archive}}})
	f.mu.Lock()
	defer f.mu.Unlock()
	f.agents[name] = &fleetAgent{}
}

// set changes how agents behave.
func (f *simulatedFleet) set(change func(name string, a *fleetAgent)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, a := range f.agents {
		change(name, a)
	}
}

func (f *simulatedFleet) count(events <-chan watch.Event) {
	for e := range events {
		state, ok := e.Object.(*v1alpha1.NodeImageState)
		if !ok {
			continue
		}
		f.mu.Lock()
		c := &f.counted
		delete(c.admitted, state.Name)
		for _, x := range state.Spec.Admitted {
			if e.Type != watch.Deleted && x.Archive == f.archive {
				c.admitted[state.Name], c.ever[state.Name] = true, true
			}
		}
		c.most = max(c.most, len(c.admitted))
		f.mu.Unlock()
	}
}

// step is one look of all agents.
func (f *simulatedFleet) step(ctx context.Context) error {
	var archive v1alpha1.ImageArchive
	if err := admin.Get(ctx, client.ObjectKey{Name: f.archive}, &archive); err != nil {
		return client.IgnoreNotFound(err)
	}
	var list v1alpha1.NodeImageStateList
	if err := admin.List(ctx, &list); err != nil {
		return err
	}
	states := map[string]*v1alpha1.NodeImageState{}
	for i := range list.Items {
		states[list.Items[i].Name] = &list.Items[i]
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.moving = 0
	for name, a := range f.agents {
		if a.left {
			continue
		}
		state := states[name]
		if state == nil {
			var err error
			if state, err = createState(ctx, name); err != nil {
				return err
			}
		}
		a.look(&archive, state)
		if a.reason == v1alpha1.ReasonImporting {
			f.moving++
		}
		if err := a.report(ctx, name, &archive); err != nil {
			return err
		}
	}
	f.most = max(f.most, f.moving)
	return nil
}

func createState(ctx context.Context, name string) (*v1alpha1.NodeImageState, error) {
	var node corev1.Node
	if err := admin.Get(ctx, client.ObjectKey{Name: name}, &node); err != nil {
		return nil, err
	}
	state := &v1alpha1.NodeImageState{ObjectMeta: metav1.ObjectMeta{
		Name: name, OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: name, UID: node.UID}},
	}}
	return state, admin.Create(ctx, state)
}

func (a *fleetAgent) look(archive *v1alpha1.ImageArchive, state *v1alpha1.NodeImageState) {
	may, before := false, a.admitted
	a.admitted = nil
	for _, x := range state.Spec.Admitted {
		if x.Archive == archive.Name && x.UID == archive.UID && x.Generation == archive.Generation {
			may, a.admitted = true, x.Time.DeepCopy()
		}
	}
	anew := may && (before == nil || !before.Equal(a.admitted))
	if a.generation != archive.Generation {
		a.generation, a.attempts, a.failed, a.reason = archive.Generation, 0, false, v1alpha1.ReasonWaitingForRollout
	}
	switch {
	case a.reason == v1alpha1.ReasonImported:
	case archive.Spec.Suspend:
		a.reason = v1alpha1.ReasonSuspended
	case !may:
		a.reason = v1alpha1.ReasonWaitingForRollout
	case a.reason == v1alpha1.ReasonTruncated && !anew:
	case a.reason != v1alpha1.ReasonImporting:
		a.reason, a.failed = v1alpha1.ReasonImporting, false
		a.attempts++
		a.until = time.Now().Add(time.Duration(50+rand.IntN(200)) * time.Millisecond)
	case a.dead || time.Now().Before(a.until):
	case a.failing:
		a.reason, a.failed = v1alpha1.ReasonTruncated, true
	default:
		a.reason = v1alpha1.ReasonImported
	}
}

// report writes what has changed.
func (a *fleetAgent) report(ctx context.Context, name string, archive *v1alpha1.ImageArchive) error {
	now := metav1.Now()
	entry := v1alpha1.ArchiveState{Name: archive.Name, UID: archive.UID, ObservedGeneration: a.generation, Attempts: a.attempts, AdmittedTime: a.admitted}
	add := func(typ string, status metav1.ConditionStatus) {
		entry.Conditions = append(entry.Conditions, metav1.Condition{
			Type: typ, Status: status, Reason: a.reason, LastTransitionTime: now, ObservedGeneration: a.generation,
		})
	}
	if a.failed {
		entry.LastError = &v1alpha1.ImportError{Reason: v1alpha1.ReasonTruncated, Message: "cut"}
	}
	switch a.reason {
	case v1alpha1.ReasonImported:
		entry.Ready, entry.IndexDigest, entry.ImageCount = true, testDigest, 2
	case v1alpha1.ReasonTruncated:
		add(v1alpha1.ConditionReady, metav1.ConditionFalse)
		add(v1alpha1.ConditionStalled, metav1.ConditionTrue)
	case v1alpha1.ReasonSuspended:
		add(v1alpha1.ConditionReady, metav1.ConditionFalse)
	default:
		add(v1alpha1.ConditionReady, metav1.ConditionFalse)
		add(v1alpha1.ConditionReconciling, metav1.ConditionTrue)
	}
	text := fmt.Sprint(archive.UID, a.generation, a.reason, a.failed, a.attempts, a.admitted)
	if text == a.written {
		return nil
	}
	state := &v1alpha1.NodeImageState{ObjectMeta: metav1.ObjectMeta{Name: name}}
	patch, err := client.MergeFrom(state.DeepCopy()).Data(&v1alpha1.NodeImageState{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Status: v1alpha1.NodeImageStateStatus{Archives: []v1alpha1.ArchiveState{entry}},
	})
	if err != nil {
		return err
	}
	err = admin.Status().Patch(ctx, state, client.RawPatch(types.MergePatchType, patch), client.FieldOwner("tarlift-node"))
	if apierrors.IsNotFound(err) {
		return nil
	}
	a.written = text
	return err
}

// check ends a test: the limit held at every moment, in the API server and at the origin.
func (f *simulatedFleet) check(t *testing.T, limit int) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.counted.most > limit || f.most > limit {
		t.Errorf("at a time, %d nodes were admitted and %d imported; want %d at most", f.counted.most, f.most, limit)
	}
	if f.counted.most < limit {
		t.Errorf("only %d nodes were admitted at a time; there are %d places", f.counted.most, limit)
	}
}

// waitForReady waits until this many nodes are ready, and says of how many.
func (f *simulatedFleet) waitForReady(t *testing.T, want int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d nodes to be ready", want), func() (bool, string) {
		f.mu.Lock()
		defer f.mu.Unlock()
		ready := 0
		for _, a := range f.agents {
			if a.reason == v1alpha1.ReasonImported && !a.left {
				ready++
			}
		}
		return ready >= want, fmt.Sprint(ready)
	})
}

func (f *simulatedFleet) newArchive(t *testing.T, rollout string) *v1alpha1.ImageArchive {
	t.Helper()
	a := typed[v1alpha1.ImageArchive](t, archiveWith(t, f.archive,
		fileSource+"nodeSelector: {matchLabels: {fleet: "+f.archive+"}}\nrollout: "+rollout))
	create(t, a)
	return a
}
