package node

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/internal/source"
)

const (
	pending   = "Ready=False/Pending Reconciling=True/Pending"
	importsIt = "Ready=False/Importing Reconciling=True/Importing"
	stalls    = "Ready=False/ArchiveInvalid Stalled=True/ArchiveInvalid"
	notPinned = "docker.io/library/a:1 is not pinned"
)

var (
	errBroken      = fmt.Errorf("member 3: %w", archive.ErrInvalid)
	errUnreachable = fmt.Errorf("get: %w", source.ErrUnavailable)
	errDown        = fmt.Errorf("dial: %w", importer.ErrRuntimeUnavailable)
)

// on runs a test on synctest's clock.
func on(t *testing.T, f func(t *testing.T)) { t.Helper(); synctest.Test(t, f) }

func TestImport(t *testing.T) {
	on(t, func(t *testing.T) {
		r := newRig(t, newArchive("a", 0))
		r.run(500 * time.Millisecond)
		r.expect("a", importsIt)
		if e := r.entry("a"); e.Attempts != 1 || e.StartTime == nil || *e.Bytes != (v1alpha1.ArchiveBytes{Total: 100, Done: 30, Skipped: 10}) {
			t.Errorf("entry %+v", e)
		}
		r.run(time.Second)
		r.expect("a", "ready")
		r.did("check a", "import a")
		e := r.entry("a")
		if e.IndexDigest != digest1 || e.Size != 100 || e.ImageCount != 2 || e.CompletionTime == nil || len(e.Images) != 2 ||
			e.Bytes != nil || e.Attempts != 1 || len(e.Conditions) > 0 {
			t.Errorf("entry %+v", e)
		}
		r.run(time.Minute)
		r.did()
	})
}

// What containerd has is not imported: the source may be gone.
func TestDoneIsDone(t *testing.T) {
	on(t, func(t *testing.T) {
		a := newArchive("a", 0)
		r := newRig(t, a)
		r.f.have[key(ownerOf(a))] = imported
		r.run(time.Minute)
		r.expect("a", "ready")
		r.did("check a")
	})
}

func TestNewSpecReplacesTheImport(t *testing.T) {
	on(t, func(t *testing.T) {
		a := newArchive("a", 0)
		a.Spec.Source.File.Path = "slow.tar"
		r := newRig(t, a)
		r.f.fail["a"] = errUnreachable
		r.run(time.Millisecond)
		r.expect("a", importsIt)
		r.f.set(func() { delete(r.f.fail, "a") })
		r.see(edited(a, func(a *v1alpha1.ImageArchive) { a.Spec.IndexDigest = digest1 }))
		r.run(10 * time.Second)
		r.did("check a", "import a", "release uid-a", "check a", "import a")
		if e := r.entry("a"); !e.Ready || e.ObservedGeneration != 2 {
			t.Errorf("entry %+v", e)
		}
	})
}

// A deletion policy that changes while an import runs is recorded with its names by the sweep that it asks for.
func TestPolicyChangesDuringAnImport(t *testing.T) {
	on(t, func(t *testing.T) {
		a := newArchive("a", 0)
		r := newRig(t, a)
		r.run(time.Millisecond)
		r.see(edited(a, func(a *v1alpha1.ImageArchive) { a.Spec.DeletionPolicy = v1alpha1.DeletionDelete }))
		r.run(time.Minute)
		r.did("check a", "import a")
		if r.sweeps != 1 {
			t.Errorf("asked for %d sweeps", r.sweeps)
		}
	})
}

// What is no other import lets the one that runs go on.
func TestOtherSelectorKeepsTheImport(t *testing.T) {
	on(t, func(t *testing.T) {
		a := newArchive("a", 0)
		r := newRig(t, a)
		r.run(time.Millisecond)
		r.see(edited(a, func(a *v1alpha1.ImageArchive) { a.Spec.NodeSelector = &metav1.LabelSelector{} }))
		r.run(time.Minute)
		r.did("check a", "import a")
		if e := r.entry("a"); !e.Ready || e.ObservedGeneration != 2 {
			t.Errorf("entry %+v", e)
		}
	})
}

func TestRemoveStopsTheImport(t *testing.T) {
	on(t, func(t *testing.T) {
		r := newRig(t, newArchive("slow", 0))
		r.run(time.Second)
		delete(r.wants, "slow")
		if r.remove("slow") {
			t.Fatal("removed, though its import runs")
		}
		synctest.Wait()
		if name := <-r.wakes; name != "slow" || !r.remove("slow") || len(r.states) > 0 {
			t.Errorf("%q woke; %d states", name, len(r.states))
		}
	})
}

