package fleet

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
)

var epoch = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// noJitter waits as long as may be waited; stalled ones exactly stalledInterval*1.2.
func noJitter() float64 { return 1 }

// newArchive is an ImageArchive that is age old at the epoch.
func newArchive(name string, age time.Duration) *v1alpha1.ImageArchive {
	return &v1alpha1.ImageArchive{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, UID: types.UID("uid-" + name), Generation: 1, CreationTimestamp: metav1.NewTime(epoch.Add(-age)),
		},
		Spec: v1alpha1.ImageArchiveSpec{Source: v1alpha1.Source{File: &v1alpha1.FileSource{Path: name + ".tar"}}},
	}
}

// edited is a copy with another generation.
func edited(a *v1alpha1.ImageArchive, edit func(*v1alpha1.ImageArchive)) *v1alpha1.ImageArchive {
	a = a.DeepCopy()
	a.Generation++
	edit(a)
	return a
}

func short(conditions []metav1.Condition) string {
	s := ""
	for i, c := range conditions {
		if i > 0 {
			s += " "
		}
		s += fmt.Sprintf("%s=%s/%s", c.Type, c.Status, c.Reason)
	}
	return s
}

func withRollout(a *v1alpha1.ImageArchive) { a.Spec.Rollout = &v1alpha1.Rollout{} }

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
	"plain":   strings.Repeat("x", 5*condition.MaxText),
	"escaped": strings.Repeat("<", 5*condition.MaxText),
	"quotes":  strings.Repeat(`"`, 5*condition.MaxText),
	"wide":    strings.Repeat("ü€", 5*condition.MaxText),
}

func failing(i int, text string, terminal bool) v1alpha1.ArchiveState {
	e := v1alpha1.ArchiveState{
		Name: longName("archive", i), UID: types.UID(fmt.Sprintf("00000000-0000-0000-0000-%012d", i)), ObservedGeneration: 1000 + int64(i),
		Bytes: &v1alpha1.ArchiveBytes{Total: 1 << 40, Done: 1 << 39, Skipped: 1 << 39}, StartTime: condition.Timestamp(epoch), Attempts: 1000,
		LastError: &v1alpha1.ImportError{Reason: v1alpha1.ReasonSourceUnavailable, Message: condition.Clip(text)},
	}
	second := condition.New("Reconciling", "True", v1alpha1.ReasonPending, "will be tried again")
	if terminal {
		second = condition.New("Stalled", "True", v1alpha1.ReasonSourceUnavailable, condition.Clip(text))
	}
	e.Conditions = condition.Merge(nil, e.ObservedGeneration, epoch, condition.New("Ready", "False", v1alpha1.ReasonSourceUnavailable, condition.Clip(text)), second)
	return e
}

func TestImageArchiveIsSmall(t *testing.T) {
	for name, text := range longTexts {
		a := newArchive("a", 0)
		nodes, states := cluster(make([]saying, 100)...)
		for i := range nodes {
			node := &nodes[i]
			node.Name = fmt.Sprintf("%d-", i) + strings.Repeat("n", 250)
			state := &v1alpha1.NodeImageState{}
			state.Name = node.Name
			e := failing(i, text, true)
			e.Name, e.UID, e.ObservedGeneration = a.Name, a.UID, a.Generation
			e.LastError.Message += fmt.Sprint(i)
			state.Status.Archives = []v1alpha1.ArchiveState{e}
			states[node.Name] = state
		}
		a.Status = *rollUp(a, nodes, states, standing{stopped: true, failed: 100}, epoch.Add(time.Hour))
		if n := jsonLen(t, a); n > maxObject || len(a.Status.Failures) != maxFailures {
			t.Errorf("%s: %d bytes, %d failures", name, n, len(a.Status.Failures))
		}
		for _, c := range a.Status.Conditions {
			if len(c.Message) > condition.MaxText {
				t.Errorf("%s: a message of %d bytes", name, len(c.Message))
			}
		}
	}
}

// The controller knows nothing of drop-ins: they wake it for nothing, and count nowhere.
func TestRollUpIgnoresDropIns(t *testing.T) {
	nodes, states := cluster(saysReady)
	state := states[nodes[0].Name]
	before := rollUp(newArchive("a", 0), nodes, states, standing{}, epoch)
	with := state.DeepCopy()
	for i, says := range []saying{saysReady, saysStalled, saysImporting} {
		e := v1alpha1.ArchiveState{Name: fmt.Sprintf("drop-in/%d.tar", i), UID: types.UID(fmt.Sprintf("drop-in-%d", i)), ObservedGeneration: 1}
		says(&e)
		with.Status.Archives = append(with.Status.Archives, e)
	}
	if x, y := sharesIn(client.Object(state)), sharesIn(with); len(x) != len(y) {
		t.Errorf("%d shares, %d without drop-ins", len(y), len(x))
	}
	states[nodes[0].Name] = with
	if after := rollUp(newArchive("a", 0), nodes, states, standing{}, epoch); cmp.Diff(before, after) != "" {
		t.Errorf("another sum: %s", cmp.Diff(before, after))
	}
}
