package fleet

import (
	"context"
	"slices"
	"testing"

	"github.com/go-logr/logr/funcr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
)

func TestNodeChanged(t *testing.T) {
	for why, test := range map[string]struct {
		edit func(*metav1.PartialObjectMetadata)
		want bool
	}{
		"a heartbeat":    {func(n *metav1.PartialObjectMetadata) { n.ResourceVersion = "2" }, false},
		"other labels":   {func(n *metav1.PartialObjectMetadata) { n.Labels = map[string]string{"a": "b"} }, true},
		"another object": {func(n *metav1.PartialObjectMetadata) { n.UID = "other" }, true},
	} {
		before, after := nodeMetadata(), nodeMetadata()
		test.edit(after)
		if got := nodeChanged.Update(event.UpdateEvent{ObjectOld: before, ObjectNew: after}); got != test.want {
			t.Errorf("%s: %v", why, got)
		}
	}
}

// What moves no sum of an archive asks for no summing up, which looks at every node.
func TestListedArchives(t *testing.T) {
	stateOf := func(edit func(*v1alpha1.NodeImageState, *v1alpha1.ArchiveState), s saying) *v1alpha1.NodeImageState {
		_, states := cluster(s)
		state := states["n0"]
		if edit != nil {
			edit(state, &state.Status.Archives[1])
		}
		return state
	}
	for _, test := range []struct {
		why  string
		says saying
		edit func(*v1alpha1.NodeImageState, *v1alpha1.ArchiveState)
		want bool
	}{
		{"nothing", saysImporting, nil, false},
		{"bytes", saysImporting, func(_ *v1alpha1.NodeImageState, e *v1alpha1.ArchiveState) { e.Bytes = &v1alpha1.ArchiveBytes{Done: 1} }, false},
		{"attempts", saysRetrying, func(_ *v1alpha1.NodeImageState, e *v1alpha1.ArchiveState) { e.Attempts++ }, false},
		{"another phase", saysImporting, func(_ *v1alpha1.NodeImageState, e *v1alpha1.ArchiveState) { e.Conditions[1].Message = "unpacking" }, false},
		{"it waits for its next attempt", saysRetrying, func(_ *v1alpha1.NodeImageState, e *v1alpha1.ArchiveState) { e.Conditions[1].Reason = "Pending" }, false},
		{"another step", saysPending, func(_ *v1alpha1.NodeImageState, e *v1alpha1.ArchiveState) { saysImporting(e) }, true},
		{"another error", saysRetrying, func(_ *v1alpha1.NodeImageState, e *v1alpha1.ArchiveState) { e.LastError.Message = "other" }, true},
		{"stalled", saysRetrying, func(_ *v1alpha1.NodeImageState, e *v1alpha1.ArchiveState) {
			e.Conditions[1] = condition.New("Stalled", "True", "x", "")
		}, true},
		{"stalled again", saysStalled, func(_ *v1alpha1.NodeImageState, e *v1alpha1.ArchiveState) {
			e.Conditions[1].LastTransitionTime = *condition.Timestamp(epoch)
		}, true},
		{"it waits to be let in", saysRetrying, func(_ *v1alpha1.NodeImageState, e *v1alpha1.ArchiveState) {
			e.Conditions[1].Reason = "WaitingForRollout"
		}, true},
		{"another archive file", saysReady, func(_ *v1alpha1.NodeImageState, e *v1alpha1.ArchiveState) { e.IndexDigest = "sha256:2" }, true},
		{"its digest", saysReady, func(_ *v1alpha1.NodeImageState, e *v1alpha1.ArchiveState) { e.Digest = "sha256:2" }, true},
		{"its size", saysReady, func(_ *v1alpha1.NodeImageState, e *v1alpha1.ArchiveState) { e.Size++ }, true},
		{"its images", saysReady, func(_ *v1alpha1.NodeImageState, e *v1alpha1.ArchiveState) { e.ImageCount++ }, true},
		{"another generation", saysReady, func(_ *v1alpha1.NodeImageState, e *v1alpha1.ArchiveState) { e.ObservedGeneration++ }, true},
		{"another object of the name", saysReady, func(_ *v1alpha1.NodeImageState, e *v1alpha1.ArchiveState) { e.UID = "x" }, true},
		{"no longer listed", saysPending, func(s *v1alpha1.NodeImageState, _ *v1alpha1.ArchiveState) { s.Status.Archives = s.Status.Archives[:1] }, true},
	} {
		q := workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[ctrl.Request]())
		before, after := stateOf(nil, test.says), stateOf(test.edit, test.says)
		listedArchives.Update(t.Context(), event.UpdateEvent{ObjectOld: before, ObjectNew: after}, q)
		if got := q.Len() == 1; got != test.want {
			t.Errorf("%s: %d requests", test.why, q.Len())
		}
		listedArchives.Update(t.Context(), event.UpdateEvent{ObjectOld: after, ObjectNew: before}, q)
		if got := q.Len() == 1; got != test.want {
			t.Errorf("%s, the other way round: %d requests", test.why, q.Len())
		}
		after.OwnerReferences = []metav1.OwnerReference{{Kind: "Node", UID: "other"}}
		listedArchives.Update(t.Context(), event.UpdateEvent{ObjectOld: before, ObjectNew: after}, q)
		if q.Len() != 2 {
			t.Errorf("%s, of another Node: %d requests, want one for each archive", test.why, q.Len())
		}
		q.ShutDown()
	}
}

// failingLists is a client whose cache cannot list.
type failingLists struct {
	client.Client
	err error
}

func (f failingLists) List(context.Context, client.ObjectList, ...client.ListOption) error {
	return f.err
}

// At the start Nodes may be known before ImageArchives are; these then bring their own events.
func TestEarlyNodesAreNoError(t *testing.T) {
	for _, test := range []struct {
		err    error
		logged bool
	}{
		{&cache.ErrResourceNotCached{}, false},
		{context.DeadlineExceeded, true},
	} {
		var lines []string
		ctx := ctrl.LoggerInto(t.Context(), funcr.New(func(_, line string) { lines = append(lines, line) }, funcr.Options{}))
		r := &Reconciler{Client: failingLists{err: test.err}}
		if requests := r.allArchives(ctx, nodeMetadata()); len(requests) > 0 || len(lines) > 0 != test.logged {
			t.Errorf("%v: %v, logged %q", test.err, requests, lines)
		}
	}
}

func TestBelongsTo(t *testing.T) {
	node := nodeMetadata()
	node.UID = "u"
	var got []bool
	for _, owners := range [][]metav1.OwnerReference{nil, {{Kind: "Node", UID: "u"}}, {{Kind: "Node", UID: "earlier"}}, {{Kind: "Other", UID: types.UID("x")}}} {
		got = append(got, (&v1alpha1.NodeImageState{ObjectMeta: metav1.ObjectMeta{OwnerReferences: owners}}).BelongsTo(node))
	}
	if want := []bool{true, true, false, true}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