func TestSuspend(t *testing.T) {
	on(t, func(t *testing.T) {
		a := newArchive("slow", 0)
		r := newRig(t, a)
		r.run(time.Second)
		r.see(edited(a, func(a *v1alpha1.ImageArchive) { a.Spec.Suspend = true }))
		r.run(time.Minute)
		r.expect("slow", "Ready=False/Suspended")
		r.did("check slow", "import slow") // and nothing is released: it continues later
		r.see(a)
		r.run(time.Second)
		r.did("import slow")
		if e := r.entry("slow"); e.Attempts != 2 {
			t.Errorf("%d attempts", e.Attempts)
		}
	})
}

// A failed import is tried again after waits that grow, and says when.
func TestRetry(t *testing.T) {
	on(t, func(t *testing.T) {
		r := newRig(t, newArchive("a", 0))
		r.f.fail["a"] = errUnreachable
		r.run(1100 * time.Millisecond)
		r.expect("a", "Ready=False/SourceUnavailable Reconciling=True/Pending")
		e := r.entry("a")
		if e.NextAttemptTime == nil || e.LastError == nil || e.LastError.Reason != "SourceUnavailable" || e.Attempts != 1 {
			t.Errorf("entry %+v", e)
		}
		if want := fmt.Sprintf("retry at %s, attempt 2", e.NextAttemptTime.UTC().Format("15:04:05Z")); e.Conditions[1].Message != want {
			t.Errorf("%q, want %q", e.Conditions[1].Message, want)
		}
		r.run(time.Hour)
		if n := r.entry("a").Attempts; n < 14 || n > 22 { // 2, 4, … 256 s, and then five minutes each
			t.Errorf("%d attempts in an hour", n)
		}
		r.f.set(func() { delete(r.f.fail, "a") })
		r.run(10 * time.Minute)
		r.expect("a", "ready")
		if e := r.entry("a"); e.LastError != nil || e.NextAttemptTime != nil {
			t.Errorf("entry %+v", e)
		}
	})
}

func TestStalled(t *testing.T) {
	on(t, func(t *testing.T) {
		a := newArchive("a", 0)
		r := newRig(t, a)
		r.f.fail["a"] = errBroken
		r.run(5 * time.Minute)
		r.expect("a", stalls)
		r.did("check a", "import a", "release uid-a")
		if m := r.entry("a").Conditions[1].Message; !strings.Contains(m, "retried every 10 minutes") || !strings.Contains(m, "kubectl annotate") {
			t.Errorf("%q does not say when it is retried", m)
		}
		r.run(10 * time.Minute)
		r.did("import a", "release uid-a")
		r.see(requested(a, "now"))
		r.run(time.Minute)
		r.did("check a", "import a", "release uid-a")
		r.f.set(func() { delete(r.f.fail, "a") })
		r.see(edited(requested(a, "now"), func(a *v1alpha1.ImageArchive) { a.Spec.DeletionPolicy = v1alpha1.DeletionDelete }))
		r.run(time.Minute)
		r.expect("a", "ready")
	})
}

// Attempts that transfer all that fits, again and again, would wear the disk and the network.
func TestFullDiskIsNotTriedAllTheTime(t *testing.T) {
	on(t, func(t *testing.T) {
		r := newRig(t, newArchive("a", 0))
		r.f.fail["a"] = fmt.Errorf("write: %w", importer.ErrInsufficientDisk)
		r.run(11 * time.Minute)
		r.expect("a", "Ready=False/InsufficientDisk Reconciling=True/Pending")
		r.did("check a", "import a")
	})
}

// A containerd that is away is asked every 15 s. What was imported before stays ready.
func TestRuntimeUnavailable(t *testing.T) {
	on(t, func(t *testing.T) {
		a, done := newArchive("a", 0), newArchive("done", 0)
		r := newRig(t, a, done)
		r.f.have[key(ownerOf(done))] = imported
		r.f.down = errDown
		r.restored["done"] = &v1alpha1.ArchiveState{Name: "done", UID: done.UID, ObservedGeneration: 1, Ready: true, IndexDigest: digest1}
		r.run(10 * time.Minute)
		r.expect("a", "Ready=False/RuntimeUnavailable Reconciling=True/Pending")
		r.expect("done", "ready")
		if n := r.entry("a").Attempts; n != 0 {
			t.Errorf("%d attempts: asking is none", n)
		}
		r.f.set(func() { r.f.down = nil })
		r.run(17 * time.Second)
		r.expect("a", "ready")
		r.expect("done", "ready")
	})
}

