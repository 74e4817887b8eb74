package fleet

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
)

func saysWaiting(e *v1alpha1.ArchiveState) {
	e.Conditions = []metav1.Condition{condition.New("Ready", "False", "WaitingForRollout", ""), condition.New("Reconciling", "True", "WaitingForRollout", "")}
}

// scene is a rollout of the archive "a" over nodes n0, n1, …, driven as the reconciler does.
type scene struct {
	t  *testing.T
	ro *rollout
	a  *v1alpha1.ImageArchive
	f  *fleet
	standing
	now  time.Time
	wait time.Duration
}

func newScene(t *testing.T, limit string, maxFailed int32, sayings ...saying) *scene {
	t.Helper()
	a := newArchive("a", 0)
	a.Spec.Rollout = &v1alpha1.Rollout{
		MaxConcurrent: ptr.To(intstr.Parse(limit)), MaxFailed: &maxFailed, ProgressDeadline: &metav1.Duration{Duration: time.Minute},
	}
	nodes, states := cluster(sayings...)
	return &scene{t: t, ro: &rollout{}, a: a, f: &fleet{nodes, states}, now: epoch}
}

// look is one reconcile of which all writes succeed. It returns what was decided, such as "admitted 2, ended n1".
func (s *scene) look() string {
	s.t.Helper()
	s.ro.follow(s.a, s.now)
	members := s.f.members(s.a)
	if s.a.Spec.Rollout != nil {
		s.ro.count(s.a, members, s.now)
	}
	list, wait := s.ro.tidy(s.a, members, s.f.strays(s.a.Name, members), s.now)
	s.apply(list)
	s.wait = wait
	if s.a.Spec.Rollout != nil {
		members = s.f.members(s.a)
		s.standing = s.ro.count(s.a, members, s.now)
		if !s.stopped {
			more, later := s.ro.admit(s.a, members, s.now)
			s.apply(more)
			list, s.wait = append(list, more...), sooner(wait, later)
		}
	}
	var words []string
	admitted := 0
	for _, d := range list {
		if d.verdict == admit {
			admitted++
			continue
		}
		words = append(words, d.verdict.String()+" "+d.node)
	}
	slices.Sort(words)
	if admitted > 0 {
		words = append(words, fmt.Sprintf("admitted %d", admitted))
	}
	return strings.Join(words, ", ")
}

func (s *scene) apply(list []decision) {
	for i := range list {
		d := &list[i]
		state := s.f.states[d.node]
		state.Spec.Admitted = d.apply(state.Spec.Admitted)
		s.ro.done(d, &member{d.node, state, entryFor(s.a, state), admissionFor(s.a.Name, state)}, s.now)
	}
}

func (s *scene) expect(why, want string) {
	s.t.Helper()
	if got := s.look(); got != want {
		s.t.Fatalf("%s: %q, want %q", why, got, want)
	}
}

