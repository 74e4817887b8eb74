package envtest

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/api/v1alpha1"
)

// Controllers come and go, the spec changes on the way, and two agents die silently.
func TestRolloutHoldsItsLimit(t *testing.T) {
	f := newFleet(t, "holds", 14)
	f.set(func(name string, a *fleetAgent) { a.dead = name == "holds-3" || name == "holds-4" })
	a := f.newArchive(t, "{maxConcurrent: 3, maxFailed: 100, progressDeadline: 2s}")
	for i := range 8 {
		p := startController(t)
		time.Sleep(time.Duration(200+i*90) * time.Millisecond)
		if i == 4 {
			update(t, a, func() { a.Spec.Source.File.Path = "b.tar" })
		}
		p.stop()
	}
	startController(t)
	f.waitForReady(t, 12)
	waitForArchive(t, "holds", "Ready=False/ProgressDeadlineExceeded Reconciling=True/Importing", "12/14")
	f.set(func(_ string, a *fleetAgent) { a.dead = false })
	update(t, a, func() { a.Annotations = map[string]string{v1alpha1.AnnotationReconcileRequestedAt: "now"} })
	waitForArchive(t, "holds", archiveReady, "14/14")
	f.check(t, 3)
	eventually(t, "no node to be admitted", func() (bool, string) {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.counted.admitted) == 0, fmt.Sprint(f.counted.admitted)
	})
}

// More nodes fail than may, somebody asks to go on, and the archive is mended.
func TestRolloutStops(t *testing.T) {
	startController(t)
	f := newFleet(t, "stops", 6)
	f.set(func(_ string, a *fleetAgent) { a.failing = true })
	a := f.newArchive(t, "{maxConcurrent: 1, maxFailed: 1}")
	got := waitForArchive(t, "stops", "Ready=False/RolloutStopped Stalled=True/RolloutStopped", "0/6")
	time.Sleep(500 * time.Millisecond) // others would begin in this time
	f.mu.Lock()
	if n := len(f.counted.ever); n != 2 {
		t.Errorf("%d nodes were let in, want 2", n)
	}
	f.mu.Unlock()
	if m := got.Status.Conditions[0].Message; !strings.Contains(m, "maxFailed is 1") || !strings.Contains(m, "4 waiting") {
		t.Errorf("message %q", m)
	}
	waitForEvent(t, a.UID, "RolloutStopped", "2 failed")

	f.set(func(_ string, a *fleetAgent) { a.failing = false })
	update(t, a, func() { a.Annotations = map[string]string{v1alpha1.AnnotationReconcileRequestedAt: "now"} })
	waitForArchive(t, "stops", archiveReady, "6/6")
	f.check(t, 1)
}

// Suspended, nobody is let in; nodes come, and go, and the share of all of them changes with it.
func TestRolloutFollowsTheNodes(t *testing.T) {
	startController(t)
	f := newFleet(t, "follows", 10)
	a := f.newArchive(t, "{maxConcurrent: 20%}\nsuspend: true")
	waitForArchive(t, "follows", "Ready=False/Suspended", "0/10")
	time.Sleep(500 * time.Millisecond)
	f.mu.Lock()
	if n := len(f.counted.ever); n != 0 {
		t.Errorf("%d nodes were let in while suspended", n)
	}
	f.mu.Unlock()
	update(t, a, func() { a.Spec.Suspend = false })
	waitForArchive(t, "follows", archiveReady, "10/10")
	f.check(t, 2)

	f.add(t, 10)
	waitForArchive(t, "follows", archiveReady, "11/11")
	f.set(func(name string, a *fleetAgent) { a.left = name == "follows-0" })
	if err := admin.Delete(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "follows-0"}}); err != nil {
		t.Fatal(err)
	}
	waitForArchive(t, "follows", archiveReady, "10/10")
	waitForNoState(t, "follows-0")

	// A heal takes a place like an import.
	f.set(func(_ string, a *fleetAgent) { a.reason = v1alpha1.ReasonWaitingForRollout })
	f.waitForReady(t, 10)
	waitForArchive(t, "follows", archiveReady, "10/10")

	// Without a rollout, nobody is let in any more.
	f.set(func(_ string, a *fleetAgent) { a.dead = true })
	update(t, a, func() { a.Spec.Source.File.Path = "b.tar"; a.Spec.Rollout.MaxConcurrent = ptr.To(intstr.FromInt32(2)) })
	eventually(t, "two to be admitted", func() (bool, string) { return f.admitted() == 2, fmt.Sprint(f.admitted()) })
	update(t, a, func() { a.Spec.Rollout = nil })
	eventually(t, "none to be admitted", func() (bool, string) { return f.admitted() == 0, fmt.Sprint(f.admitted()) })
}