// A containerd that ends with each import is not ended again at once.
func TestImportThatEndsContainerd(t *testing.T) {
	on(t, func(t *testing.T) {
		r := newRig(t, newArchive("a", 0))
		r.f.fail["a"] = errDown
		r.run(10 * time.Minute)
		if n := r.entry("a").Attempts; n < 20 || n > 60 {
			t.Errorf("%d attempts in ten minutes", n)
		}
	})
}

// A call that containerd does not answer is as good as a containerd that is away, and holds nothing up for ever.
func TestHungContainerd(t *testing.T) {
	for _, call := range []string{"check", "release"} {
		on(t, func(t *testing.T) {
			r := newRig(t, newArchive("a", 0))
			r.f.fail["a"], r.f.hang = errBroken, call
			r.run(2*workTimeout + time.Minute)
			want := map[string]string{"check": "Ready=False/RuntimeUnavailable Reconciling=True/Pending", "release": stalls}[call]
			r.expect("a", want)
		})
	}
}

// A request is answered by a check that begins after it.
func TestRequestDuringAnImport(t *testing.T) {
	on(t, func(t *testing.T) {
		a := newArchive("a", 0)
		r := newRig(t, a)
		r.run(time.Millisecond)
		r.see(requested(a, "now"))
		r.run(time.Minute)
		r.did("check a", "import a", "check a")
	})
}

// A restart with everything done reports the same, also before containerd answers.
func TestRestart(t *testing.T) {
	on(t, func(t *testing.T) {
		a, bad := newArchive("a", 0), newArchive("bad", 0)
		r := newRig(t, a, bad)
		r.f.fail["bad"] = errBroken
		r.run(time.Minute)
		written, _, _ := r.report("v1", nil, time.Now())
		again := newRig(t, a, bad)
		again.f.have, again.f.fail = r.f.have, r.f.fail
		for i := range written.Archives {
			again.restored[written.Archives[i].Name] = &written.Archives[i]
		}
		again.run(time.Minute)
		now, _, _ := again.report("v1", nil, time.Now())
		if c := compare(written, now, time.Hour, 0); c == stateChange {
			t.Errorf("would write %+v, was %+v", now, written)
		}
	})
}

// An archive that was being imported when the agent ended waits before its next attempt: it may have ended the agent.
func TestRestartAfterAnAttempt(t *testing.T) {
	on(t, func(t *testing.T) {
		a := newArchive("a", 0)
		r := newRig(t, a)
		r.restored["a"] = &v1alpha1.ArchiveState{Name: "a", UID: a.UID, ObservedGeneration: 1, Attempts: 5}
		r.run(16 * time.Second)
		if got := r.f.taken(); slices.Contains(got, "import a") {
			t.Errorf("did %q at once", got)
		}
		r.run(20 * time.Second)
		r.expect("a", "ready")
	})
}

func (r *rig) invalidateImage(name string) {
	r.invalidate(changes{names: map[string]time.Time{name: time.Now()}})
}

// What needs no source is repaired at once, and the rest is imported again.
func TestDrift(t *testing.T) {
	for _, test := range []struct {
		why     string
		repairs bool
		ignore  bool
		did     []string
		want    string
	}{
		{"a label", true, false, []string{"check a", "repair a", "check a"}, "ready"},
		{"a blob", false, false, []string{"check a", "repair a", "check a", "import a"}, "ready"},
		{"ignored", false, true, []string{"check a"}, "Ready=False/Drifted Stalled=True/Drifted"},
	} {
		on(t, func(t *testing.T) {
			a := newArchive("a", 0)
			if test.ignore {
				a.Spec.DriftPolicy = v1alpha1.DriftIgnore
			}
			r := newRig(t, a)
			r.run(time.Minute)
			r.f.taken()
			r.f.set(func() { r.f.missing["a"], r.f.repairs = notPinned, test.repairs })
			r.invalidateImage("docker.io/library/other:1")
			r.run(time.Second)
			r.did()
			r.invalidateImage("docker.io/library/b:1")
			r.run(time.Minute)
			r.did(test.did...)
			r.expect("a", test.want)
			if t.Failed() {
				t.Fatal(test.why)
			}
		})
	}
}

