package node

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
	"github.com/tarlift/tarlift/internal/importer"
)

// What differs is worth a write at once, after a while, or none.
func TestCompare(t *testing.T) {
	entry := func(edit func(*v1alpha1.ArchiveState)) *v1alpha1.NodeImageStateStatus {
		e := v1alpha1.ArchiveState{
			Name: "a", Attempts: 1, Bytes: &v1alpha1.ArchiveBytes{Total: 1000, Done: 100},
			Conditions: []metav1.Condition{condition.New("Ready", "False", "Importing", ""), condition.New("Reconciling", "True", "Importing", "transferring")},
		}
		edit(&e)
		return &v1alpha1.NodeImageStateStatus{Archives: []v1alpha1.ArchiveState{e}, Summary: "0/1"}
	}
	image := []v1alpha1.Image{{Name: "a", Digest: digest1}}
	same := func(*v1alpha1.ArchiveState) {}
	for _, test := range []struct {
		why           string
		before, after func(*v1alpha1.ArchiveState)
		ago           time.Duration
		want          change
	}{
		{"nothing", same, same, time.Hour, noChange},
		{"a few bytes", same, func(e *v1alpha1.ArchiveState) { e.Bytes.Done = 150 }, time.Second, noChange},
		{"a few bytes, after a long time", same, func(e *v1alpha1.ArchiveState) { e.Bytes.Done = 150 }, time.Minute, progressChange},
		{"a tenth", same, func(e *v1alpha1.ArchiveState) { e.Bytes.Done = 200 }, 0, progressChange},
		{"skipped bytes", same, func(e *v1alpha1.ArchiveState) { e.Bytes.Skipped = 300 }, 0, progressChange},
		{"what is unpacked", same, func(e *v1alpha1.ArchiveState) { e.Conditions[1].Message = "unpacking, 12 %" }, time.Second, noChange},
		{"what is unpacked, after a long time", same, func(e *v1alpha1.ArchiveState) { e.Conditions[1].Message = "unpacking, 12 %" }, time.Minute, progressChange},
		{"another attempt", same, func(e *v1alpha1.ArchiveState) { e.Attempts++ }, 0, progressChange},
		{"the first bytes", func(e *v1alpha1.ArchiveState) { e.Bytes = nil }, same, 0, progressChange},
		{"a condition", same, func(e *v1alpha1.ArchiveState) { e.Conditions[0].Reason = "Truncated" }, 0, stateChange},
		{"an error that is over", func(e *v1alpha1.ArchiveState) { e.LastError = &v1alpha1.ImportError{} }, same, 0, stateChange},
		{"another admission", same, func(e *v1alpha1.ArchiveState) { e.AdmittedTime = &metav1.Time{Time: epoch} }, 0, stateChange},
		{"ready", same, func(e *v1alpha1.ArchiveState) { e.Ready, e.Conditions, e.Bytes, e.Attempts = true, nil, nil, 0 }, 0, stateChange},
		{"images that the ImageArchive lists by now", func(e *v1alpha1.ArchiveState) { e.Images = image }, same, time.Hour, progressChange - 1},
		{"images that it does not list", same, func(e *v1alpha1.ArchiveState) { e.Images = image }, 0, stateChange},
	} {
		before, after := entry(test.before), entry(test.after)
		if test.want == noChange && len(before.Archives[0].Images) > 0 { // as of an archive that is ready
			before.Archives[0].Ready, after.Archives[0].Ready = true, true
		}
		if got := compare(before, after, time.Minute, test.ago); got != test.want {
			t.Errorf("%s: %d, want %d", test.why, got, test.want)
		}
	}
	two := entry(same)
	two.Archives = append(two.Archives, two.Archives[0])
	if compare(entry(same), two, time.Minute, 0) != stateChange || compare(two, entry(same), time.Minute, 0) != stateChange {
		t.Error("another number of archives is no change")
	}
}

func newReporter() *reporter {
	return &reporter{node: "n", events: &events{}, now: func() time.Time { return epoch }, jitter: func() float64 { return 0.5 }}
}

