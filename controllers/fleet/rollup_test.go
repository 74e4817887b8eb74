package fleet

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
)

// saying is what a node says about the archive "a" in its first generation.
type saying func(*v1alpha1.ArchiveState)

func saysReady(e *v1alpha1.ArchiveState) {
	e.Conditions = []metav1.Condition{condition.New("Ready", "True", "Imported", "2 images complete")}
	e.IndexDigest, e.Size, e.ImageCount = "sha256:1", 45<<20, 2
}

func saysImporting(e *v1alpha1.ArchiveState) {
	e.Conditions = []metav1.Condition{condition.New("Ready", "False", "Importing", ""), condition.New("Reconciling", "True", "Importing", "")}
}

func saysPending(e *v1alpha1.ArchiveState) {
	e.Conditions = []metav1.Condition{condition.New("Ready", "False", "Pending", ""), condition.New("Reconciling", "True", "Pending", "")}
}

func saysRetrying(e *v1alpha1.ArchiveState) {
	e.Conditions = []metav1.Condition{condition.New("Ready", "False", "SourceNotFound", "no"), condition.New("Reconciling", "True", "Importing", "")}
	e.LastError = &v1alpha1.ImportError{Reason: "SourceNotFound", Message: "no"}
}

func saysStalled(e *v1alpha1.ArchiveState) {
	e.Conditions = []metav1.Condition{condition.New("Ready", "False", "Truncated", "cut"), condition.New("Stalled", "True", "Truncated", "cut")}
	e.LastError = &v1alpha1.ImportError{Reason: "Truncated", Message: "cut"}
}

func saysLost(e *v1alpha1.ArchiveState) {
	e.Conditions = []metav1.Condition{condition.New("Ready", "False", "Drifted", "gone"), condition.New("Stalled", "True", "Drifted", "gone")}
}

func saysSuspended(e *v1alpha1.ArchiveState) {
	e.Conditions = []metav1.Condition{condition.New("Ready", "False", "Suspended", "")}
}

func of(generation int64, uid string, s saying) saying {
	return func(e *v1alpha1.ArchiveState) {
		s(e)
		e.ObservedGeneration = generation
		e.UID = newArchive(uid, 0).UID
	}
}

// cluster makes nodes n0, n1, … that say these things; nil is a node without an agent.
func cluster(sayings ...saying) (nodes []metav1.PartialObjectMetadata, states map[string]*v1alpha1.NodeImageState) {
	states = map[string]*v1alpha1.NodeImageState{}
	for i, s := range sayings {
		name := fmt.Sprintf("n%d", i)
		node := metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"n": fmt.Sprint(i)}}}
		nodes = append(nodes, node)
		if s == nil {
			continue
		}
		e := v1alpha1.ArchiveState{Name: "a", UID: "uid-a", ObservedGeneration: 1}
		s(&e)
		state := &v1alpha1.NodeImageState{ObjectMeta: metav1.ObjectMeta{Name: name}}
		state.Status.Archives = []v1alpha1.ArchiveState{{Name: "other", UID: "uid-other"}, e}
		states[name] = state
	}
	return nodes, states
}

