package node

import (
	"testing"
	"time"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
)

func statusWith(edit func(*v1alpha1.ArchiveState)) *v1alpha1.NodeImageStateStatus {
	e := v1alpha1.ArchiveState{
		Name: "a", UID: "u", ObservedGeneration: 1, Attempts: 1, StartTime: condition.Timestamp(epoch),
		Conditions: condition.Merge(nil, 1, epoch,
			condition.New("Ready", "False", "Importing", "the import is running"),
			condition.New("Reconciling", "True", "Importing", "transferring")),
		Bytes: &v1alpha1.ArchiveBytes{Total: 1000, Done: 100, Skipped: 50},
	}
	edit(&e)
	return &v1alpha1.NodeImageStateStatus{Summary: "0/1", Archives: []v1alpha1.ArchiveState{e}}
}

func TestCompare(t *testing.T) {
	written := statusWith(func(*v1alpha1.ArchiveState) {})
	for _, test := range []struct {
		why  string
		edit func(*v1alpha1.ArchiveState)
		want change
	}{
		{"nothing", func(*v1alpha1.ArchiveState) {}, noChange},
		{"9 percent", func(e *v1alpha1.ArchiveState) { e.Bytes.Done += 90; e.Bytes.Skipped += 9 }, noChange},
		{"10 percent", func(e *v1alpha1.ArchiveState) { e.Bytes.Done += 90; e.Bytes.Skipped += 10 }, progressChange},
		{"the total is known now", func(e *v1alpha1.ArchiveState) { e.Bytes.Total++ }, progressChange},
		{"unknown total, nothing moved", func(e *v1alpha1.ArchiveState) { e.Bytes = &v1alpha1.ArchiveBytes{Done: 100, Skipped: 50} }, progressChange},
		{"another phase", func(e *v1alpha1.ArchiveState) { e.Conditions[1].Message = "unpacking" }, progressChange},
		{"9 percent more unpacked", func(e *v1alpha1.ArchiveState) { e.Conditions[1].Message = "transferring, 9 %" }, noChange},
		{"10 percent more unpacked", func(e *v1alpha1.ArchiveState) { e.Conditions[1].Message = "transferring, 10 %" }, progressChange},
		{"waiting for a retry", func(e *v1alpha1.ArchiveState) { e.Conditions[1].Reason = "Pending" }, progressChange},
		{"another attempt", func(e *v1alpha1.ArchiveState) { e.Attempts++ }, progressChange},
		{"another generation", func(e *v1alpha1.ArchiveState) { e.ObservedGeneration++ }, stateChange},
		{"another reason", func(e *v1alpha1.ArchiveState) { e.Conditions[0].Reason = "SourceNotFound" }, stateChange},
		{"another message", func(e *v1alpha1.ArchiveState) { e.Conditions[0].Message = "other" }, stateChange},
		{"an error", func(e *v1alpha1.ArchiveState) { e.LastError = &v1alpha1.ImportError{} }, stateChange},
		{"stalled", func(e *v1alpha1.ArchiveState) { e.Conditions[1] = condition.New("Stalled", "True", "Truncated", "") }, stateChange},
		{"an archive more", func(e *v1alpha1.ArchiveState) { e.Name = "b" }, stateChange},
	} {
		if got := compare(written, statusWith(test.edit)); got != test.want {
			t.Errorf("%s: %v, want %v", test.why, got, test.want)
		}
	}
	unknown := func(done int64) *v1alpha1.NodeImageStateStatus {
		return statusWith(func(e *v1alpha1.ArchiveState) { e.Bytes = &v1alpha1.ArchiveBytes{Done: done} })
	}
	if compare(unknown(5), unknown(5)) != noChange || compare(unknown(5), unknown(6)) != progressChange {
		t.Error("with an unknown total, any byte is progress, and none is not")
	}
}

func TestPacer(t *testing.T) {
	half := func() float64 { return 0.5 }
	for _, test := range []struct {
		why    string
		c      change
		since  time.Duration // the last write
		window time.Duration
		want   time.Duration
	}{
		{"a change of state: what follows at once comes along", stateChange, 0, 100 * time.Millisecond, settleTime + 50*time.Millisecond},
		{"a change of state, long after the last", stateChange, time.Hour, 100 * time.Millisecond, settleTime + 50*time.Millisecond},
		{"a change of state on many nodes is spread over 50 s", stateChange, time.Hour, 50 * time.Second, settleTime + 25*time.Second},
		{"progress right after a write", progressChange, time.Second, 0, 9 * time.Second},
		{"progress after 10 s", progressChange, 10 * time.Second, 0, 0},
		{"progress on many nodes", progressChange, 10 * time.Second, 50 * time.Second, 40 * time.Second},
	} {
		p := pacer{last: epoch}
		if got := p.wait(test.c, epoch.Add(test.since), test.window, half); got != test.want {
			t.Errorf("%s: waits %s, want %s", test.why, got, test.want)
		}
	}
}

func TestPacerKeepsItsAppointment(t *testing.T) {
	p := pacer{}
	one := func() float64 { return 1 }
	if got := p.wait(stateChange, epoch, 10*time.Second, one); got != settleTime+10*time.Second {
		t.Fatalf("waits %s", got)
	}
	if got := p.wait(stateChange, epoch.Add(4*time.Second), 10*time.Second, one); got != settleTime+6*time.Second {
		t.Errorf("a second change put it off: %s", got)
	}
	if got := p.wait(stateChange, epoch.Add(4*time.Second), 50*time.Second, one); got != settleTime+46*time.Second {
		t.Errorf("more agents turn up, and it waits %s", got)
	}
	if got := p.wait(stateChange, epoch.Add(time.Minute), 50*time.Second, one); got != 0 {
		t.Errorf("late, and waits %s", got)
	}
	p.wrote(epoch.Add(time.Minute))
	if got := p.wait(stateChange, epoch.Add(time.Minute), 0, one); got != settleTime {
		t.Errorf("the next change waits %s", got)
	}
	p.settled()
	if got := p.wait(stateChange, epoch.Add(2*time.Minute), 0, one); got != settleTime {
		t.Errorf("after a change that was taken back the next waits %s", got)
	}
}

