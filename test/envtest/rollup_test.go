package envtest

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/fleet"
	"github.com/tarlift/tarlift/internal/archive"
)

func startController(t *testing.T) *process {
	t.Helper()
	return start(t, as("tarlift-controller"), ctrl.Options{Cache: fleet.Cache()}, func(mgr ctrl.Manager) error {
		return (&fleet.Reconciler{
			Client: mgr.GetClient(), Recorder: mgr.GetEventRecorder("tarlift-controller"),
		}).SetupWithManager(mgr)
	})
}

const archiveReady = "Ready=True/Imported"

// waitForArchive waits until an archive has these conditions and this NODES column.
func waitForArchive(t *testing.T, name, conditions, summary string) *v1alpha1.ImageArchive {
	t.Helper()
	var a v1alpha1.ImageArchive
	eventually(t, fmt.Sprintf("%s to be %s %s", name, conditions, summary), func() (bool, string) {
		if err := admin.Get(t.Context(), client.ObjectKey{Name: name}, &a); err != nil {
			return false, err.Error()
		}
		if a.Status.Nodes == nil {
			return false, "without status"
		}
		return short(a.Status.Conditions) == conditions && a.Status.Nodes.Summary == summary,
			short(a.Status.Conditions) + " " + a.Status.Nodes.Summary
	})
	return &a
}

// Agents on nodes and the controller, all with the rights of their roles only.
func TestClusterBecomesReady(t *testing.T) {
	startController(t)
	var nodes []*fakeNode
	for i := range 2 {
		n := newFakeNode(t, fmt.Sprintf("cluster-%d", i))
		n.put(t, "a.tar")
		n.start(t)
		nodes = append(nodes, n)
	}
	silent := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "cluster-silent"}}
	create(t, silent)
	a := typed[v1alpha1.ImageArchive](t, archiveWith(t, "cluster",
		fileSource+"nodeSelector: {matchExpressions: [{key: node, operator: NotIn, values: [x]}]}"))
	create(t, a)

	waitForArchive(t, "cluster", "Ready=False/Importing Reconciling=True/Importing", "0/3")
	if err := admin.Delete(t.Context(), silent); err != nil {
		t.Fatal(err)
	}
	got := waitForArchive(t, "cluster", archiveReady, "2/2")
	if s := got.Status; s.ObservedGeneration != 1 || s.ImageCount != 2 || s.Artifact == nil || s.Artifact.DisplaySize != "2.0MiB" ||
		s.Artifact.IndexDigest != testDigest || len(s.Images) != 2 || s.Progress != "100%" || len(s.Failures) != 0 {
		t.Errorf("status %+v", s)
	}
	waitForEvent(t, a.UID, "Imported", "2 images: 2 of 2 nodes ready, from an archive of 2.0MiB")

	// A version that fails on one node, for good.
	nodes[1].set(func() { nodes[1].fail = archive.ErrTruncated })
	for _, n := range nodes {
		n.put(t, "b.tar")
	}
	update(t, got, func() { got.Spec.Source.File.Path = "b.tar" })
	got = waitForArchive(t, "cluster", "Ready=False/Truncated Stalled=True/Truncated", "1/2")
	if f := got.Status.Failures; len(f) != 1 || f[0].Node != "cluster-1" || f[0].Reason != "Truncated" || got.Status.ObservedGeneration != 2 {
		t.Errorf("status %+v", got.Status)
	}
	waitForEvent(t, a.UID, "Truncated", "cluster-1")

	nodes[1].set(func() { nodes[1].fail = nil })
	update(t, got, func() { got.Annotations = map[string]string{v1alpha1.AnnotationReconcileRequestedAt: "now"} })
	waitForArchive(t, "cluster", archiveReady, "2/2")
}

// A controller that finds everything summed up writes nothing.
func TestControllerIsIdle(t *testing.T) {
	n := newFakeNode(t, "idle")
	n.put(t, "a.tar")
	n.newArchive(t, "idle")
	agent := n.start(t)
	p := startController(t)
	waitForArchive(t, "idle", archiveReady, "1/1")
	p.stop()
	agentWrites := agent.writes.Load()

	p = startController(t)
	// It has looked at everything once it has summed up an archive that comes later.
	for i := range 3 {
		name := fmt.Sprintf("idle-%d", i)
		create(t, archiveWith(t, name, fileSource+"nodeSelector: {matchLabels: {node: none}}"))
		waitForArchive(t, name, "Ready=False/NoNodesSelected Reconciling=True/NoNodesSelected", "0/0")
	}
	if w := p.writes.Load(); w != 3 {
		t.Errorf("%d writes, want one for each of the 3 new archives", w)
	}
	if w := agent.writes.Load(); w != agentWrites {
		t.Errorf("the node's agent wrote %d times about archives of other nodes", w-agentWrites)
	}
}