func TestRollUpConditions(t *testing.T) {
	suspended := func(a *v1alpha1.ImageArchive) { a.Spec.Suspend = true }
	selecting := func(values ...string) func(*v1alpha1.ImageArchive) {
		return func(a *v1alpha1.ImageArchive) {
			a.Spec.NodeSelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
				{Key: "n", Operator: "In", Values: values},
			}}
		}
	}
	for _, test := range []struct {
		why     string
		edit    func(*v1alpha1.ImageArchive)
		sayings []saying
		want    string
		counts  v1alpha1.NodeCounts
	}{
		{"all ready", nil, []saying{saysReady, saysReady}, "Ready=True/Imported",
			v1alpha1.NodeCounts{Desired: 2, Ready: 2, Summary: "2/2"}},
		{"no nodes", nil, nil, "Ready=True/Imported",
			v1alpha1.NodeCounts{Summary: "0/0"}},
		{"a node without an agent is pending", nil, []saying{saysReady, nil}, "Ready=False/Importing Reconciling=True/Importing",
			v1alpha1.NodeCounts{Desired: 2, Ready: 1, Pending: 1, Summary: "1/2"}},
		{"a node in its queue is pending", nil, []saying{saysReady, saysPending}, "Ready=False/Importing Reconciling=True/Importing",
			v1alpha1.NodeCounts{Desired: 2, Ready: 1, Pending: 1, Summary: "1/2"}},
		{"an import runs", nil, []saying{saysReady, saysImporting}, "Ready=False/Importing Reconciling=True/Importing",
			v1alpha1.NodeCounts{Desired: 2, Ready: 1, Importing: 1, Summary: "1/2"}},
		{"what was ready for an earlier generation is pending", nil, []saying{of(0, "a", saysReady)}, "Ready=False/Importing Reconciling=True/Importing",
			v1alpha1.NodeCounts{Desired: 1, Pending: 1, Summary: "0/1"}},
		{"what was ready for an earlier object is pending", nil, []saying{of(1, "b", saysReady)}, "Ready=False/Importing Reconciling=True/Importing",
			v1alpha1.NodeCounts{Desired: 1, Pending: 1, Summary: "0/1"}},
		{"a failure that is tried again", nil, []saying{saysReady, saysRetrying}, "Ready=False/SourceNotFound Reconciling=True/Importing",
			v1alpha1.NodeCounts{Desired: 2, Ready: 1, Failed: 1, Summary: "1/2"}},
		{"one stalled node stalls the archive", nil, []saying{saysRetrying, saysImporting, saysStalled}, "Ready=False/Truncated Stalled=True/Truncated",
			v1alpha1.NodeCounts{Desired: 3, Importing: 1, Failed: 2, Summary: "0/3"}},
		{"a loss that shall not be healed", nil, []saying{saysReady, saysLost}, "Ready=False/Drifted Stalled=True/Drifted",
			v1alpha1.NodeCounts{Desired: 2, Ready: 1, Failed: 1, Summary: "1/2"}},
		{"suspended before the end", suspended, []saying{saysReady, saysSuspended}, "Ready=False/Suspended",
			v1alpha1.NodeCounts{Desired: 2, Ready: 1, Pending: 1, Summary: "1/2"}},
		{"suspended after the end", suspended, []saying{saysReady, saysReady}, "Ready=True/Imported",
			v1alpha1.NodeCounts{Desired: 2, Ready: 2, Summary: "2/2"}},
		{"nodes that are not selected do not count", selecting("0", "2"), []saying{saysReady, saysStalled, saysReady}, "Ready=True/Imported",
			v1alpha1.NodeCounts{Desired: 2, Ready: 2, Summary: "2/2"}},
		{"an empty selector selects all", func(a *v1alpha1.ImageArchive) { a.Spec.NodeSelector = &metav1.LabelSelector{} }, []saying{saysReady},
			"Ready=True/Imported", v1alpha1.NodeCounts{Desired: 1, Ready: 1, Summary: "1/1"}},
		{"a selector that no label can match", selecting("not a value"), []saying{saysReady}, "Ready=False/InvalidSelector Stalled=True/InvalidSelector",
			v1alpha1.NodeCounts{Summary: "0/0"}},
	} {
		a := newArchive("a", 0)
		if test.edit != nil {
			test.edit(a)
		}
		nodes, states := cluster(test.sayings...)
		s := rollUp(a, nodes, states, standing{}, epoch)
		if got := short(s.Conditions); got != test.want {
			t.Errorf("%s: %q, want %q", test.why, got, test.want)
		}
		if diff := cmp.Diff(&test.counts, s.Nodes); diff != "" {
			t.Errorf("%s: counts (-want +got):\n%s", test.why, diff)
		}
		if s.ObservedGeneration != 1 {
			t.Errorf("%s: observes %d", test.why, s.ObservedGeneration)
		}
	}
}

func TestRollUpFailures(t *testing.T) {
	var sayings []saying
	for range 15 {
		sayings = append(sayings, saysRetrying)
	}
	sayings[7], sayings[9] = saysStalled, saysReady
	nodes, states := cluster(sayings...)
	s := rollUp(newArchive("a", 0), nodes, states, standing{}, epoch)
	var got []string
	for _, f := range s.Failures {
		got = append(got, f.Node)
	}
	want := []string{"n7", "n0", "n1", "n10", "n11", "n12", "n13", "n14", "n2", "n3"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("failures: what stalls first, then by name, ten at most (-want +got):\n%s", diff)
	}
	if f := s.Failures[0]; f.Reason != "Truncated" || f.Message != "cut" {
		t.Errorf("failure %+v", f)
	}
	if m := s.Conditions[0].Message; m != "1 of 15 nodes ready, 14 failed; n7: cut" {
		t.Errorf("message %q", m)
	}
}

// A Node that was replaced by another of its name has what its own agent reports, and nothing else.
func TestEarlierNodeDoesNotCount(t *testing.T) {
	nodes, states := cluster(saysReady, saysReady)
	for i, uid := range []types.UID{"same", "earlier"} {
		nodes[i].UID = []types.UID{"same", "later"}[i]
		states[nodes[i].Name].OwnerReferences = []metav1.OwnerReference{{Kind: "Node", Name: nodes[i].Name, UID: uid}}
	}
	if s := rollUp(newArchive("a", 0), nodes, states, standing{}, epoch); s.Nodes.Ready != 1 || s.Nodes.Pending != 1 {
		t.Errorf("counts %+v", s.Nodes)
	}
}

