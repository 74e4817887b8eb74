package node

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/internal/source"
)

// answering is an API server that takes writes of a NodeImageState's status, unless it is away.
type answering struct {
	client.Client
	state  *v1alpha1.NodeImageState
	away   bool
	events time.Duration // how long an Event takes, which fails then; 0: it does not
	writes []time.Time
}

func (a *answering) Status() client.SubResourceWriter { return statusOf{a: a} }

// Create takes Events.
func (a *answering) Create(ctx context.Context, _ client.Object, _ ...client.CreateOption) error {
	if a.events > 0 {
		ctx, cancel := context.WithTimeout(ctx, a.events)
		defer cancel()
		<-ctx.Done()
		return ctx.Err()
	}
	if a.away {
		return errors.New("connection refused")
	}
	return nil
}

type statusOf struct {
	client.SubResourceWriter
	a *answering
}

func (s statusOf) Patch(_ context.Context, object client.Object, _ client.Patch, _ ...client.SubResourcePatchOption) error {
	a := s.a
	a.writes = append(a.writes, time.Now())
	if a.away {
		return errors.New("connection refused")
	}
	a.state.DeepCopyInto(object.(*v1alpha1.NodeImageState))
	return nil
}

// admits changes what the API server has; the agent's watch tells it of it only if told is set.
func (a *answering) admits(lo *loop, told bool, list ...v1alpha1.Admission) {
	n, _ := strconv.Atoi(a.state.ResourceVersion)
	a.state = a.state.DeepCopy()
	a.state.ResourceVersion, a.state.Spec.Admitted = strconv.Itoa(n+1), list
	if told {
		lo.view.state = a.state
	}
}

// reconcile reconciles and reports as the manager would for a while.
func (lo *loop) reconcile(d time.Duration) {
	ctx := ctrl.LoggerInto(lo.t.Context(), logr.Discard())
	for end := time.After(d); ; {
		now := time.Now()
		lo.takeIn(ctx, &lo.view, now)
		wait := sooner(lo.steer(ctx, now), lo.report(ctx, &lo.view, now))
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

func newRolloutLoop(t *testing.T, name string) (*loop, *answering) {
	lo := newLoop(t, defaultLimits, name)
	withRollout(lo.view.archives[0])
	server := &answering{state: &v1alpha1.NodeImageState{ObjectMeta: metav1.ObjectMeta{Name: "n", UID: "s", ResourceVersion: "1"}}}
	lo.Client, lo.now, lo.jitter = server, time.Now, noJitter
	lo.view.node, lo.view.state = nodeMetadata(), server.state
	return lo, server
}

// Who is cut off from the API server does not learn that its place is another's, so it stops while it is sure not to be,
// and goes on when it hears that it still has the place.
func TestCutOffAgentLeavesItsRollout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lo, server := newRolloutLoop(t, "slow")
		a := lo.view.archives[0]
		server.admits(lo, true, admission(a))
		fence := fenceTime(a.Spec.Rollout)

		lo.reconcile(fence * 9 / 2)
		if attempts := lo.agenda.records[a.UID].entry.Attempts; attempts != 1 || len(lo.running()) != 1 {
			t.Fatalf("%d attempts, running %q, while the API server answers", attempts, lo.running())
		}
		var longest time.Duration
		for i, at := range server.writes[1:] {
			longest = max(longest, at.Sub(server.writes[i]))
		}
		if longest > fence*2/3 || len(server.writes) > 15 {
			t.Errorf("%d writes, up to %s apart", len(server.writes), longest)
		}

		server.away = true
		lo.reconcile(fence + progressPoll)
		if r := lo.running(); len(r) > 0 {
			t.Fatalf("%q goes on without having heard for %s", r, fence)
		}
		server.away = false
		lo.reconcile(fence)
		if r := lo.running(); !slices.Equal(r, []string{"slow"}) {
			t.Fatalf("running %q after the API server came back", r)
		}

		expired := admission(a)
		expired.Expired = true
		server.admits(lo, false, expired)
		lo.reconcile(fence)
		if r := lo.running(); len(r) > 0 {
			t.Errorf("%q goes on though a write has told that its time ran out", r)
		}
		writes := len(server.writes)
		lo.reconcile(time.Hour)
		if n := len(server.writes) - writes; n > 0 {
			t.Errorf("%d writes while it waits", n)
		}
	})
}

// So does one that holds a place while it waits for its next attempt: else it would lose the place, and say so, each time.
func TestWaitingForARetryKeepsInContact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lo, server := newRolloutLoop(t, "slow")
		a := lo.view.archives[0]
		lo.worker.open = func(context.Context, v1alpha1.Source) (source.Blob, error) { return nil, source.ErrUnavailable }
		server.admits(lo, true, admission(a))
		lo.reconcile(10 * time.Minute)
		server.writes = nil
		lo.reconcile(time.Hour)
		longest := time.Duration(0)
		for i, at := range server.writes[1:] {
			longest = max(longest, at.Sub(server.writes[i]))
		}
		if fence := fenceTime(a.Spec.Rollout); longest > fence*2/3 || len(server.writes) > 60 {
			t.Errorf("%d writes, up to %s apart", len(server.writes), longest)
		}
	})
}

