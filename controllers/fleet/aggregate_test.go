package fleet

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
)

// digestOf is a digest of one repeated figure.
func digestOf(figure byte) string { return "sha256:" + strings.Repeat(string(figure), 64) }

// saying is what a node says about the archive "a" in its first generation.
type saying func(*v1alpha1.ArchiveState)

func saysReady(e *v1alpha1.ArchiveState) {
	e.Ready, e.IndexDigest, e.Size, e.ImageCount = true, digestOf('1'), 45<<20, 2
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
		e.UID = newArchive(uid).UID
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

func TestAggregateConditions(t *testing.T) {
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
		{"no nodes", nil, nil, "Ready=False/NoNodesSelected Reconciling=True/NoNodesSelected",
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
		{"suspended after the end", suspended, []saying{saysReady, saysReady}, "Ready=True/Suspended",
			v1alpha1.NodeCounts{Desired: 2, Ready: 2, Summary: "2/2"}},
		{"nodes that are not selected do not count", selecting("0", "2"), []saying{saysReady, saysStalled, saysReady}, "Ready=True/Imported",
			v1alpha1.NodeCounts{Desired: 2, Ready: 2, Summary: "2/2"}},
		{"an empty selector selects all", func(a *v1alpha1.ImageArchive) { a.Spec.NodeSelector = &metav1.LabelSelector{} }, []saying{saysReady},
			"Ready=True/Imported", v1alpha1.NodeCounts{Desired: 1, Ready: 1, Summary: "1/1"}},
		{"a selector that no label can match", selecting("not a value"), []saying{saysReady}, "Ready=False/InvalidSelector Stalled=True/InvalidSelector",
			v1alpha1.NodeCounts{Summary: "0/0"}},
	} {
		a := newArchive("a")
		if test.edit != nil {
			test.edit(a)
		}
		nodes, states := cluster(test.sayings...)
		s := aggregated(a, nodes, states, 0)
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

func TestAggregateFailures(t *testing.T) {
	var sayings []saying
	for range 15 {
		sayings = append(sayings, saysRetrying)
	}
	sayings[7], sayings[9] = saysStalled, saysReady
	nodes, states := cluster(sayings...)
	s := aggregated(newArchive("a"), nodes, states, 0)
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
	if s := aggregated(newArchive("a"), nodes, states, 0); s.Nodes.Ready != 1 || s.Nodes.Pending != 1 {
		t.Errorf("counts %+v", s.Nodes)
	}
}

// The order in which nodes are listed, which is that of a map, must not show.
func TestAggregateIsDeterministic(t *testing.T) {
	other := func(e *v1alpha1.ArchiveState) { saysReady(e); e.IndexDigest = digestOf('0') }
	nodes, states := cluster(saysReady, other, saysRetrying, saysStalled, nil, saysImporting)
	a := newArchive("a")
	first := aggregated(a, nodes, states, 0)
	for i := range nodes {
		nodes[0], nodes[i] = nodes[i], nodes[0]
		if diff := cmp.Diff(first, aggregated(a, nodes, states, 0)); diff != "" {
			t.Fatalf("another order, another status:\n%s", diff)
		}
	}
}

func TestAggregateArtifact(t *testing.T) {
	full := func(e *v1alpha1.ArchiveState) { saysReady(e); e.Digest = digestOf('f') }
	other := func(e *v1alpha1.ArchiveState) {
		saysReady(e)
		e.IndexDigest, e.Size, e.ImageCount = digestOf('0'), 7, 9
	}
	fewer := func(e *v1alpha1.ArchiveState) { saysReady(e); e.Size, e.ImageCount = 0, 1 }
	want := &v1alpha1.Artifact{IndexDigest: digestOf('1'), Size: 45 << 20, DisplaySize: "45MiB"}
	wantFull := want.DeepCopy()
	wantFull.Digest = digestOf('f')
	for _, test := range []struct {
		why     string
		sayings []saying
		want    *v1alpha1.Artifact
		images  int32
	}{
		{"nobody has it", []saying{saysImporting, nil}, nil, 0},
		{"one has it", []saying{saysReady, nil}, want, 2},
		{"one has read all of it", []saying{saysReady, full}, want, 2},
		{"most have", []saying{saysReady, full, full}, wantFull, 2},
		{"one node's source does not tell the size, and its platform has fewer images", []saying{fewer, saysReady, saysReady}, want, 2},
		{"most have this one", []saying{other, saysReady, saysReady}, want, 2},
	} {
		nodes, states := cluster(test.sayings...)
		s := aggregated(newArchive("a"), nodes, states, 0)
		if diff := cmp.Diff(test.want, s.Artifact); diff != "" || s.ImageCount != test.images {
			t.Errorf("%s: %d images (-want +got):\n%s", test.why, s.ImageCount, diff)
		}
	}
	nodes, states := cluster(saysReady, other)
	if m := aggregated(newArchive("a"), nodes, states, 0).Conditions[0].Message; m != "2 of 2 nodes ready; the nodes have 2 different archives" {
		t.Errorf("message %q", m)
	}
}

// What nodes report never makes an invalid status, and one of five decides nothing.
func TestReportsAreInput(t *testing.T) {
	long := strings.Repeat("x\n\x00", 1<<18)
	liar := func(e *v1alpha1.ArchiveState) {
		e.Ready, e.IndexDigest, e.Digest, e.Size, e.ImageCount = true, "sha256:evil", long, -1<<62, -7
		e.Images = []v1alpha1.Image{{Name: long, Digest: "x"}}
		e.Bytes = &v1alpha1.ArchiveBytes{Total: -1, Done: 1 << 62, Skipped: 1 << 62}
	}
	odd := func(e *v1alpha1.ArchiveState) {
		e.LastError = &v1alpha1.ImportError{Reason: "not a reason!", Message: long}
		e.Conditions = []metav1.Condition{condition.New("Stalled", "True", "not a reason!", long)}
		e.Bytes = &v1alpha1.ArchiveBytes{Total: 1, Done: 1 << 62, Skipped: 1 << 62}
	}
	named := func(e *v1alpha1.ArchiveState) {
		saysReady(e)
		e.Images = []v1alpha1.Image{{Name: "docker.io/library/a:1", Digest: digestOf('a')}}
	}
	a := newArchive("a")
	nodes, states := cluster(liar, named, named, named, named)
	s := aggregated(a, nodes, states, 0)
	if s.Artifact.IndexDigest != digestOf('1') || s.Artifact.Size != 45<<20 || s.ImageCount != 2 || len(s.Images) != 1 || s.Images[0].Digest != digestOf('a') {
		t.Errorf("one of five decides: %+v, %d images: %v", s.Artifact, s.ImageCount, s.Images)
	}
	for why, sayings := range map[string][]saying{"all lie": {liar, liar}, "a reason that is none": {odd, named}, "both": {liar, odd, nil}} {
		nodes, states := cluster(sayings...)
		states["n0"].Status.Archives = slices.Repeat(states["n0"].Status.Archives, 5000)
		s := aggregated(a, nodes, states, 0)
		for _, c := range s.Conditions {
			if !regexp.MustCompile("^[A-Z][A-Za-z]{1,63}$").MatchString(c.Reason) || len(c.Message) > condition.MaxText || strings.ContainsAny(c.Message, "\n\x00") {
				t.Errorf("%s: condition %s, %d bytes", why, c.Reason, len(c.Message))
			}
		}
		for _, f := range s.Failures {
			if f.Reason != v1alpha1.ReasonUnknown || len(f.Message) > condition.MaxSample || strings.ContainsAny(f.Message, "\n\x00") {
				t.Errorf("%s: failure %s, %d bytes", why, f.Reason, len(f.Message))
			}
		}
		if x := s.Artifact; x != nil && (x.Size < 0 || x.IndexDigest != "" && x.IndexDigest != digestOf('1') || x.Digest != "") || s.ImageCount < 0 {
			t.Errorf("%s: artifact %+v, %d images", why, x, s.ImageCount)
		}
		if n := s.Nodes; n.Ready+n.Importing+n.Failed+n.Pending != n.Desired || n.Desired != int32(len(nodes)) {
			t.Errorf("%s: counts %+v", why, n)
		}
		if s.Progress != "" && !regexp.MustCompile("^(100|[0-9]{1,2})%$").MatchString(s.Progress) {
			t.Errorf("%s: progress %q", why, s.Progress)
		}
	}
}

func TestProgress(t *testing.T) {
	at := func(done, skipped, total int64) saying {
		return func(e *v1alpha1.ArchiveState) {
			saysImporting(e)
			e.Bytes = &v1alpha1.ArchiveBytes{Total: total, Done: done, Skipped: skipped}
		}
	}
	for want, sayings := range map[string][]saying{
		"":     {nil, saysPending, at(0, 0, 0)},
		"100%": {saysReady, saysReady},
		"50%":  {saysReady, nil},
		"45%":  {at(30, 10, 100), at(50, 0, 100)},
		"66%":  {saysReady, saysReady, at(0, 0, 100)},
	} {
		nodes, states := cluster(sayings...)
		if got := aggregated(newArchive("a"), nodes, states, 0).Progress; got != want {
			t.Errorf("progress %q, want %q", got, want)
		}
	}
}

func TestAggregateOfARollout(t *testing.T) {
	a := newArchive("a")
	a.Spec.Rollout = &v1alpha1.Rollout{ProgressDeadline: &metav1.Duration{Duration: time.Minute}}
	for _, test := range []struct {
		why     string
		sayings []saying
		failed  int
		want    string
		message string
	}{
		{"a failure that may be", []saying{saysStalled, saysWaiting}, 1, "Ready=False/Truncated Reconciling=True/Importing",
			"0 of 2 nodes ready, 1 failed, 1 waiting for admission; n0: cut"},
		{"nothing but that is left", []saying{saysStalled, saysReady}, 1, "Ready=False/Truncated Stalled=True/Truncated",
			"1 of 2 nodes ready, 1 failed; n0: cut"},
		{"it has stopped", []saying{saysStalled, saysWaiting}, 2, "Ready=False/RolloutStopped Stalled=True/RolloutStopped",
			"0 of 2 nodes ready, 1 failed, 1 waiting for admission; no further node is admitted, since 2 failed and maxFailed is 1; n0: cut"},
	} {
		nodes, states := cluster(test.sayings...)
		s := aggregated(a, nodes, states, test.failed)
		if got := short(s.Conditions); got != test.want || s.Conditions[0].Message != test.message {
			t.Errorf("%s: %q %q, want %q %q", test.why, got, s.Conditions[0].Message, test.want, test.message)
		}
	}
}
