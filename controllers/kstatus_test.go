package controllers

import (
	"testing"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/tarlift/tarlift/api/v1alpha1"
)

// What waits by kstatus, such as Helm and Flux, takes every state for what it is.
func TestKstatus(t *testing.T) {
	suspended := func(a *v1alpha1.ImageArchive) { a.Spec.Suspend = true }
	rollout := func(a *v1alpha1.ImageArchive) { a.Spec.Rollout = &v1alpha1.Rollout{} }
	for _, test := range []struct {
		why     string
		edit    func(*v1alpha1.ImageArchive)
		sayings []saying
		stand   standing
		want    status.Status
	}{
		{"no node", nil, nil, standing{}, status.CurrentStatus},
		{"all ready", nil, []saying{saysReady, saysReady}, standing{}, status.CurrentStatus},
		{"ready and suspended", suspended, []saying{saysReady}, standing{}, status.CurrentStatus},
		{"a silent node", nil, []saying{saysReady, nil}, standing{}, status.InProgressStatus},
		{"pending", nil, []saying{saysPending}, standing{}, status.InProgressStatus},
		{"importing", nil, []saying{saysImporting}, standing{}, status.InProgressStatus},
		{"tried again", nil, []saying{saysReady, saysRetrying}, standing{}, status.InProgressStatus},
		{"suspended", suspended, []saying{saysSuspended}, standing{}, status.InProgressStatus},
		{"stalled", nil, []saying{saysReady, saysStalled}, standing{}, status.FailedStatus},
		{"lost, and not to be healed", nil, []saying{saysReady, saysLost}, standing{}, status.FailedStatus},
		{"stalled and suspended", suspended, []saying{saysReady, saysStalled}, standing{}, status.FailedStatus},
		{"a selector that selects nothing by mistake", func(a *v1alpha1.ImageArchive) {
			a.Spec.NodeSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"not a key": ""}}
		}, []saying{saysReady}, standing{}, status.FailedStatus},
		{"waiting for the rollout", rollout, []saying{saysReady, saysWaiting}, standing{}, status.InProgressStatus},
		{"a failure that a rollout bears", rollout, []saying{saysStalled, saysWaiting}, standing{failed: 1, maxFailed: 1}, status.InProgressStatus},
		{"only failures are left", rollout, []saying{saysStalled, saysReady}, standing{failed: 1, maxFailed: 1}, status.FailedStatus},
		{"a rollout that stopped", rollout, []saying{saysStalled, saysWaiting}, standing{stopped: true, failed: 1}, status.FailedStatus},
		{"a rollout that is done", rollout, []saying{saysReady}, standing{}, status.CurrentStatus},
	} {
		a := newArchive("a", 0)
		if test.edit != nil {
			test.edit(a)
		}
		a.Status.ObservedGeneration = -1 // as the API server makes it
		if got := kstatusOf(t, a); got != status.InProgressStatus {
			t.Errorf("%s, fresh: %s", test.why, got)
		}
		nodes, states := cluster(test.sayings...)
		a.Status = *rollUp(a, nodes, states, test.stand, epoch)
		if got := kstatusOf(t, a); got != test.want {
			t.Errorf("%s: %s, want %s; %s", test.why, got, test.want, short(a.Status.Conditions))
		}
		if got := kstatusOf(t, edited(a, func(*v1alpha1.ImageArchive) {})); got != status.InProgressStatus {
			t.Errorf("%s, after a change of the spec: %s", test.why, got)
		}
	}
}

// A NodeImageState has nothing to wait for: whoever applies a whole release with it is not held up.
func TestKstatusOfNodeImageState(t *testing.T) {
	state := &v1alpha1.NodeImageState{}
	for _, says := range []saying{saysImporting, saysStalled, saysReady} {
		_, states := cluster(says)
		if got := kstatusOf(t, states["n0"]); got != status.CurrentStatus {
			t.Errorf("%s", got)
		}
	}
	if got := kstatusOf(t, state); got != status.CurrentStatus {
		t.Errorf("fresh: %s", got)
	}
}

func kstatusOf(t *testing.T, o runtime.Object) status.Status {
	t.Helper()
	m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		t.Fatal(err)
	}
	r, err := status.Compute(&unstructured.Unstructured{Object: m})
	if err != nil {
		t.Fatal(err)
	}
	return r.Status
}