// The order in which nodes are listed, which is that of a map, must not show.
func TestRollUpIsDeterministic(t *testing.T) {
	other := func(e *v1alpha1.ArchiveState) { saysReady(e); e.IndexDigest = "sha256:0" }
	nodes, states := cluster(saysReady, other, saysRetrying, saysStalled, nil, saysImporting)
	a := newArchive("a", 0)
	first := rollUp(a, nodes, states, standing{}, epoch)
	for i := range nodes {
		nodes[0], nodes[i] = nodes[i], nodes[0]
		if diff := cmp.Diff(first, rollUp(a, nodes, states, standing{}, epoch)); diff != "" {
			t.Fatalf("another order, another status:\n%s", diff)
		}
	}
}

func TestRollUpArtifact(t *testing.T) {
	full := func(e *v1alpha1.ArchiveState) { saysReady(e); e.Digest = "sha256:f" }
	other := func(e *v1alpha1.ArchiveState) { saysReady(e); e.IndexDigest, e.Size, e.ImageCount = "sha256:0", 7, 9 }
	fewer := func(e *v1alpha1.ArchiveState) { saysReady(e); e.Size, e.ImageCount = 0, 1 }
	want := &v1alpha1.Artifact{IndexDigest: "sha256:1", Size: 45 << 20, DisplaySize: "45MiB"}
	wantFull := want.DeepCopy()
	wantFull.Digest = "sha256:f"
	for _, test := range []struct {
		why     string
		sayings []saying
		want    *v1alpha1.Artifact
		images  int32
	}{
		{"nobody has it", []saying{saysImporting, nil}, nil, 0},
		{"one has it", []saying{saysReady, nil}, want, 2},
		{"one has read all of it", []saying{saysReady, full}, wantFull, 2},
		{"one node's source does not tell the size, and its platform has fewer images", []saying{fewer, saysReady}, want, 2},
		{"most have this one", []saying{other, saysReady, saysReady}, want, 2},
	} {
		nodes, states := cluster(test.sayings...)
		s := rollUp(newArchive("a", 0), nodes, states, standing{}, epoch)
		if diff := cmp.Diff(test.want, s.Artifact); diff != "" || s.ImageCount != test.images {
			t.Errorf("%s: %d images (-want +got):\n%s", test.why, s.ImageCount, diff)
		}
	}
	nodes, states := cluster(saysReady, other)
	if m := rollUp(newArchive("a", 0), nodes, states, standing{}, epoch).Conditions[0].Message; m != "2 of 2 nodes ready; the nodes have 2 different archives" {
		t.Errorf("message %q", m)
	}
}

func TestSumWait(t *testing.T) {
	plain, rolling := newArchive("a", 0), newArchive("a", 0)
	rolling.Spec.Rollout = &v1alpha1.Rollout{}
	for _, test := range []struct {
		why           string
		a             *v1alpha1.ImageArchive
		nodes, moving int
		want          time.Duration
	}{
		{"alone", plain, 5000, 1, 250 * time.Millisecond},
		{"nothing moves yet", plain, 5000, 0, 250 * time.Millisecond},
		{"several", plain, 5000, 8, 2 * time.Second},
		{"so many that somebody would wait for Ready", plain, 5000, 100, 5 * time.Second},
		{"one that lets nodes in", rolling, 5000, 100, time.Second},
	} {
		if got := sumWait(test.a, test.nodes, test.moving); got != test.want {
			t.Errorf("%s: %s, want %s", test.why, got, test.want)
		}
	}
}