// Changes of state are spread over the window, progress over a longer time, and both are spaced.
func TestWritesAreSpread(t *testing.T) {
	r := newReporter()
	if got := r.due(stateChange, 10*time.Second, epoch); got != settleTime+5*time.Second {
		t.Errorf("waits %s", got)
	}
	// The window grows and shrinks while a write waits; its place in it stays.
	if got := r.due(stateChange, 20*time.Second, epoch.Add(time.Second)); got != settleTime+9*time.Second {
		t.Errorf("of a larger fleet it waits %s", got)
	}
	if got := r.due(stateChange, 0, epoch.Add(2*time.Second)); got != 0 {
		t.Errorf("of a single node it waits %s", got)
	}
	r.when, r.since = epoch, time.Time{}
	if got := r.due(stateChange, 10*time.Second, epoch.Add(time.Second)); got != 9*time.Second {
		t.Errorf("after another write it waits %s", got)
	}
	for window, want := range map[time.Duration]time.Duration{0: 9 * time.Second, time.Minute: 59 * time.Second} {
		if got := r.due(progressChange, window, epoch.Add(time.Second)); got != want {
			t.Errorf("progress waits %s, want %s", got, want)
		}
	}
	if got := r.due(noChange, 0, epoch); got >= 0 {
		t.Errorf("nothing is written after %s", got)
	}
	r.events.add(&want{name: "a"}, "Normal", "Imported", "x")
	if got := r.due(noChange, 0, epoch.Add(time.Minute)); got != settleTime {
		t.Errorf("an Event waits %s", got)
	}
}

