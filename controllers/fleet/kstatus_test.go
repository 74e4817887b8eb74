package fleet

import (
	"testing"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	lua "github.com/yuin/gopher-lua"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/tarlift/tarlift/api/v1alpha1"
)

// What waits by kstatus, such as Helm and Flux, takes every state for what it is, and so does Argo CD by health.lua.
func TestKstatus(t *testing.T) {
	suspended := func(a *v1alpha1.ImageArchive) { a.Spec.Suspend = true }
	rollout := func(a *v1alpha1.ImageArchive) { a.Spec.Rollout = &v1alpha1.Rollout{} }
	for _, test := range []struct {
		why     string
		edit    func(*v1alpha1.ImageArchive)
		sayings []saying
		failed  int
		want    status.Status
		health  string
	}{
		{"no node", nil, nil, 0, status.InProgressStatus, "Progressing"},
		{"all ready", nil, []saying{saysReady, saysReady}, 0, status.CurrentStatus, "Healthy"},
		{"ready and suspended", suspended, []saying{saysReady}, 0, status.CurrentStatus, "Healthy"},
		{"a silent node", nil, []saying{saysReady, nil}, 0, status.InProgressStatus, "Progressing"},
		{"pending", nil, []saying{saysPending}, 0, status.InProgressStatus, "Progressing"},
		{"importing", nil, []saying{saysImporting}, 0, status.InProgressStatus, "Progressing"},
		{"tried again", nil, []saying{saysReady, saysRetrying}, 0, status.InProgressStatus, "Progressing"},
		{"suspended", suspended, []saying{saysSuspended}, 0, status.InProgressStatus, "Suspended"},
		{"stalled", nil, []saying{saysReady, saysStalled}, 0, status.FailedStatus, "Degraded"},
		{"lost, and not to be healed", nil, []saying{saysReady, saysLost}, 0, status.FailedStatus, "Degraded"},
		{"stalled and suspended", suspended, []saying{saysReady, saysStalled}, 0, status.FailedStatus, "Degraded"},
		{"a selector that selects nothing by mistake", func(a *v1alpha1.ImageArchive) {
			a.Spec.NodeSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"not a key": ""}}
		}, []saying{saysReady}, 0, status.FailedStatus, "Degraded"},
		{"waiting for the rollout", rollout, []saying{saysReady, saysWaiting}, 0, status.InProgressStatus, "Progressing"},
		{"a failure that a rollout bears", rollout, []saying{saysStalled, saysWaiting}, 1, status.InProgressStatus, "Progressing"},
		{"only failures are left", rollout, []saying{saysStalled, saysReady}, 1, status.FailedStatus, "Degraded"},
		{"a rollout that stopped", rollout, []saying{saysStalled, saysWaiting}, 2, status.FailedStatus, "Degraded"},
		{"a rollout that is done", rollout, []saying{saysReady}, 0, status.CurrentStatus, "Healthy"},
	} {
		a := newArchive("a")
		if test.edit != nil {
			test.edit(a)
		}
		a.Status.ObservedGeneration = -1 // as the API server makes it
		if got := kstatusOf(t, a); got != status.InProgressStatus {
			t.Errorf("%s, fresh: %s", test.why, got)
		}
		if got := healthOf(t, a); got != "Progressing" {
			t.Errorf("%s, fresh: %s for Argo CD", test.why, got)
		}
		nodes, states := cluster(test.sayings...)
		a.Status = *aggregated(a, nodes, states, test.failed)
		if got := kstatusOf(t, a); got != test.want {
			t.Errorf("%s: %s, want %s; %s", test.why, got, test.want, short(a.Status.Conditions))
		}
		if got := healthOf(t, a); got != test.health {
			t.Errorf("%s: %s for Argo CD, want %s; %s", test.why, got, test.health, short(a.Status.Conditions))
		}
		changed := edited(a, func(*v1alpha1.ImageArchive) {})
		if got := kstatusOf(t, changed); got != status.InProgressStatus {
			t.Errorf("%s, after a change of the spec: %s", test.why, got)
		}
		if got := healthOf(t, changed); got != "Progressing" {
			t.Errorf("%s, after a change of the spec: %s for Argo CD", test.why, got)
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

// healthOf runs health.lua as Argo CD does: the object in a global, few libraries, and a table that is returned.
func healthOf(t *testing.T, o runtime.Object) string {
	t.Helper()
	m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		t.Fatal(err)
	}
	l := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer l.Close()
	for name, open := range map[string]lua.LGFunction{lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable, lua.StringLibName: lua.OpenString} {
		if err := l.CallByParam(lua.P{Fn: l.NewFunction(open), Protect: true}, lua.LString(name)); err != nil {
			t.Fatal(err)
		}
	}
	l.SetGlobal("obj", luaValue(l, m))
	if err := l.DoFile("../../config/argocd/health.lua"); err != nil {
		t.Fatal(err)
	}
	health, ok := l.Get(-1).(*lua.LTable)
	if !ok {
		t.Fatalf("health.lua returns a %s", l.Get(-1).Type())
	}
	if message := health.RawGetString("message"); message.Type() != lua.LTString || message.String() == "" {
		t.Errorf("health.lua gives the message %s", message)
	}
	return health.RawGetString("status").String()
}

func luaValue(l *lua.LState, v any) lua.LValue {
	switch v := v.(type) {
	case map[string]any:
		table := l.NewTable()
		for key, member := range v {
			table.RawSetString(key, luaValue(l, member))
		}
		return table
	case []any:
		table := l.NewTable()
		for _, item := range v {
			table.Append(luaValue(l, item))
		}
		return table
	case string:
		return lua.LString(v)
	case bool:
		return lua.LBool(v)
	case int64:
		return lua.LNumber(v)
	case float64:
		return lua.LNumber(v)
	}
	return lua.LNil
}