// What is missing stays visible while the source is away.
func TestDriftWithoutSource(t *testing.T) {
	on(t, func(t *testing.T) {
		r := newRig(t, newArchive("a", 0))
		r.run(time.Minute)
		r.f.set(func() { r.f.missing["a"], r.f.fail["a"] = notPinned, errUnreachable })
		r.invalidateImage("")
		r.run(10 * time.Second)
		r.expect("a", "Ready=False/Drifted Reconciling=True/Pending")
		if m := r.entry("a").Conditions[0].Message; m != notPinned+missingDetail+"get: source unavailable" {
			t.Errorf("message %q", m)
		}
		r.f.set(func() { r.f.fail["a"] = errBroken })
		r.run(time.Minute)
		r.expect("a", "Ready=False/Drifted Stalled=True/ArchiveInvalid")
		r.f.set(func() { delete(r.f.missing, "a") })
		r.run(15 * time.Minute) // somebody has repaired it
		r.expect("a", "ready")
	})
}

// Somebody who removes what is repaired, again and again, is answered more slowly, but within a minute.
func TestRelapses(t *testing.T) {
	on(t, func(t *testing.T) {
		r := newRig(t, newArchive("a", 0))
		r.run(time.Minute)
		for i, least := range []time.Duration{0, time.Second, 3 * time.Second, 7 * time.Second, 15 * time.Second, 29 * time.Second, 29 * time.Second} {
			r.f.set(func() { r.f.missing["a"], r.f.repairs = notPinned, true })
			r.invalidateImage("docker.io/library/a:1")
			r.run(least)
			if got := r.entry("a").Ready; got && i > 0 {
				t.Errorf("loss %d was repaired within %s", i, least)
			}
			r.run(31*time.Second - least)
			r.expect("a", "ready")
		}
	})
}

// A lost blob brings no event: all is checked now and then.
func TestCheckInterval(t *testing.T) {
	on(t, func(t *testing.T) {
		r := newRig(t, newArchive("a", 0))
		r.run(time.Minute)
		r.f.taken()
		r.f.set(func() { r.f.missing["a"] = notPinned })
		r.run(7 * time.Minute)
		r.did()
		r.run(6 * time.Minute)
		if got := r.f.taken(); !slices.Contains(got, "import a") {
			t.Errorf("did %q", got)
		}
	})
}

// What stalls for a name that somebody else has is tried as soon as that name changes.
func TestConflictEnds(t *testing.T) {
	on(t, func(t *testing.T) {
		r := newRig(t, newArchive("a", 0))
		r.f.fail["a"] = fmt.Errorf("name %q stands for something else: %w", "docker.io/library/x:1", importer.ErrNameConflict)
		r.run(time.Minute)
		r.expect("a", "Ready=False/NameConflict Stalled=True/NameConflict")
		r.f.set(func() { delete(r.f.fail, "a") })
		r.invalidateImage("docker.io/library/x:11")
		r.run(time.Second)
		r.expect("a", "Ready=False/NameConflict Stalled=True/NameConflict")
		r.invalidateImage("docker.io/library/x:1")
		r.run(2 * time.Second)
		r.expect("a", "ready")
	})
}

// Names that the kubelet does not find make the node not ready, until it finds them.
func TestNotVisible(t *testing.T) {
	on(t, func(t *testing.T) {
		a := newArchive("a", 0)
		r := newRig(t, a)
		r.f.result.NotVisible = []string{"docker.io/library/a:1"}
		r.run(10 * time.Second)
		r.expect("a", "Ready=False/NotVisible Reconciling=True/Pending")
		if m := r.entry("a").Conditions[0].Message; !strings.Contains(m, "docker.io/library/a:1") || !strings.Contains(m, "agent doctor") {
			t.Errorf("message %q", m)
		}
		r.f.set(func() { r.f.have[key(ownerOf(a))] = imported })
		r.run(2 * time.Minute)
		r.expect("a", "ready")
		r.did("check a", "import a", "check a")
	})
}

func withInterval(d time.Duration) func(*v1alpha1.ImageArchive) {
	return func(a *v1alpha1.ImageArchive) { a.Spec.Interval = &metav1.Duration{Duration: d} }
}

// A source that has another archive than what was imported is imported anew; one that cannot be asked says nothing.
func TestInterval(t *testing.T) {
	on(t, func(t *testing.T) {
		a := newArchive("a", 0)
		withInterval(10 * time.Second)(a)
		r := newRig(t, a)
		var changed bool
		var fails error
		asked := 0
		r.changed = func(string) (bool, error) {
			asked++
			return changed, fails
		}
		r.run(time.Minute)
		if r.expect("a", "ready"); asked < 4 || asked > 6 {
			t.Errorf("asked %d times in a minute", asked)
		}
		fails = source.ErrNotFound
		r.run(time.Minute)
		r.expect("a", "ready")
		changed, fails = true, nil
		r.f.set(func() { r.f.result.IndexDigest = digest2 })
		r.run(14 * time.Second)
		changed = false
		r.run(2 * time.Second)
		if e := r.entry("a"); !e.Ready || e.IndexDigest != digest2 {
			t.Errorf("entry %+v", e)
		}
	})
}

