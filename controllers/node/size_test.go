package node

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
)

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

func TestClipTo(t *testing.T) {
	for name, text := range longTexts {
		for _, most := range []int{10, 24, 60, 401, condition.MaxText} {
			got := condition.ClipTo(text, most)
			if n := jsonLen(t, got) - 2; n > most || n < most-6-len("…") || !strings.HasSuffix(got, "…") {
				t.Errorf("%s to %d: %d bytes, %q", name, most, n, got)
			}
		}
	}
	for _, short := range []string{"", "a", `"<`, "ü€", strings.Repeat("x", 60)} {
		if got := condition.ClipTo(short, 60); got != short {
			t.Errorf("%q became %q", short, got)
		}
	}
}

// failing is an entry of a node on which an archive fails, each text as long as it may be.
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

func TestNodeImageStateIsSmall(t *testing.T) {
	object := func(entry func(i int) v1alpha1.ArchiveState, admitted int) *v1alpha1.NodeImageState {
		s := &v1alpha1.NodeImageState{
			TypeMeta: metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "NodeImageState"},
			ObjectMeta: metav1.ObjectMeta{
				Name: longName("node", 0), UID: "00000000-0000-0000-0000-000000000000", ResourceVersion: "1234567890", Generation: 1000,
				CreationTimestamp: *condition.Timestamp(epoch),
				OwnerReferences:   []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: longName("node", 0), UID: "00000000-0000-0000-0000-000000000000"}},
			},
		}
		s.Status.Summary = "20/20"
		s.Status.Containerd = &v1alpha1.RuntimeInfo{Version: "v2.4.2", Snapshotter: "overlayfs", Platform: "linux/amd64"}
		for i := range 20 {
			e := entry(i)
			s.Status.Archives = append(s.Status.Archives, e)
			if i < admitted {
				s.Spec.Admitted = append(s.Spec.Admitted, v1alpha1.Admission{
					Archive: e.Name, UID: e.UID, Generation: e.ObservedGeneration, Time: *condition.Timestamp(epoch), Expired: true,
				})
			}
		}
		fitTexts(&s.Status)
		return s
	}
	digest := "sha256:" + strings.Repeat("0", 64)
	ready := object(func(i int) v1alpha1.ArchiveState {
		e := failing(i, "", false)
		e.LastError, e.Digest, e.IndexDigest, e.Size, e.ImageCount, e.CompletionTime = nil, digest, digest, 1<<40, 4096, condition.Timestamp(epoch)
		e.Conditions = condition.Merge(nil, 1000, epoch, condition.New("Ready", "True", v1alpha1.ReasonImported, "4,096 images complete"))
		return e
	}, 0)
	if n := jsonLen(t, ready); n > maxObject {
		t.Errorf("20 archives that are ready: %d bytes", n)
	}
	for name, text := range longTexts {
		for _, terminal := range []bool{false, true} {
			for _, admitted := range []int{0, 10} {
				s := object(func(i int) v1alpha1.ArchiveState { return failing(i, text, terminal) }, admitted)
				n := jsonLen(t, s)
				t.Logf("%s, terminal %v, %d admitted: %d bytes", name, terminal, admitted, n)
				if n > maxObject {
					t.Errorf("20 archives that fail, %s, terminal %v, %d admitted: %d bytes", name, terminal, admitted, n)
				}
			}
		}
	}
}

// One failure among archives that are ready says all that it has to say.
func TestFitTextsLeavesWhatFits(t *testing.T) {
	s := &v1alpha1.NodeImageStateStatus{Archives: []v1alpha1.ArchiveState{failing(0, longTexts["plain"], true), failing(1, "short", true)}}
	fitTexts(s)
	if n := len(s.Archives[0].LastError.Message); n < condition.MaxText-3 || s.Archives[1].LastError.Message != "short" {
		t.Errorf("%d bytes are left", n)
	}
}

func TestReportsFit(t *testing.T) {
	var archives []*v1alpha1.ImageArchive
	for i := range 20 {
		archives = append(archives, newArchive(longName("archive", i), 0))
	}
	b := newBench(t, archives...)
	for _, rec := range b.records {
		rec.failure = &failure{ImportError: v1alpha1.ImportError{Reason: "Truncated", Message: longTexts["plain"][:condition.MaxText]}, terminal: true}
	}
	s := b.status(nil, b.now)
	if n := jsonLen(t, s); n > maxStateSize {
		t.Errorf("%d bytes", n)
	}
	if c := compare(s, b.status(nil, b.now.Add(time.Hour))); c != noChange {
		t.Error("the same again is another report")
	}
}
