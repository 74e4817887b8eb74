package fleet

import (
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

// scene is a rollout of the archive "a" over nodes n0, n1, …, driven as the reconciler does, on a clock of its own.
type scene struct {
	*snapshot
	t       *testing.T
	ro      *rollout
	a       *v1alpha1.ImageArchive
	started time.Time
	now     time.Time
	wait    time.Duration
}

func newScene(t *testing.T, limit string, maxFailed int32, n int) *scene {
	t.Helper()
	a := newArchive("a")
	a.Spec.Rollout = &v1alpha1.Rollout{
		MaxConcurrent: ptr.To(intstr.Parse(limit)), MaxFailed: &maxFailed, ProgressDeadline: &metav1.Duration{Duration: time.Minute},
	}
	nodes, states := cluster(slices.Repeat([]saying{saysWaiting}, n)...)
	return &scene{t: t, ro: &rollout{}, a: a, snapshot: &snapshot{nodes, states}, started: epoch, now: epoch}
}

// decide is one reconcile of which all writes succeed. It returns what was decided, such as "admitted 2, ended n1".
func (s *scene) decide() string {
	s.t.Helper()
	nodes, err := s.selected(s.a)
	if err != nil {
		s.t.Fatal(err)
	}
	var list []decision
	for _, name := range s.unselected(s.a.Name, nodes) {
		list = append(list, decision{ended, name, v1alpha1.Admission{Archive: "a"}})
	}
	s.ro.observe(s.a, nodes, s.started, s.now)
	more, wait := s.ro.decide(s.a, nodes, s.now)
	s.wait = wait
	var words []string
	n := 0
	for _, d := range append(list, more...) {
		state := s.states[d.node]
		state.Spec.Admitted = d.apply(state.Spec.Admitted)
		if d.verdict == expired {
			p := s.ro.progress[d.node]
			s.ro.failures[d.node] = failure{admitted: p.admitted, timedOut: true, entry: p.entry.DeepCopy(), since: s.now}
		}
		if d.verdict == admitted {
			n++
			continue
		}
		words = append(words, string(d.verdict)+" "+d.node)
	}
	slices.Sort(words)
	if n > 0 {
		words = append(words, fmt.Sprintf("admitted %d", n))
	}
	return strings.Join(words, ", ")
}

func (s *scene) expect(why, want string) {
	s.t.Helper()
	if got := s.decide(); got != want {
		s.t.Fatalf("%s: %q, want %q", why, got, want)
	}
}

// admitted are the nodes that hold a slot.
func (s *scene) admitted() (names []string) {
	for name, state := range s.states {
		if admissionFor("a", state) != nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// say lets a node report something under the admission that it has.
func (s *scene) say(node string, says saying) {
	state := s.states[node]
	s.sayUnder(node, admissionFor("a", state), says)
}

// sayUnder is say, under another admission or none.
func (s *scene) sayUnder(node string, x *v1alpha1.Admission, says saying) {
	e := &s.states[node].Status.Archives[1]
	*e = v1alpha1.ArchiveState{Name: "a", UID: s.a.UID, ObservedGeneration: s.a.Generation, Attempts: 1}
	says(e)
	if x != nil {
		e.AdmittedTime = x.Time.DeepCopy()
	}
}

func (s *scene) moved(node string, bytes int64) {
	s.say(node, func(e *v1alpha1.ArchiveState) {
		saysImporting(e)
		e.Bytes = &v1alpha1.ArchiveBytes{Total: 1 << 30, Done: bytes}
	})
}

func (s *scene) pass(d time.Duration) { s.now = s.now.Add(d) }

func TestRolloutSlots(t *testing.T) {
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
		if got := (&v1alpha1.Rollout{MaxConcurrent: &test.limit}).Slots(test.selected); got != test.want {
			t.Errorf("%s of %d: %d, want %d", test.limit.String(), test.selected, got, test.want)
		}
	}
	if got := (&v1alpha1.Rollout{}).Slots(25); got != 3 {
		t.Errorf("without a limit: %d of 25, want a tenth", got)
	}
}

// A node after the other: a slot ends when its node reports ready, stalled or waiting under this admission.
func TestSlotsEnd(t *testing.T) {
	for why, says := range map[string]saying{"ready": saysReady, "stalled": saysStalled, "waiting": saysWaiting, "suspended": saysSuspended} {
		s := newScene(t, "1", 5, 3)
		s.expect(why, "admitted 1")
		first := s.admitted()[0]
		s.expect("it has not reported yet", "")
		s.moved(first, 1)
		s.expect("it imports", "")
		s.sayUnder(first, &v1alpha1.Admission{Time: metav1.NewTime(epoch.Add(-time.Hour))}, saysStalled)
		s.expect("a report under an earlier admission says nothing", "")
		s.say(first, says)
		s.expect(why, "ended "+first+", admitted 1")
		if why == "ready" && s.admitted()[0] == first {
			t.Errorf("%s is admitted again", first)
		}
	}
}

// A failure that is tried again keeps its slot until the deadline; so does a node that nobody hears of. Another follows, and
// the first comes again after all others.
func TestProgressDeadline(t *testing.T) {
	for why, says := range map[string]saying{"silent": nil, "failing": saysRetrying} {
		s := newScene(t, "1", 5, 2)
		s.expect(why, "admitted 1")
		first := s.admitted()[0]
		if says != nil {
			s.say(first, says)
		}
		s.expect("it is observed", "")
		s.pass(30 * time.Second)
		s.expect("half of the deadline", "")
		if s.wait <= 0 || s.wait > time.Minute {
			t.Errorf("looks again in %s", s.wait)
		}
		s.pass(31 * time.Second)
		s.expect("the deadline", "expired "+first+", admitted 1")
		if other := s.admitted()[0]; other == first {
			t.Errorf("%s is admitted again at once", first)
		} else {
			s.say(other, saysReady)
			s.expect("which is ready", "ended "+other)
		}
		s.expect("it is silent: not before ten minutes", "")
		s.pass(retryAfter / 2)
		s.sayUnder(first, nil, func(e *v1alpha1.ArchiveState) { saysWaiting(e); e.Attempts = 7 })
		s.expect("it is back", "admitted 1")
	}
}

// Progress is judged by the controller's own clock: whoever moves bytes keeps its slot.
func TestProgressKeepsTheSlot(t *testing.T) {
	s := newScene(t, "1", 5, 2)
	s.expect("begin", "admitted 1")
	first := s.admitted()[0]
	for i := range 20 {
		s.pass(50 * time.Second)
		s.moved(first, int64(i+1))
		s.expect("it moves on", "")
	}
	s.pass(61 * time.Second)
	s.expect("it does not any more", "expired "+first+", admitted 1")
}

// A controller whose clock is ahead or behind takes nothing from nodes that report, nor does one that begins anew.
func TestClocksOfOthersDoNotCount(t *testing.T) {
	s := newScene(t, "1", 5, 2)
	s.expect("begin", "admitted 1")
	first := s.admitted()[0]
	s.moved(first, 1)
	for _, d := range []time.Duration{24 * time.Hour, -48 * time.Hour} {
		s.ro, s.now = &rollout{}, s.now.Add(d)
		s.started = s.now
		s.expect("another process, whose clock is another", "")
		s.pass(30 * time.Second)
		s.moved(first, int64(d))
		s.expect("it reports", "")
	}
}

// A smaller limit frees no slots of nodes that work: nobody is admitted until there is room.
func TestSmallerLimit(t *testing.T) {
	s := newScene(t, "4", 5, 8)
	s.expect("begin", "admitted 4")
	s.a.Spec.Rollout.MaxConcurrent = ptr.To(intstr.FromInt32(2))
	names := s.admitted()
	for i, name := range names {
		s.moved(name, 1)
		s.expect("they work on", "")
		if i == len(names)-1 {
			break
		}
	}
	s.say(names[0], saysReady)
	s.say(names[1], saysReady)
	s.expect("two end", "ended "+names[0]+", ended "+names[1])
	s.say(names[2], saysReady)
	s.expect("another ends", "ended "+names[2]+", admitted 1")
}

// Slots of nodes that are selected no more end, and so do all when there is no rollout any more.
func TestUnselectedNodesLoseTheirSlots(t *testing.T) {
	s := newScene(t, "2", 5, 4)
	s.expect("begin", "admitted 2")
	first := s.admitted()[0]
	s.nodes = slices.DeleteFunc(s.nodes, func(n metav1.PartialObjectMetadata) bool { return n.Name == first })
	s.expect("a node is gone", "ended "+first+", admitted 1")
}

// Another generation is admitted anew, as far as there is room.
func TestAnotherGeneration(t *testing.T) {
	s := newScene(t, "2", 5, 3)
	s.expect("begin", "admitted 2")
	names := s.admitted()
	s.a.Generation++
	s.expect("another generation", "renewed "+names[0]+", renewed "+names[1])
	for _, name := range names {
		if x := admissionFor("a", s.states[name]); x.Generation != 2 {
			t.Errorf("%s is admitted for generation %d", name, x.Generation)
		}
	}
}

// A smaller limit is another generation, too: nodes beyond it are not renewed, and hold their slots until they report that they
// have stopped.
func TestSmallerLimitOfAnotherGeneration(t *testing.T) {
	s := newScene(t, "4", 5, 6)
	s.expect("begin", "admitted 4")
	before := map[string]v1alpha1.Admission{}
	for _, name := range s.admitted() {
		before[name] = *admissionFor("a", s.states[name])
	}
	s.a.Generation++
	s.a.Spec.Rollout.MaxConcurrent = ptr.To(intstr.FromInt32(2))
	for name, x := range before {
		s.sayUnder(name, &x, saysImporting)
	}
	if got := s.decide(); strings.Count(got, "renewed") != 2 || strings.Contains(got, "ended") || len(s.admitted()) != 4 {
		t.Fatalf("the limit gets smaller: %q, %v are admitted", got, s.admitted())
	}
	s.expect("all work on", "")
	for name, x := range before {
		if admissionFor("a", s.states[name]).Generation == s.a.Generation {
			s.say(name, saysImporting)
			continue
		}
		s.sayUnder(name, &x, saysWaiting)
		s.expect("one has stopped", "ended "+name)
	}
	s.say(s.admitted()[0], saysReady)
	s.expect("there is room", "ended "+s.admitted()[0]+", admitted 1")
}

// A suspended rollout admits nobody, and ends as its nodes stop.
func TestSuspend(t *testing.T) {
	s := newScene(t, "1", 5, 2)
	s.expect("begin", "admitted 1")
	first := s.admitted()[0]
	x := *admissionFor("a", s.states[first])
	s.moved(first, 1)
	s.expect("it imports", "")
	s.a.Generation++
	s.a.Spec.Suspend = true
	s.sayUnder(first, &x, saysImporting)
	s.expect("it has not stopped yet", "")
	s.sayUnder(first, &x, saysSuspended)
	s.expect("it has", "ended "+first)
	s.expect("nobody else begins", "")
}

// What was forgiven stays so when the node repeats it without an admission, and counts when it fails again.
func TestForgivenFailures(t *testing.T) {
	s := newScene(t, "1", 0, 1)
	s.expect("begin", "admitted 1")
	s.say("n0", saysStalled)
	s.expect("it fails", "ended n0")
	s.a.Annotations = map[string]string{v1alpha1.AnnotationReconcileRequestedAt: "now"}
	s.pass(time.Second)
	s.expect("somebody asks to go on", "admitted 1")
	s.sayUnder("n0", nil, saysRetrying)
	s.expect("it repeats the failure", "")
	if n := s.ro.failed(); n != 0 {
		t.Errorf("%d failed", n)
	}
	s.say("n0", saysStalled)
	s.expect("it fails again", "ended n0")
	if n := s.ro.failed(); n != 1 {
		t.Errorf("%d failed", n)
	}
}

// More failed nodes than maxFailed stop the rollout, until somebody asks to go on.
func TestMaxFailed(t *testing.T) {
	s := newScene(t, "1", 1, 5)
	for i := range 2 {
		s.expect("one is admitted", "admitted 1")
		name := s.admitted()[0]
		s.say(name, saysStalled)
		want := "ended " + name
		if i == 0 {
			s.expect("it fails, which it may", want+", admitted 1")
			next := s.admitted()[0]
			s.say(next, saysStalled)
			s.expect("another fails", "ended "+next)
			break
		}
	}
	s.pass(time.Minute)
	s.expect("it has stopped", "")
	if n := s.ro.failed(); n != 2 {
		t.Errorf("%d failed", n)
	}
	s.a.Annotations = map[string]string{v1alpha1.AnnotationReconcileRequestedAt: "now"}
	s.expect("somebody asks to go on", "admitted 1")
	if n := s.ro.failed(); n != 0 {
		t.Errorf("%d failed", n)
	}
}

// However nodes behave, slots hold the limit, and every node that works becomes ready.
func TestRolloutOfARandomFleet(t *testing.T) {
	for range 30 {
		seed := rand.Uint64()
		random := rand.New(rand.NewPCG(seed, 0))
		n := 2 + random.IntN(20)
		s := newScene(t, fmt.Sprint(1+random.IntN(4)), 1000, n)
		limit := s.a.Spec.Rollout.Slots(n)
		dead := fmt.Sprintf("n%d", random.IntN(n))
		for range 600 {
			s.decide()
			if got := len(s.admitted()); got > limit {
				t.Fatalf("seed %d: %d slots of %d", seed, got, limit)
			}
			for name, state := range s.states {
				x := admissionFor("a", state)
				switch e := &state.Status.Archives[1]; {
				case name == dead || e.Ready || random.IntN(3) == 0:
				case x == nil:
					s.sayUnder(name, nil, saysWaiting)
				case random.IntN(4) == 0:
					s.say(name, saysStalled)
				case random.IntN(3) == 0:
					s.moved(name, random.Int64N(1<<20))
				default:
					s.say(name, saysReady)
				}
			}
			s.pass(time.Duration(random.IntN(60)) * time.Second)
		}
		for name, state := range s.states {
			if name != dead && !state.Status.Archives[1].Ready {
				t.Fatalf("seed %d: %s is left behind: %+v", seed, name, state)
			}
		}
	}
}

// Admissions are written only on the state that was read; an unknown outcome is looked up before the next admission.
func TestAdmissionsAreWritten(t *testing.T) {
	a := newArchive("a")
	a.Spec.Rollout = &v1alpha1.Rollout{MaxConcurrent: ptr.To(intstr.FromInt32(1))}
	r := newRig(t, a, saysWaiting, saysWaiting)
	r.c.fails = fmt.Errorf("connection refused")
	if _, err := r.Reconcile(t.Context(), requestFor("a")); err == nil || !r.admissions.listed.IsZero() {
		t.Errorf("error %v, listed %v", err, r.admissions.listed)
	}
	r.c.fails = nil
	r.reconcile(time.Minute)
	count := func() (n int) {
		var list v1alpha1.NodeImageStateList
		if err := r.c.List(t.Context(), &list); err != nil {
			t.Fatal(err)
		}
		for _, s := range list.Items {
			n += len(s.Spec.Admitted)
		}
		return n
	}
	if count() != 1 {
		t.Errorf("%d admissions", count())
	}
	if err := r.c.Delete(t.Context(), r.archive()); err != nil {
		t.Fatal(err)
	}
	r.reconcile(time.Minute)
	if count() != 0 {
		t.Errorf("%d admissions of an archive that is gone", count())
	}
}