// That the fleet is smaller than it was taken for comes to all agents at once.
func TestPacerSpreadsAnew(t *testing.T) {
	learn := epoch.Add(10 * time.Second)
	last, early := time.Duration(0), 0
	const agents, window = 700, 10 * time.Second
	for i := range agents {
		p := pacer{}
		place := func() float64 { return float64(i) / agents }
		planned := p.wait(stateChange, epoch, writeWindow(uncounted, 1), place)
		if planned < learn.Sub(epoch) {
			early++
			continue
		}
		got := p.wait(stateChange, learn, window, place)
		if got > planned {
			t.Errorf("agent %d waits %s, and would have waited %s", i, got, planned)
		}
		if got-last > time.Second && last > 0 || got == 0 {
			t.Errorf("agent %d writes after %s, the one before after %s", i, got, last)
		}
		if grown := p.wait(stateChange, learn.Add(settleTime), window+window/10, place); grown < got-settleTime {
			t.Errorf("agent %d waits %s when some more agents turn up, and would have waited %s", i, grown, got-settleTime)
		}
		last = got
	}
	if early > agents/2 || last > window+settleTime {
		t.Errorf("%d wrote before, and the last one does after %s", early, last)
	}
}

// However often a node's state changes, its writes are a window apart.
func TestPacerSpacesWrites(t *testing.T) {
	p, writes := pacer{}, 0
	for now := epoch; now.Before(epoch.Add(100 * time.Second)); now = now.Add(100 * time.Millisecond) {
		if p.wait(stateChange, now, 10*time.Second, noJitter) == 0 {
			p.wrote(now)
			writes++
		}
	}
	if writes > 11 {
		t.Errorf("%d writes in ten windows", writes)
	}
}

// An import of 100 s whose progress is looked at ten times a second costs ten writes, not a thousand.
func TestProgressIsRationed(t *testing.T) {
	b := newBench(t, newArchive("a", 0))
	b.expect("check a")
	b.end(absent)
	b.expect("import a")
	b.at("a").progress.Total = 1000
	written := b.status(b.running, b.now)
	p := pacer{last: b.now}
	writes := 0
	for done := range int64(1000) {
		b.pass(100 * time.Millisecond)
		b.at("a").progress.Done = done
		current := b.status(b.running, b.now)
		if c := compare(written, current); c != noChange && p.wait(c, b.now, 0, noJitter) == 0 {
			writes++
			written = current
			p.wrote(b.now)
		}
	}
	if writes < 5 || writes > 10 {
		t.Errorf("%d writes", writes)
	}
}

// Archives of the same spec are told apart, and each shows its own progress.
func TestProgressOfSeveral(t *testing.T) {
	a, twin, waiting := newArchive("a", 3*time.Hour), newArchive("twin", 2*time.Hour), newArchive("waiting", time.Hour)
	twin.Spec, waiting.Spec = a.Spec, a.Spec
	b := newBench(t, a, twin, waiting)
	for _, name := range []string{"a", "twin", "waiting"} {
		b.expect("check " + name)
		b.end(absent)
	}
	b.expect("import a")
	b.expect("import twin")
	b.at("a").progress.Done, b.at("twin").progress.Done = 1, 2
	b.wantState("waiting", "Ready=False/Pending Reconciling=True/Pending")
	for name, want := range map[string]int64{"a": 1, "twin": 2} {
		b.wantState(name, "Ready=False/Importing Reconciling=True/Importing")
		if e := b.report(name); e.Bytes.Done != want {
			t.Errorf("%s: %d bytes, want %d", name, e.Bytes.Done, want)
		}
	}
}

func TestConditionTimes(t *testing.T) {
	later := epoch.Add(time.Hour)
	old := condition.Merge(nil, 1, epoch, condition.New("Ready", "False", "Pending", "x"), condition.New("Reconciling", "True", "Pending", "x"))
	now := condition.Merge(old, 2, later, condition.New("Ready", "False", "Truncated", "y"), condition.New("Stalled", "True", "Truncated", "y"))
	if !now[0].LastTransitionTime.Time.Equal(epoch) || now[0].ObservedGeneration != 2 {
		t.Errorf("Ready stayed False: %+v", now[0])
	}
	if !now[1].LastTransitionTime.Time.Equal(later) || len(now) != 2 {
		t.Errorf("Stalled is new: %+v", now[1:])
	}
	if now = condition.Merge(now, 2, later, condition.New("Ready", "True", "Imported", "")); !now[0].LastTransitionTime.Time.Equal(later) {
		t.Errorf("Ready became True: %+v", now[0])
	}
}

func TestWriteWindow(t *testing.T) {
	for _, test := range []struct {
		why      string
		nodes    int32
		archives int
		want     time.Duration
	}{
		{"nothing but drop-ins that are gone", 140, 0, 2 * time.Second},
		{"one archive", 140, 1, 2 * time.Second},
		{"reports that cost twice as much", 140, 13, 4 * time.Second},
		{"many nodes: not for longer than to be Ready in time", 3500, 25, 100 * time.Second},
		{"so many that even light reports take longer", 14000, 25, 200 * time.Second},
	} {
		if got := writeWindow(test.nodes, test.archives); got != test.want {
			t.Errorf("%s: %d nodes with %d archives write over %s, want %s", test.why, test.nodes, test.archives, got, test.want)
		}
	}
}