func TestWhatIsNotProbed(t *testing.T) {
	for why, edit := range map[string]func(*v1alpha1.ImageArchive){
		"no interval":                       func(*v1alpha1.ImageArchive) {},
		"an interval of 0":                  withInterval(0),
		"a digest says what it must be":     func(a *v1alpha1.ImageArchive) { withInterval(time.Minute)(a); a.Spec.Digest = digest1 },
		"so does the digest of its index":   func(a *v1alpha1.ImageArchive) { withInterval(time.Minute)(a); a.Spec.IndexDigest = digest1 },
		"nothing is to be imported for now": func(a *v1alpha1.ImageArchive) { withInterval(time.Minute)(a); a.Spec.Suspend = true },
	} {
		on(t, func(t *testing.T) {
			a := newArchive("a", 0)
			edit(a)
			r := newRig(t, a)
			r.f.have[key(ownerOf(a))] = imported
			r.changed = func(string) (bool, error) {
				t.Errorf("asked, though %s", why)
				return false, nil
			}
			r.run(time.Hour)
		})
	}
}

// An import that needs a Secret waits for an API server that is away without a slot, and has not failed.
func TestSecretsWaitWithoutASlot(t *testing.T) {
	on(t, func(t *testing.T) {
		var archives []*v1alpha1.ImageArchive
		for i := range 2 * poolSlots {
			a := newArchive(fmt.Sprintf("secret-%d", i), time.Hour)
			a.Spec.Source = v1alpha1.Source{HTTP: &v1alpha1.HTTPSource{URL: "https://example.com/a.tar", SecretRef: &v1alpha1.SecretReference{Name: "s"}}}
			archives = append(archives, a)
		}
		r := newRig(t, append(archives, newArchive("other", 0))...)
		r.secrets = failingReader{err: errors.New("connection refused")}
		r.run(10 * time.Minute)
		r.expect("other", "ready")
		r.expect("secret-0", pending)
		if e := r.entry("secret-0"); e.Attempts != 0 || e.LastError != nil || !strings.Contains(e.Conditions[1].Message, "Secret") {
			t.Errorf("entry %+v", e)
		}
	})
}

// A node imports while it is admitted, and says under which admission it reports.
func TestAdmission(t *testing.T) {
	on(t, func(t *testing.T) {
		const waits = "Ready=False/WaitingForRollout Reconciling=True/WaitingForRollout"
		a := newArchive("slow", 0)
		a.Spec.Rollout = &v1alpha1.Rollout{}
		admission := func(at time.Duration) v1alpha1.Admission {
			return v1alpha1.Admission{Archive: a.Name, UID: a.UID, Generation: a.Generation, Time: metav1.NewTime(epoch.Add(at))}
		}
		r := newRig(t, a)
		r.run(time.Minute)
		r.expect("slow", waits)
		earlier, other := admission(0), admission(0)
		earlier.Generation, other.UID = 0, "other"
		for _, x := range []v1alpha1.Admission{earlier, other} {
			r.see(a, x)
			r.run(time.Minute)
			r.expect("slow", waits)
		}
		r.see(a, admission(0))
		r.run(time.Minute)
		r.expect("slow", importsIt)
		r.see(a) // withdrawn
		r.run(time.Minute)
		if e := r.entry("slow"); short(e) != waits || e.AdmittedTime != nil {
			t.Errorf("entry %+v", e)
		}
		r.f.set(func() { r.f.fail["slow"] = errBroken })
		r.see(a, admission(time.Minute))
		r.run(2 * time.Hour)
		if e := r.entry("slow"); short(e) != stalls || !e.AdmittedTime.Time.Equal(epoch.Add(time.Minute)) {
			t.Errorf("entry %+v", e)
		}
		// A stale failure is never reported under a newer admission.
		r.see(a, admission(time.Hour))
		r.run(time.Second)
		if e := r.entry("slow"); short(e) != importsIt || e.LastError != nil || !e.AdmittedTime.Time.Equal(epoch.Add(time.Hour)) {
			t.Errorf("entry %+v", e)
		}
	})
}