// An admission that is seen for the first time is news of the API server; an import without a rollout needs none.
func TestFence(t *testing.T) {
	a, free := newArchive("a", time.Hour), newArchive("free", 0)
	withRollout(a)
	b := newBench(t, a, free)
	for _, name := range []string{"a", "free"} {
		b.expect("check " + name)
		b.end(absent)
	}
	b.silence = fenceTime(a.Spec.Rollout)
	b.admit([]v1alpha1.Admission{admission(a)})
	b.expect("import free")
	b.expect("wait 0s")
	b.wantState("a", waitsForRollout)
	b.silence--
	b.admit([]v1alpha1.Admission{admission(a)})
	b.expect("import a")
	b.silence++
	b.admit([]v1alpha1.Admission{admission(a)})
	b.expect("stop a")
	b.expect("wait 0s")

	var c contact
	state := &v1alpha1.NodeImageState{ObjectMeta: metav1.ObjectMeta{UID: "s", ResourceVersion: "1"}}
	c.see(state, epoch)
	c.see(state, epoch.Add(time.Hour))
	if c.at != epoch {
		t.Errorf("heard at %s: what the cache has shown before is no news", c.at)
	}
	state.ResourceVersion = "2"
	c.see(state, epoch.Add(time.Hour))
	if c.at != epoch.Add(time.Hour) {
		t.Errorf("heard at %s", c.at)
	}
}

func TestLifeInterval(t *testing.T) {
	withDeadline := func(name string, d time.Duration) *v1alpha1.ImageArchive {
		a := newArchive(name, 0)
		a.Spec.Rollout = &v1alpha1.Rollout{ProgressDeadline: &metav1.Duration{Duration: d}}
		return a
	}
	hour, minute := withDeadline("hour", time.Hour), withDeadline("minute", time.Minute)
	b := newBench(t, newArchive("free", 0), hour, minute)
	for want, admitted := range map[time.Duration][]v1alpha1.Admission{
		0: nil, 10 * time.Minute: {admission(hour)}, 10 * time.Second: {admission(hour), admission(minute)},
	} {
		if b.admit(admitted); b.lifeInterval() != want {
			t.Errorf("%s, want %s", b.lifeInterval(), want)
		}
	}
	if got := fenceTime(withDeadline("short", time.Second).Spec.Rollout); got != minFence {
		t.Errorf("%s", got)
	}
}

// A long unpacking shows that it goes on, by the share that is done.
func TestUnpackingShowsProgress(t *testing.T) {
	b := newBench(t, newArchive("a", 0))
	b.expect("check a")
	b.end(absent)
	b.expect("import a")
	progress := importer.Progress{Phase: importer.PhaseUnpacking, Done: 1000, Total: 1000, Unpacked: 430}
	b.at("a").progress = progress
	before := b.status(b.running, b.now)
	if got := before.Archives[0].Conditions[1].Message; got != "unpacking, 43 %" {
		t.Errorf("message %q", got)
	}
	for unpacked, want := range map[int64]change{430: noChange, 520: noChange, 530: progressChange} {
		b.at("a").progress.Unpacked = unpacked
		now := b.status(b.running, b.now)
		if got := compare(before, now); got != want || moved(before, now) != (unpacked > 430) {
			t.Errorf("%d of 1000: %v, moved %v", unpacked, got, moved(before, now))
		}
	}
}

// Whom a rollout has let in shares the API server with those that are in besides, not with the fleet.
func TestPeersOfARollout(t *testing.T) {
	lo, server := newRolloutLoop(t, "rolled")
	a := lo.view.archives[0]
	a.Spec.Rollout.MaxConcurrent = ptr.To(intstr.FromString("10%"))
	a.Status.Nodes = &v1alpha1.NodeCounts{Desired: 5000}
	for _, test := range []struct {
		why      string
		admitted []v1alpha1.Admission
		want     int32
	}{
		{"outside", nil, 5000},
		{"let in", []v1alpha1.Admission{admission(a)}, 500},
	} {
		server.admits(lo, true, test.admitted...)
		lo.takeIn(t.Context(), &lo.view, time.Now())
		if got := lo.peers(lo.view.archives); got != test.want {
			t.Errorf("%s: %d, want %d", test.why, got, test.want)
		}
	}
}

// Where no Event can be created, status and imports go on.
func TestEventsThatHangHoldUpNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lo, server := newRolloutLoop(t, "slow")
		server.events = time.Minute
		lo.note(note{name: "other", typ: "Normal", reason: eventReleased, text: "one"})
		a := lo.view.archives[0]
		a.Spec.Rollout.ProgressDeadline = &metav1.Duration{Duration: 18 * time.Second}
		server.admits(lo, true, admission(a))
		lo.reconcile(2 * time.Minute)
		if attempts := lo.agenda.records[a.UID].entry.Attempts; attempts != 1 || len(lo.running()) != 1 {
			t.Errorf("%d attempts, running %q", attempts, lo.running())
		}
		var longest time.Duration
		for i, at := range server.writes[1:] {
			longest = max(longest, at.Sub(server.writes[i]))
		}
		if most := fenceTime(a.Spec.Rollout) - time.Second; longest > most {
			t.Errorf("status writes are up to %s apart, at most %s", longest, most)
		}
		if !lo.hasNews() || lo.telling.tries > 60 {
			t.Errorf("something waits: %v; tried %d times", lo.hasNews(), lo.telling.tries)
		}
	})
}