// The window follows from how many agents have the same to tell.
func TestWindow(t *testing.T) {
	counted := func(n int32, rollout bool) v1alpha1.ImageArchive {
		a := newArchive("a", 0)
		a.Status.Nodes = &v1alpha1.NodeCounts{Desired: n}
		if rollout {
			a.Spec.Rollout = &v1alpha1.Rollout{MaxConcurrent: ptr.To(intstr.FromString("10%"))}
		}
		return *a
	}
	admitted := &v1alpha1.NodeImageState{}
	admitted.Spec.Admitted = []v1alpha1.Admission{{Archive: "a", UID: "uid-a"}}
	for _, test := range []struct {
		why      string
		archives []v1alpha1.ImageArchive
		state    *v1alpha1.NodeImageState
		nodes    int
	}{
		{"none", nil, &v1alpha1.NodeImageState{}, uncounted},
		{"one not counted yet", []v1alpha1.ImageArchive{counted(7, false), *newArchive("b", 0)}, &v1alpha1.NodeImageState{}, uncounted},
		{"the largest", []v1alpha1.ImageArchive{counted(7, false), counted(700, false)}, &v1alpha1.NodeImageState{}, 700},
		{"a rollout that has not admitted the node", []v1alpha1.ImageArchive{counted(700, true)}, &v1alpha1.NodeImageState{}, 700},
		{"one that has", []v1alpha1.ImageArchive{counted(700, true)}, admitted, 70},
	} {
		if got, want := newReporter().window(test.archives, test.state), time.Duration(test.nodes)*time.Second/clusterWriteRate; got != want {
			t.Errorf("%s: %s, want %s", test.why, got, want)
		}
	}
	r := newReporter()
	before := r.window([]v1alpha1.ImageArchive{counted(7, false)}, admitted)
	if after := r.window(nil, admitted); after != before {
		t.Errorf("when the last archive has gone: %s, want %s", after, before)
	}
	short := counted(7, true)
	short.Spec.Rollout.ProgressDeadline = &metav1.Duration{Duration: 30 * time.Second}
	if got := r.anyProgress([]v1alpha1.ImageArchive{short}, admitted); got != 10*time.Second {
		t.Errorf("any progress is told after %s", got)
	}
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

// longName is a name of 40 characters.
func longName(prefix string, i int) string {
	s := fmt.Sprintf("%s-%d-", prefix, i)
	return s + strings.Repeat("x", 40-len(s))
}

// texts that are long, and longer in JSON than they look.
var longTexts = map[string]string{
	"plain": strings.Repeat("x", 5*condition.MaxText), "escaped": strings.Repeat("<", 5*condition.MaxText),
	"quotes": strings.Repeat(`"`, 5*condition.MaxText), "wide": strings.Repeat("ü€", 5*condition.MaxText),
}

// stateOf is an archive as a node may have it.
func stateOf(i int, edit func(*archiveState)) *archiveState {
	a := newArchive(longName("archive", i), 0)
	a.UID = types.UID(fmt.Sprintf("00000000-0000-0000-0000-%012d", i))
	s := newState(wantOf(a, nil), time.Hour, noJitter)
	s.checked = epoch
	edit(s)
	return s
}

// A NodeImageState of twenty archives stays small: some hundred bytes of one that is ready, and texts that share the room.
func TestNodeImageStateIsSmall(t *testing.T) {
	report := func(n int, edit func(*archiveState)) *v1alpha1.NodeImageStateStatus {
		s := &syncer{states: map[string]*archiveState{}}
		for i := range n {
			st := stateOf(i, edit)
			s.states[st.name] = st
		}
		status, _, _ := s.report("v1", nil, epoch)
		return status
	}
	ready := func(s *archiveState) {
		r := imported
		r.Digest, r.Size = digest2, 9<<30
		s.entry.Attempts = 2
		s.complete(r, epoch)
		s.images = nil // as the ImageArchive lists them
	}
	status := report(20, ready)
	if e := status.Archives[0]; jsonLen(t, e)-len(e.Name) > 350 {
		t.Errorf("an entry that is ready takes %d bytes beside its name", jsonLen(t, e)-len(e.Name))
	}
	if n := jsonLen(t, status); n > maxObject/2 {
		t.Errorf("20 archives that are ready: %d bytes", n)
	}
	for name, text := range longTexts {
		for _, terminal := range []bool{false, true} {
			status := report(20, func(s *archiveState) {
				s.entry.Attempts = 1000
				s.failure = &failure{v1alpha1.ImportError{Reason: v1alpha1.ReasonSourceUnavailable, Message: condition.Clip(text)}, terminal}
			})
			if n := jsonLen(t, status); n > maxObject {
				t.Errorf("20 archives that fail, %s, terminal %v: %d bytes", name, terminal, n)
			}
		}
	}
	one := report(1, func(s *archiveState) {
		s.failure = &failure{v1alpha1.ImportError{Reason: v1alpha1.ReasonSourceUnavailable, Message: condition.Clip(longTexts["plain"])}, true}
	})
	if n := len(one.Archives[0].LastError.Message); n < condition.MaxText-3 {
		t.Errorf("a single failure says only %d bytes", n)
	}
	many := report(v1alpha1.MaxArchives+7, ready)
	if len(many.Archives) != v1alpha1.MaxArchives || many.Omitted != 7 || many.Summary != "263/263" {
		t.Errorf("%d archives, %d omitted, %s", len(many.Archives), many.Omitted, many.Summary)
	}
}

// The images are told while the ImageArchive says something else.
func TestImagesAreToldWhereTheyDiffer(t *testing.T) {
	st := stateOf(0, func(s *archiveState) { s.complete(imported, epoch) })
	s := &syncer{states: map[string]*archiveState{st.name: st}}
	a := v1alpha1.ImageArchive{ObjectMeta: metav1.ObjectMeta{Name: st.name}}
	all := []v1alpha1.Image{{Name: "docker.io/library/a:1", Digest: digest1}, {Name: "docker.io/library/b:1", Digest: digest2}}
	for _, listed := range [][]v1alpha1.Image{nil, all[:1], all} {
		a.Status.Images = listed
		status, _, _ := s.report("v1", []v1alpha1.ImageArchive{a}, epoch)
		if got, want := status.Archives[0].Images, len(listed) < 2; want != slices.Equal(got, all) {
			t.Errorf("listed %v: told %v", listed, got)
		}
	}
}

// A process that only checks what an earlier one imported reports the same.
func TestHistoryIsKept(t *testing.T) {
	entry := func(at time.Duration, attempts int32) *v1alpha1.NodeImageStateStatus {
		return &v1alpha1.NodeImageStateStatus{Archives: []v1alpha1.ArchiveState{{
			Name: "a", UID: "u", Ready: true, IndexDigest: digest1, CompletionTime: condition.Timestamp(epoch.Add(at)), Attempts: attempts,
		}}}
	}
	before := entry(0, 3)
	for attempts, want := range map[int32]change{0: noChange, 1: stateChange} {
		now := entry(time.Hour, attempts)
		keepHistory(now, before)
		if got := compare(before, now, time.Minute, time.Hour); got != want {
			t.Errorf("%d attempts: %d, want %d: %+v", attempts, got, want, now)
		}
	}
}

// Since when a condition holds stays, while its reason and message change.
func TestConditionTimes(t *testing.T) {
	st := stateOf(0, func(s *archiveState) { s.running = &importer.Progress{Phase: importer.PhaseTransferring} })
	first := st.reported(nil, epoch)
	st.failure = &failure{v1alpha1.ImportError{Reason: "Truncated"}, false}
	later := st.reported(nil, epoch.Add(time.Hour))
	if c := later.Conditions[0]; !c.LastTransitionTime.Time.Equal(epoch) || c.Reason != "Truncated" || first.Conditions[0].Reason != "Importing" {
		t.Errorf("condition %+v", c)
	}
}