func TestRollUpWait(t *testing.T) {
	status := func(desired int32, sayings ...saying) *v1alpha1.ImageArchiveStatus {
		nodes, states := cluster(sayings...)
		s := rollUp(newArchive("a", 0), nodes, states, standing{}, epoch)
		s.Nodes.Desired = desired
		return s
	}
	fresh := &v1alpha1.ImageArchiveStatus{ObservedGeneration: -1}
	for _, test := range []struct {
		why           string
		before, after *v1alpha1.ImageArchiveStatus
		nodes, moving int
		since         time.Duration
		want          time.Duration
	}{
		{"the first status", fresh, status(2, nil, nil), 2, 1, 0, 0},
		{"counts moved just now", status(2, nil, nil), status(2, saysImporting, nil), 2, 1, time.Second, 9 * time.Second},
		{"counts moved long ago", status(2, nil, nil), status(2, saysImporting, nil), 2, 1, time.Minute, 0},
		{"counts of many archives", status(2, nil, nil), status(2, saysImporting, nil), 2, 20, time.Second, 9 * time.Second},
		{"counts of 5,000 nodes", status(5000, nil, nil), status(5000, saysImporting, nil), 5000, 1, 10 * time.Second, 40 * time.Second},
		{"counts of few of 5,000 nodes", status(2, nil, nil), status(2, saysImporting, nil), 5000, 20, 10 * time.Second, 190 * time.Second},
		{"counts of 5,000 nodes and many archives", status(5000, nil, nil), status(5000, saysImporting, nil), 5000, 20, 10 * time.Second, 190 * time.Second},
		{"counts of 5,000 nodes and very many archives", status(5000, nil, nil), status(5000, saysImporting, nil), 5000, 100, 0, rollUpLimit},
		{"ready", status(5000, saysReady, nil), status(5000, saysReady, saysReady), 5000, 20, 0, 0},
		{"no longer ready", status(2, saysReady), status(2, saysReady, nil), 2, 20, 0, 0},
		{"stalled", status(5000, saysImporting), status(5000, saysStalled), 5000, 20, 0, 0},
	} {
		if got := rollUpWait(test.before, test.after, test.nodes, test.moving, test.since); got != test.want {
			t.Errorf("%s: waits %s, want %s", test.why, got, test.want)
		}
	}
}

func TestRollUpOfARollout(t *testing.T) {
	a := newArchive("a", 0)
	a.Spec.Rollout = &v1alpha1.Rollout{ProgressDeadline: &metav1.Duration{Duration: time.Minute}}
	admitted := func(states map[string]*v1alpha1.NodeImageState, node string, generation int64, expired bool) {
		states[node].Spec.Admitted = []v1alpha1.Admission{{Archive: "a", UID: a.UID, Generation: generation, Expired: expired}}
	}
	for _, test := range []struct {
		why     string
		sayings []saying
		admit   func(states map[string]*v1alpha1.NodeImageState)
		stand   standing
		want    string
		message string
	}{
		{"under way", []saying{saysReady, saysImporting, saysWaiting, saysWaiting, nil}, func(s map[string]*v1alpha1.NodeImageState) {
			admitted(s, "n1", 1, false)
			admitted(s, "n2", 1, false)
		}, standing{}, "Ready=False/Importing Reconciling=True/Importing", "1 of 5 nodes ready, 1 importing, 2 waiting, 1 pending"},
		{"admitted for an earlier spec", []saying{saysWaiting}, func(s map[string]*v1alpha1.NodeImageState) { admitted(s, "n0", 0, false) },
			standing{}, "Ready=False/Importing Reconciling=True/Importing", "0 of 1 node ready, 1 waiting"},
		{"silent for too long", []saying{saysReady, saysImporting}, func(s map[string]*v1alpha1.NodeImageState) { admitted(s, "n1", 1, true) },
			standing{failed: 1, maxFailed: 1}, "Ready=False/ProgressDeadlineExceeded Reconciling=True/Importing",
			"1 of 2 nodes ready, 1 failed; n1: no progress for 1m0s; its place went to another node"},
		{"a failure that may be", []saying{saysStalled, saysWaiting}, func(map[string]*v1alpha1.NodeImageState) {}, standing{failed: 1, maxFailed: 1},
			"Ready=False/Truncated Reconciling=True/Importing", "0 of 2 nodes ready, 1 failed, 1 waiting; n0: cut"},
		{"nothing but that is left", []saying{saysStalled, saysReady}, func(map[string]*v1alpha1.NodeImageState) {}, standing{failed: 1, maxFailed: 1},
			"Ready=False/Truncated Stalled=True/Truncated", "1 of 2 nodes ready, 1 failed; n0: cut"},
		{"it has stopped", []saying{saysStalled, saysWaiting}, func(map[string]*v1alpha1.NodeImageState) {}, standing{failed: 1, stopped: true},
			"Ready=False/RolloutStopped Stalled=True/RolloutStopped",
			"0 of 2 nodes ready, 1 failed, 1 waiting; no further node begins, since 1 failed and maxFailed is 0; n0: cut"},
	} {
		nodes, states := cluster(test.sayings...)
		test.admit(states)
		s := rollUp(a, nodes, states, test.stand, epoch)
		if got := short(s.Conditions); got != test.want || s.Conditions[0].Message != test.message {
			t.Errorf("%s: %q %q, want %q %q", test.why, got, s.Conditions[0].Message, test.want, test.message)
		}
		if c := s.Nodes; c.Ready+c.Importing+c.Failed+c.Pending != c.Desired {
			t.Errorf("%s: %+v", test.why, c)
		}
	}
}