// admitted are the nodes that hold a place.
func (s *scene) admitted() []string {
	var names []string
	for name, state := range s.f.states {
		if x := admissionFor("a", state); x != nil && !x.Expired {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// say lets a node report something else now.
func (s *scene) say(node string, says saying) {
	state := s.f.states[node]
	e := &state.Status.Archives[1]
	*e = v1alpha1.ArchiveState{Name: "a", UID: s.a.UID, ObservedGeneration: s.a.Generation, Attempts: e.Attempts}
	says(e)
	for i := range e.Conditions {
		e.Conditions[i].LastTransitionTime = *condition.Timestamp(s.now)
	}
	state.ManagedFields = []metav1.ManagedFieldsEntry{{Subresource: "status", Time: condition.Timestamp(s.now)}}
}

func (s *scene) pass(d time.Duration) { s.now = s.now.Add(d) }

// restart is another process that begins.
func (s *scene) restart() { s.ro = &rollout{} }

func waiting(n int) []saying { return slices.Repeat([]saying{saysWaiting}, n) }

func tried(s saying) saying {
	return func(e *v1alpha1.ArchiveState) { s(e); e.Attempts++ }
}

func TestRolloutPlaces(t *testing.T) {
	for _, test := range []struct {
		limit    intstr.IntOrString
		selected int
		want     int
	}{
		{intstr.FromInt32(3), 10, 3},
		{intstr.FromInt32(30), 10, 30},
		{intstr.FromString("10%"), 10, 1},
		{intstr.FromString("10%"), 11, 2},
		{intstr.FromString("1%"), 5, 1},
		{intstr.FromString("10%"), 0, 1},
		{intstr.FromString("100%"), 7, 7},
		{intstr.FromString("nonsense"), 7, 1},
	} {
		if got := (&v1alpha1.Rollout{MaxConcurrent: &test.limit}).Places(test.selected); got != test.want {
			t.Errorf("%s of %d: %d, want %d", test.limit.String(), test.selected, got, test.want)
		}
	}
	if got := (&v1alpha1.Rollout{}).Places(25); got != 3 {
		t.Errorf("without a limit: %d of 25, want a tenth", got)
	}
}

func TestRolloutGoesThroughAllNodes(t *testing.T) {
	s := newScene(t, "2", 1, append(waiting(5), saysReady, nil)...)
	s.expect("the first", "admitted 2")
	s.expect("nobody is done", "")
	for range 4 {
		node := s.admitted()[0]
		s.say(node, tried(saysImporting))
		s.expect("it imports", "")
		s.say(node, saysReady)
		got := s.look()
		if want := "ended " + node; got != want && got != want+", admitted 1" {
			t.Fatalf("after %s: %q", node, got)
		}
	}
	s.say(s.admitted()[0], saysReady)
	s.look()
	if left := s.admitted(); len(left) > 0 {
		t.Errorf("%v are admitted, though all that report are ready", left)
	}
	s.f.states["n6"] = &v1alpha1.NodeImageState{ObjectMeta: metav1.ObjectMeta{Name: "n6"}}
	s.expect("a new node that has not reported on this archive", "")
	s.f.states["n6"].Status.Archives = make([]v1alpha1.ArchiveState, 2)
	s.say("n6", saysWaiting)
	s.expect("a new node", "admitted 1")
}

// Another archive begins with other nodes, another process with the same.
func TestRolloutOrder(t *testing.T) {
	first := func(uid string) []string {
		s := newScene(t, "5", 1, waiting(50)...)
		if uid != "" {
			s.a.UID = newArchive(uid, 0).UID
			for _, state := range s.f.states {
				state.Status.Archives[1].UID = s.a.UID
			}
		}
		s.look()
		return s.admitted()
	}
	if !slices.Equal(first(""), first("")) {
		t.Error("the order is another each time")
	}
	if slices.Equal(first(""), first("b")) {
		t.Error("the same nodes go first with another archive")
	}
}

func TestSilentNodeLosesItsPlace(t *testing.T) {
	s := newScene(t, "1", 1, waiting(3)...)
	s.look()
	node := s.admitted()[0]
	s.say(node, tried(saysImporting))
	s.pass(50 * time.Second)
	s.expect("in time", "")
	bytes := func(n int64) saying {
		return func(e *v1alpha1.ArchiveState) {
			saysImporting(e)
			e.Attempts = 1
			e.Bytes = &v1alpha1.ArchiveBytes{Done: n}
		}
	}
	s.say(node, bytes(5))
	s.pass(50 * time.Second)
	s.expect("5 bytes are progress", "")
	s.pass(11 * time.Second)
	s.expect("a minute without progress", "expired "+node)
	if s.failed != 1 || s.stopped {
		t.Errorf("%+v, want one failed node", s.standing)
	}
	if s.wait != graceOf(s.a.Spec.Rollout) {
		t.Errorf("waits %s for it to stop, want %s", s.wait, graceOf(s.a.Spec.Rollout))
	}
	s.pass(graceOf(s.a.Spec.Rollout))
	s.expect("then it has stopped", "admitted 1")
	if s.admitted()[0] == node {
		t.Error("it is admitted again before the others")
	}
}

func TestExpiredNodeThatSpeaksFreesItsPlaceAtOnce(t *testing.T) {
	s := newScene(t, "1", 1, waiting(2)...)
	s.look()
	node := s.admitted()[0]
	s.say(node, tried(saysImporting))
	s.look()
	s.pass(2 * time.Minute)
	s.expect("silent", "expired "+node)
	s.say(node, tried(saysWaiting))
	s.expect("it has stopped", "admitted 1")
	other := s.admitted()[0]
	s.say(other, saysReady)
	s.expect("after all others, it is let in again at once, since it lives", "ended "+other+", admitted 1")
	if s.failed != 0 && s.admitted()[0] != node {
		t.Errorf("%+v %v", s.standing, s.admitted())
	}
	s.look()
	if s.failed != 0 {
		t.Errorf("%d failed, though it is let in again", s.failed)
	}
}

// A process that begins cannot know when a node spoke, but that it has stopped.
func TestExpiredNodeThatSpokeBeforeTheStart(t *testing.T) {
	s := newScene(t, "1", 1, waiting(1)...)
	s.look()
	s.say("n0", tried(saysImporting))
	s.pass(2 * time.Minute)
	s.expect("silent", "expired n0")
	s.say("n0", tried(saysWaiting))
	s.restart()
	s.expect("it lives", "admitted 1")
}

func TestAdmissionsForNoArchive(t *testing.T) {
	s := newScene(t, "1", 1, waiting(2)...)
	s.look()
	node := s.admitted()[0]
	s.restart()
	s.a = &v1alpha1.ImageArchive{ObjectMeta: metav1.ObjectMeta{Name: "a"}}
	s.expect("it was deleted", "ended "+node)
}

// A node that fails again and again makes no progress by that.
func TestRetriesAreNoProgress(t *testing.T) {
	s := newScene(t, "1", 5, waiting(2)...)
	s.look()
	node := s.admitted()[0]
	for i := range 5 {
		s.say(node, tried(saysRetrying))
		s.pass(10 * time.Second)
		s.expect(fmt.Sprintf("attempt %d", i), "")
	}
	s.say(node, tried(saysRetrying))
	s.pass(15 * time.Second)
	s.expect("a minute after its first failure", "expired "+node)
}

// What the API server noted of a node's last report counts for a process that begins, the time of the admission alone
// would end a long import.
func TestRestartKnowsTheLastReport(t *testing.T) {
	s := newScene(t, "1", 1, waiting(2)...)
	s.a.Spec.Rollout.ProgressDeadline.Duration = 10 * time.Minute
	s.look()
	node := s.admitted()[0]
	s.pass(time.Hour)
	s.say(node, tried(saysImporting))
	s.restart()
	s.expect("it reports", "")
	s.pass(9 * time.Minute)
	s.expect("9 minutes ago", "")
	s.restart()
	s.pass(2 * time.Minute)
	s.expect("11 minutes ago, but this process has heard nothing yet", "")
	s.pass(speakTime)
	s.expect("13 minutes ago", "expired "+node)
	s.restart()
	s.expect("a process that begins waits for it to stop, too", "")
	s.pass(graceOf(s.a.Spec.Rollout))
	s.expect("and goes on", "admitted 1")
}

func TestStalledNodeFreesItsPlace(t *testing.T) {
	s := newScene(t, "1", 1, waiting(3)...)
	s.look()
	node := s.admitted()[0]
	s.say(node, tried(saysStalled))
	s.expect("it has failed for good", "ended "+node+", admitted 1")
	if s.failed != 1 || s.stopped {
		t.Errorf("%+v, want one failed", s.standing)
	}
	second := s.admitted()[0]
	s.say(second, tried(saysStalled))
	s.expect("the second", "ended "+second)
	if s.failed != 2 || !s.stopped {
		t.Errorf("%+v, want a stop", s.standing)
	}
	s.restart()
	s.pass(time.Hour)
	s.expect("another process knows", "")
	if !s.stopped {
		t.Error("another process goes on")
	}
	s.a = edited(s.a, func(*v1alpha1.ImageArchive) {})
	for node := range s.f.states {
		s.say(node, saysWaiting)
	}
	s.expect("another spec begins anew", "admitted 1")
}

// What was wrong before a node was let in again says nothing about this attempt.
func TestOldFailureOfAnAdmittedNode(t *testing.T) {
	s := newScene(t, "1", 1, saysWaiting)
	s.look()
	s.say("n0", tried(saysStalled))
	s.expect("failed", "ended n0")
	s.expect("not again at once", "")
	if s.wait != stalledInterval {
		t.Errorf("next in %s, want %s", s.wait, stalledInterval)
	}
	s.pass(stalledInterval)
	s.expect("again", "admitted 1")
	s.expect("the old report", "")
	if s.failed != 0 {
		t.Error("the old failure counts, though it is tried again")
	}
	s.pass(2 * time.Second)
	s.restart()
	s.expect("the old report, to another process", "")
	s.say("n0", tried(saysStalled))
	s.expect("failed again", "ended n0")
	if s.failed != 1 {
		t.Errorf("%d failed", s.failed)
	}
}

func TestRequestLetsAStoppedRolloutGoOn(t *testing.T) {
	s := newScene(t, "2", 0, waiting(4)...)
	s.look()
	failing := s.admitted()
	for _, node := range failing {
		s.say(node, tried(saysStalled))
	}
	s.expect("stopped", fmt.Sprintf("ended %s, ended %s", failing[0], failing[1]))
	request := func(value string) {
		s.a.Annotations = map[string]string{v1alpha1.AnnotationReconcileRequestedAt: value}
	}
	request("1")
	s.expect("go on", "admitted 2")
	if len(s.admitted()) != 2 || slices.Contains(s.admitted(), failing[0]) {
		t.Errorf("%v are admitted, want those first that have not failed", s.admitted())
	}
	for _, node := range s.admitted() {
		s.say(node, saysReady)
	}
	s.look()
	if got := s.admitted(); !slices.Equal(got, failing) {
		t.Errorf("%v are admitted, want those that had failed, %v", got, failing)
	}
	s.pass(time.Second)
	s.say(failing[0], tried(saysStalled))
	s.expect("it fails as before", "ended "+failing[0])
	if !s.stopped || s.failed != 1 {
		t.Errorf("%+v, want it stopped again", s.standing)
	}

	// The request came while no process ran.
	for value, stopped := range map[string]bool{
		"1":   true,
		"now": true,
		s.now.Add(-time.Hour).Format(time.RFC3339): true,
		s.now.Add(time.Hour).Format(time.RFC3339):  false,
		fmt.Sprint(s.now.Add(time.Hour).Unix()):    false,
		fmt.Sprint(s.now.Add(-time.Hour).Unix()):   true,
	} {
		request(value)
		s.restart()
		s.ro.follow(s.a, s.now)
		if got := s.ro.count(s.a, s.f.members(s.a), s.now); got.stopped != stopped {
			t.Errorf("request %s before the start: stopped %v, want %v", value, got.stopped, stopped)
		}
	}
}

// A process that begins knows by its time that somebody has asked an earlier one to go on.
func TestRequestOutlivesTheProcess(t *testing.T) {
	s := newScene(t, "2", 0, waiting(5)...)
	s.look()
	failing := s.admitted()
	s.say(failing[0], tried(saysStalled))
	s.say(failing[1], tried(saysImporting))
	s.expect("stopped", "ended "+failing[0])
	s.pass(2 * time.Minute)
	s.expect("silent", "expired "+failing[1])
	s.pass(graceOf(s.a.Spec.Rollout))
	s.a.Annotations = map[string]string{v1alpha1.AnnotationReconcileRequestedAt: s.now.Format(time.RFC3339)}
	s.expect("go on", "admitted 2")
	s.restart()
	s.look()
	if s.stopped || s.failed != 0 {
		t.Errorf("%+v to another process, want it to go on", s.standing)
	}
	s.pass(time.Second)
	node := s.admitted()[0]
	s.say(node, tried(saysStalled))
	s.look()
	s.restart()
	s.look()
	if !s.stopped || s.failed != 1 {
		t.Errorf("%+v, want the failure after the request to count", s.standing)
	}
}

// What has failed before its place was taken from it gives that back, though somebody asks to go on at the same time.
func TestRequestKeepsNoPlaces(t *testing.T) {
	s := newScene(t, "1", 0, waiting(3)...)
	s.look()
	node := s.admitted()[0]
	s.pass(time.Second)
	s.say(node, tried(saysStalled))
	s.a.Annotations = map[string]string{v1alpha1.AnnotationReconcileRequestedAt: "now"}
	s.expect("failed and asked", "ended "+node+", admitted 1")
	if s.failed != 0 {
		t.Errorf("%d failed, though somebody asked to go on", s.failed)
	}
}

// That a node waited before it was let in does not say that it has stopped.
func TestExpiredNodeThatNeverSpoke(t *testing.T) {
	s := newScene(t, "1", 1, waiting(2)...)
	s.look()
	node := s.admitted()[0]
	s.pass(3 * time.Minute)
	s.expect("it may be at work all the same", "expired "+node)
	s.pass(graceOf(s.a.Spec.Rollout))
	s.expect("then it knows", "admitted 1")
	s.say(s.admitted()[0], saysReady)
	s.look()
	s.pass(stalledInterval - graceOf(s.a.Spec.Rollout))
	s.expect("it has nothing to say when it comes back", "admitted 1")
}

// A node that is dead is not let in for ever; it takes a place from others, and two writes, each time.
func TestDeadNodeIsNotLetInAgain(t *testing.T) {
	retrying := func(e *v1alpha1.ArchiveState) { saysRetrying(e); e.Conditions[1].Reason = "Pending" }
	for _, lastWord := range []saying{saysImporting, saysRetrying, retrying} {
		s := newScene(t, "1", 1, waiting(1)...)
		s.look()
		s.say("n0", tried(lastWord))
		s.look()
		s.pass(3 * time.Minute)
		s.expect("silent", "expired n0")
		for range 3 {
			s.pass(time.Hour)
			s.expect("it still says that it is at work", "")
		}
		s.restart()
		s.pass(time.Hour)
		s.expect("also to another process", "")
		s.say("n0", saysWaiting)
		s.expect("it lives", "admitted 1")
	}
}

// A node whose containerd does not answer says nothing about the archive.
func TestUntriedNodesDoNotStopARollout(t *testing.T) {
	s := newScene(t, "1", 0, saysRetrying, saysRetrying, saysWaiting)
	s.expect("the sound one", "admitted 1")
	if s.failed != 0 || s.admitted()[0] != "n2" {
		t.Errorf("%+v %v", s.standing, s.admitted())
	}
}

func TestSuspendHolds(t *testing.T) {
	s := newScene(t, "1", 1, waiting(3)...)
	s.look()
	node := s.admitted()[0]
	suspend := func(on bool) {
		s.a = edited(s.a, func(a *v1alpha1.ImageArchive) { a.Spec.Suspend = on })
	}
	suspend(true)
	s.expect("suspended", "")
	for node := range s.f.states {
		s.say(node, saysSuspended)
	}
	s.pass(time.Hour)
	s.expect("for an hour", "")
	suspend(false)
	s.expect("it goes on where it was", "renewed "+node)
	for node := range s.f.states {
		s.say(node, saysWaiting)
	}
	s.pass(59 * time.Second)
	s.expect("with its whole time", "")
	if got := s.admitted(); len(got) != 1 {
		t.Errorf("%v are admitted", got)
	}
}

func TestAdmissionsThatLostTheirReason(t *testing.T) {
	for _, test := range []struct {
		why  string
		edit func(*scene)
		want string
	}{
		{"the spec changed", func(s *scene) { s.a.Generation++ }, "renewed n0, renewed n1"},
		{"it changed to fewer places", func(s *scene) {
			s.a.Generation++
			s.a.Spec.Rollout.MaxConcurrent = ptr.To(intstr.FromInt32(1))
		}, "ended n1, renewed n0"},
		{"the rollout was removed", func(s *scene) { s.a.Spec.Rollout, s.a.Generation = nil, 2 }, "ended n0, ended n1"},
		{"another archive of the name", func(s *scene) { s.a.UID = "other" }, "ended n0, ended n1"},
		{"a node is no longer selected", func(s *scene) {
			s.a.Spec.NodeSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"n": "1"}}
		}, "ended n0"},
		{"a node is gone", func(s *scene) { s.f.nodes = s.f.nodes[:1] }, "ended n1"},
		{"a node was replaced", func(s *scene) {
			s.f.nodes[1].UID = "later"
			s.f.states["n1"].OwnerReferences = []metav1.OwnerReference{{Kind: "Node", UID: "earlier"}}
		}, "ended n1"},
		{"an archive from an old cache", func(s *scene) { s.a.Generation = 0 }, ""},
		{"expired for an earlier spec", func(s *scene) {
			s.f.states["n1"].Spec.Admitted[0].Expired = true
			s.a.Generation++
		}, "ended n1, renewed n0"},
	} {
		s := newScene(t, "2", 1, waiting(2)...)
		s.look()
		test.edit(s)
		s.expect(test.why, test.want)
	}
}

func TestDriftThatIsIgnoredIsNotLetIn(t *testing.T) {
	s := newScene(t, "1", 1, func(e *v1alpha1.ArchiveState) {
		e.Conditions = []metav1.Condition{condition.New("Ready", "False", "Drifted", "")}
	})
	s.a.Spec.DriftPolicy = v1alpha1.DriftIgnore
	s.expect("ignored", "")
	s.a.Spec.DriftPolicy = v1alpha1.DriftReimport
	s.expect("healed", "admitted 1")

	s = newScene(t, "1", 1, func(e *v1alpha1.ArchiveState) {
		e.Conditions = []metav1.Condition{condition.New("Ready", "False", "Drifted", ""), condition.New("Reconciling", "True", "WaitingForRollout", "")}
	})
	s.a.Spec.DriftPolicy = v1alpha1.DriftIgnore
	s.expect("its source has changed", "admitted 1")
}

// A process that is told to end, or has lost its Lease, begins no further write.
func TestEndStopsAdmissions(t *testing.T) {
	s := newScene(t, "2", 1, waiting(2)...)
	r := &Reconciler{admissions: newAdmissions(nil, nil, time.Now), metrics: newFleetMetrics(nil), archives: map[string]*knownArchive{"a": {rollout: *s.ro}}}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	list := []decision{{admit, "n0", newAdmission(s.a, s.now)}, {admit, "n1", newAdmission(s.a, s.now)}}
	if wait, err := r.carryOut(ctx, s.a, s.f, list, s.now); wait == 0 || err != nil {
		t.Errorf("more in %s, %v; want both to be left", wait, err)
	}
}

// Other archives' admissions on a node are kept.
func TestDecisionsApply(t *testing.T) {
	other := v1alpha1.Admission{Archive: "z", UID: "uid-z", Generation: 7}
	first := v1alpha1.Admission{Archive: "a", UID: "uid-a", Generation: 1}
	second := v1alpha1.Admission{Archive: "a", UID: "uid-a", Generation: 2}
	for _, test := range []struct {
		verdict verdict
		before  []v1alpha1.Admission
		want    []v1alpha1.Admission
	}{
		{admit, []v1alpha1.Admission{other}, []v1alpha1.Admission{second, other}},
		{renew, []v1alpha1.Admission{other, first}, []v1alpha1.Admission{second, other}},
		{remove, []v1alpha1.Admission{first, other}, []v1alpha1.Admission{other}},
		{remove, []v1alpha1.Admission{other}, []v1alpha1.Admission{other}},
	} {
		d := decision{test.verdict, "n", second}
		if got := d.apply(test.before); !slices.Equal(got, test.want) {
			t.Errorf("%s of %v: %v, want %v", test.verdict, test.before, got, test.want)
		}
	}
}

func ready(s *scene, node string) bool {
	return (&member{entry: entryFor(s.a, s.f.states[node])}).ready()
}

// Whatever nodes, specs and processes do, the limit holds, and in the end every sound node is ready.
func TestRolloutHoldsItsLimitThroughEverything(t *testing.T) {
	for seed := range uint64(60) {
		random := rand.New(rand.NewPCG(seed, 0))
		s := newScene(t, fmt.Sprint(1+seed%4), 1000, waiting(12)...)
		dead := fmt.Sprintf("n%d", random.IntN(12))
		for range 300 {
			s.pass(time.Duration(random.IntN(20)) * time.Second)
			node := fmt.Sprintf("n%d", random.IntN(12))
			x := admissionFor("a", s.f.states[node])
			may := x != nil && !x.Expired && x.Generation == s.a.Generation
			switch what := random.IntN(20); {
			case what == 0:
				s.restart()
			case what == 1:
				s.a = edited(s.a, func(*v1alpha1.ImageArchive) {})
			case node == dead:
			case may:
				s.say(node, []saying{tried(saysImporting), saysReady, tried(saysRetrying), tried(saysStalled), saysReady}[random.IntN(5)])
			case !ready(s, node): // nor admitted
				s.say(node, saysWaiting)
			}
			s.look()
			if n := len(s.admitted()); n > s.a.Spec.Rollout.Places(12) {
				t.Fatalf("seed %d: %d admitted, want %s at most", seed, n, s.a.Spec.Rollout.MaxConcurrent)
			}
		}
		for range 500 {
			s.look()
			for node, state := range s.f.states {
				x := admissionFor("a", state)
				switch {
				case node == dead:
				case x != nil && !x.Expired && x.Generation == s.a.Generation:
					s.say(node, saysReady)
				case !ready(s, node):
					s.say(node, saysWaiting)
				}
			}
			s.pass(10 * time.Second)
		}
		for _, m := range s.f.members(s.a) {
			if m.name != dead && !m.ready() {
				t.Fatalf("seed %d: %s is left behind: %+v %+v", seed, m.name, m.entry, m.admission)
			}
		}
	}
}