func (f *simulatedFleet) admitted() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.counted.admitted)
}

// Admissions of an archive that was deleted go, also when nobody was there to see it.
func TestAdmissionsGoWithTheirArchive(t *testing.T) {
	p := startController(t)
	f := newFleet(t, "gone", 3)
	f.set(func(_ string, a *fleetAgent) { a.dead = true })
	for i := range 2 {
		a := f.newArchive(t, "{maxConcurrent: 2}")
		eventually(t, "two to be admitted", func() (bool, string) { return f.admitted() == 2, fmt.Sprint(f.admitted()) })
		if i == 1 {
			p.stop()
		}
		if err := admin.Delete(t.Context(), a); err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			startController(t)
		}
		eventually(t, "none to be admitted", func() (bool, string) { return f.admitted() == 0, fmt.Sprint(f.admitted()) })
	}
}

func waitForNoState(t *testing.T, name string) {
	t.Helper()
	eventually(t, "the NodeImageState of "+name+" to go", func() (bool, string) {
		err := admin.Get(t.Context(), client.ObjectKey{Name: name}, &v1alpha1.NodeImageState{})
		return err != nil && client.IgnoreNotFound(err) == nil, fmt.Sprint(err)
	})
}

// There is no garbage collector here, as there may be none elsewhere.
func TestStateGoesWithItsNode(t *testing.T) {
	state := func(name string, uid *corev1.Node) *v1alpha1.NodeImageState {
		return &v1alpha1.NodeImageState{ObjectMeta: metav1.ObjectMeta{
			Name: name, OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: uid.Name, UID: uid.UID}},
		}}
	}
	node := func(name string) *corev1.Node {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
		create(t, n)
		return n
	}
	before, stays, replaced := node("before"), node("stays"), node("replaced")
	for _, n := range []*corev1.Node{before, stays, replaced} {
		create(t, state(n.Name, n))
	}
	for _, n := range []*corev1.Node{before, replaced} {
		if err := admin.Delete(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	node("replaced") // another of the name
	startController(t)
	waitForNoState(t, "before")
	waitForNoState(t, "replaced")
	after := node("after")
	create(t, state("after", after))
	if err := admin.Delete(t.Context(), after); err != nil {
		t.Fatal(err)
	}
	waitForNoState(t, "after")
	if err := admin.Get(t.Context(), client.ObjectKey{Name: "stays"}, &v1alpha1.NodeImageState{}); err != nil {
		t.Errorf("the one whose Node is there: %v", err)
	}
}

// A leader that is killed in the middle leaves the rest to another, which takes over after its Lease.
func TestRolloutSurvivesItsLeader(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "agent")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "../../cmd/agent").CombinedOutput(); err != nil {
		t.Fatalf("build the agent: %v\n%s", err, out)
	}
	start := func() *program {
		return launch(t, binary, as("tarlift-controller"), "controller", "--leader-elect", "--leader-election-namespace="+systemNamespace,
			"--health-probe-bind-address=0", "--metrics-bind-address=0")
	}
	leader := start()
	holder := func() string {
		var lease coordinationv1.Lease
		if err := admin.Get(t.Context(), client.ObjectKey{Namespace: systemNamespace, Name: "controller.tarlift.dev"}, &lease); err != nil {
			return err.Error()
		}
		return ptr.Deref(lease.Spec.HolderIdentity, "")
	}
	f := newFleet(t, "leaders", 30)
	f.newArchive(t, "{maxConcurrent: 4}")
	f.waitForReady(t, 8)
	first := holder()
	second := start()
	f.set(func(_ string, a *fleetAgent) { a.until = time.Now().Add(5 * time.Second) }) // it is killed with all places taken
	if err := leader.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-leader.done
	_ = leader.cmd.Wait()
	waitForArchive(t, "leaders", archiveReady, "30/30")
	f.check(t, 4)
	if h := holder(); h == first {
		t.Errorf("%s leads still", h)
	}
	second.end(t)
}
