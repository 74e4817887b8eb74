package node

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/tarlift/tarlift/api/v1alpha1"
)

// archivesOf are archives of which the first is the oldest.
func archivesOf(names ...string) (list []*v1alpha1.ImageArchive) {
	for i, name := range names {
		list = append(list, newArchive(name, time.Duration(len(names)-i)*time.Hour))
	}
	return list
}

func numbered(prefix string, n int) (names []string) {
	for i := range n {
		names = append(names, fmt.Sprintf("%s-%d", prefix, i))
	}
	return names
}

func TestOldestFirst(t *testing.T) {
	on(t, func(t *testing.T) {
		r := newRig(t, archivesOf(numbered("a", 2*poolSlots)...)...)
		r.run(500 * time.Millisecond)
		for i := range 2 * poolSlots {
			r.expect(fmt.Sprintf("a-%d", i), map[bool]string{true: importsIt, false: pending}[i < poolSlots])
		}
		r.run(2 * time.Second)
		r.expect(fmt.Sprintf("a-%d", 2*poolSlots-1), "ready")
	})
}

// Imports that get nothing give their slots to others, however many they are, and go on later.
func TestStalledImportsHoldUpNoOther(t *testing.T) {
	for _, test := range []struct {
		why     string
		stalled []string
		within  time.Duration
	}{
		{"eight that stall for ever", numbered("silent", 8), 2 * time.Minute},
		{"two that trickle", numbered("trickle", 2), 5 * time.Second},
		{"eight that trickle", numbered("trickle", 8), 2 * time.Minute},
	} {
		on(t, func(t *testing.T) {
			r := newRig(t, archivesOf(append(test.stalled, "ninth")...)...)
			r.run(test.within)
			r.expect("ninth", "ready")
			if t.Failed() {
				t.Fatal(test.why)
			}
			// Also later, when those that stall have been cancelled as often as they may be.
			r.run(2 * time.Hour)
			r.see(newArchive("tenth", 0))
			r.run(test.within)
			r.expect("tenth", "ready")
		})
	}
}

// What makes progress keeps its slot: reading, and whatever does not wait for the source.
func TestImportsWithProgressKeepTheirSlots(t *testing.T) {
	on(t, func(t *testing.T) {
		r := newRig(t, archivesOf("slow-0", "slow-1", "unpack-0", "unpack-1", "waits")...)
		r.run(50 * time.Minute)
		r.expect("waits", pending)
		for _, name := range []string{"slow-0", "slow-1", "unpack-0", "unpack-1"} {
			r.expect(name, importsIt)
			if e := r.entry(name); e.Attempts != 1 {
				t.Errorf("%s: %d attempts", name, e.Attempts)
			}
		}
		r.run(15 * time.Minute)
		r.expect("waits", "ready")
	})
}

// While nobody waits, nothing is cancelled: it is for whoever reads the source to give up.
func TestNothingYieldsToNobody(t *testing.T) {
	on(t, func(t *testing.T) {
		r := newRig(t, archivesOf(numbered("silent", poolSlots)...)...)
		r.run(50 * time.Minute)
		for _, name := range numbered("silent", poolSlots) {
			if e := r.entry(name); e.Attempts != 1 {
				t.Errorf("%s: %d attempts", name, e.Attempts)
			}
		}
	})
}

// A job that was cancelled twice runs to its end, since a stream begins anew each time.
func TestYieldsAreBounded(t *testing.T) {
	on(t, func(t *testing.T) {
		names := numbered("trickle", 3*poolSlots)
		r := newRig(t, archivesOf(names...)...)
		r.run(24 * time.Hour)
		ended := 0
		for _, name := range names {
			e := r.entry(name)
			if e.Ready {
				ended++
			}
			if e.Attempts > maxYields+1 {
				t.Errorf("%s: %d attempts", name, e.Attempts)
			}
		}
		if ended < len(names)/2 {
			t.Errorf("%d of %d ended in a day, though each takes an hour", ended, len(names))
		}
	})
}

// Jobs that wait or run end with the process, and none begins after.
func TestPoolEnds(t *testing.T) {
	on(t, func(t *testing.T) {
		r := newRig(t, archivesOf(numbered("silent", 2*poolSlots)...)...)
		r.run(time.Second)
		calls := len(r.f.taken())
		if calls != 3*poolSlots {
			t.Errorf("%d calls", calls)
		}
		if n := testutil.ToFloat64(r.metrics.inProgress); n != poolSlots {
			t.Errorf("%v imports in progress", n)
		}
	}) // and the cleanup waits for them
}

// What imports read and write is counted by how they end.
func TestImportsAreCounted(t *testing.T) {
	on(t, func(t *testing.T) {
		r := newRig(t, archivesOf("a", "bad")...)
		r.f.fail["bad"] = errBroken
		r.run(time.Minute)
		synctest.Wait()
		m := r.metrics
		got := []float64{
			testutil.ToFloat64(m.imports.WithLabelValues("Imported")), testutil.ToFloat64(m.imports.WithLabelValues("ArchiveInvalid")),
			testutil.ToFloat64(m.written), testutil.ToFloat64(m.skipped), testutil.ToFloat64(m.inProgress),
		}
		if want := []float64{1, 1, 60, 40, 0}; !slices.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
		if testutil.ToFloat64(m.read) == 0 || testutil.CollectAndCount(m.phases) == 0 {
			t.Error("bytes read or phases are not counted")
		}
	})
}

// Which Events what happens to an archive is worth: a failure like the one before is none.
func TestEventsOfAnArchive(t *testing.T) {
	on(t, func(t *testing.T) {
		r := newRig(t, newArchive("a", 0))
		texts := func() (list []string) {
			for _, v := range r.events.queue {
				list = append(list, v.Type+" "+v.Reason+" "+strings.TrimPrefix(v.Note, "a: "))
			}
			r.events.queue = nil
			return list
		}
		expect := func(want ...string) {
			t.Helper()
			if got := texts(); !slices.Equal(got, want) {
				t.Errorf("Events %q, want %q", got, want)
			}
		}
		r.f.fail["a"] = errUnreachable
		r.run(30 * time.Second)
		expect("Warning SourceUnavailable get: source unavailable")
		r.f.set(func() { r.f.fail["a"] = errors.New("odd") })
		r.run(2 * time.Minute)
		expect("Warning ImportFailed odd")
		r.f.set(func() { delete(r.f.fail, "a") })
		r.run(10 * time.Minute)
		expect("Normal Imported 2 images imported in 1s: 70B read, 60B written, 40B skipped")
		r.f.set(func() { r.f.missing["a"], r.f.repairs = notPinned, true })
		r.invalidateImage("docker.io/library/a:1")
		r.run(time.Minute)
		expect("Warning Drifted "+notPinned, "Normal Healed 1 name repaired, nothing read")
		if n := testutil.ToFloat64(r.metrics.heals.WithLabelValues(healedByRepair)); n != 1 {
			t.Errorf("%v heals", n)
		}
	})
}
