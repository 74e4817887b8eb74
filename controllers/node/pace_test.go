package node

import (
	"strings"
	"testing"
	"time"

	"github.com/tarlift/tarlift/internal/importer"
)

func TestPulse(t *testing.T) {
	type look struct {
		at       time.Duration
		phase    importer.Phase
		read     int64
		unpacked int64
	}
	const indexing, transferring = importer.PhaseIndexing, importer.PhaseTransferring
	for _, test := range []struct {
		why   string
		looks []look
		want  time.Duration // of the last progress
	}{
		{"its server does not answer", []look{{2 * time.Second, indexing, 0, 0}, {4 * time.Second, indexing, 0, 0}}, 0},
		{"bytes come", []look{{2 * time.Second, transferring, 1 << 20, 0}, {4 * time.Second, transferring, 2 << 20, 0}}, 4 * time.Second},
		{"they come no more", []look{{2 * time.Second, transferring, 1 << 20, 0}, {4 * time.Second, transferring, 1 << 20, 0}}, 2 * time.Second},
		{"a trickle", []look{{2 * time.Second, transferring, 1000, 0}, {4 * time.Second, transferring, 2000, 0}}, 0},
		{"a little at a time becomes enough", []look{{2 * time.Second, transferring, 3000, 0}, {4 * time.Second, transferring, 6000, 0}}, 4 * time.Second},
		{"nobody looked for long", []look{{time.Hour, transferring, 1 << 20, 0}}, time.Hour},
		{"layers are unpacked while the next is waited for", []look{{2 * time.Second, transferring, 0, 1 << 20}}, 2 * time.Second},
		{"what is unpacked at the end needs no bytes", []look{{2 * time.Second, importer.PhaseUnpacking, 0, 0}}, 2 * time.Second},
	} {
		p := pulse{at: epoch}
		for _, l := range test.looks {
			p.look(epoch.Add(l.at), importer.Progress{Phase: l.phase, Unpacked: l.unpacked}, l.read)
		}
		if got := p.at.Sub(epoch); got != test.want {
			t.Errorf("%s: %s, want %s", test.why, got, test.want)
		}
	}
}

// Which imports begin, beside those that run, of archives that were found absent, oldest first.
func TestPlaces(t *testing.T) {
	names := []string{"a", "b", "c", "d"}
	for _, test := range []struct {
		why     string
		limits  limits
		stalled string // archives whose imports stall as soon as they have begun
		suspect string
		want    []string
	}{
		{"two make progress", defaultLimits, "", "", []string{"import a", "import b", "wait 5s"}},
		{"a stalled one does not count", defaultLimits, "a", "", []string{"import a", "import b", "import c", "wait 5s"}},
		{"nor do two", defaultLimits, "ab", "", []string{"import a", "import b", "import c", "import d", "wait 0s"}},
		{"they do count in all", limits{2, 3, 1}, "abc", "", []string{"import a", "import b", "import c", "wait 0s"}},
		{"one at a time", limits{1, 1, 1}, "a", "", []string{"import a", "wait 0s"}},
		{"one that may kill the agent lets others pass", defaultLimits, "", "b", []string{"import a", "import c", "wait 5s"}},
		{"what begins beside it does so knowing nothing of it", defaultLimits, "", "a", []string{"import a", "import b", "wait 5s"}},
		{"it need not wait for stalled ones", defaultLimits, "a", "b", []string{"import a", "import b", "import c", "wait 5s"}},
		{"two of them run one after the other", defaultLimits, "", "abcd", []string{"import a", "wait 5s"}},
	} {
		b := newBench(t)
		b.limits = test.limits
		for i, name := range names {
			b.archives = append(b.archives, newArchive(name, time.Duration(len(names)-i)*time.Hour))
		}
		b.see(b.archives...)
		for _, name := range names {
			b.expect("check " + name)
			b.end(absent)
			b.records[newArchive(name, 0).UID].suspect = strings.Contains(test.suspect, name)
		}
		for _, want := range test.want {
			start := b.expect(want)
			if start != nil && strings.Contains(test.stalled, start.owner.Name) {
				b.at(start.owner.Name).moved = b.now.Add(-stallTime)
			}
			if t.Failed() {
				t.Fatal(test.why)
			}
		}
	}
}

// A place becomes free when an import stalls, not only when one ends.
func TestStallFreesAPlace(t *testing.T) {
	b := newBench(t, newArchive("a", 3*time.Hour), newArchive("b", 2*time.Hour), newArchive("c", time.Hour))
	for _, name := range []string{"a", "b", "c"} {
		b.expect("check " + name)
		b.end(absent)
	}
	b.expect("import a")
	b.pass(2 * time.Second)
	b.expect("import b")
	b.expect("wait 3s")
	b.pass(2 * time.Second)
	b.at("a").moved = b.now
	b.expect("wait 3s") // b is the first that can stall now
	b.pass(3 * time.Second)
	b.expect("import c")
	for _, name := range []string{"a", "b", "c"} {
		b.wantState(name, "Ready=False/Importing Reconciling=True/Importing")
	}
	b.expect("wait 0s")
	b.at("b").moved = b.now // three make progress now, and none is sent away
	b.expect("wait 0s")
}

// What asks containerd does not wait for imports, unless it is about the same archive.
func TestQuestionsBesideImports(t *testing.T) {
	a, b1, gone := newArchive("a", time.Hour), newArchive("b", 0), newArchive("gone", 0)
	b := newBench(t, a, gone)
	b.expect("check a")
	b.end(absent)
	b.expect("check gone")
	b.end(absent)
	b.expect("import a")
	b.expect("import gone")

	b.see(withRequest(a, "now"), b1)
	b.expect("stop gone")
	b.expect("check b")
	b.expect("wait 0s") // one question at a time
	b.end(absent)
	b.expect("import b")
	b.expect("wait 0s") // a's check and the sweep wait for the jobs of their archives
	b.endOf("gone", outcome{stopped: true})
	b.expect("sweep")
	b.end(absent)
	b.endOf("a", unreachable)
	b.expect("check a")
	b.wantState("b", "Ready=False/Importing Reconciling=True/Importing")
}

// Of several imports that run when the agent is killed, the one that kills it takes each of the others along once.
func TestPoisonBesideOthers(t *testing.T) {
	poison, innocent := newArchive("poison", time.Hour), newArchive("innocent", 0)
	b := newBench(t, poison, innocent)
	for _, name := range []string{"poison", "innocent"} {
		b.expect("check " + name)
		b.end(absent)
	}
	b.expect("import poison")
	b.expect("import innocent") // and the process dies

	b, _ = b.restart(poison, innocent)
	b.firstSweep()
	b.pass(2 * time.Second)
	for _, name := range []string{"poison", "innocent"} {
		b.expect("check " + name)
		b.end(absent)
	}
	b.expect("import poison")
	b.expect("wait 5s") // and it dies again

	b, _ = b.restart(poison, innocent)
	b.firstSweep()
	b.pass(2 * time.Second)
	b.expect("check innocent")
	b.end(absent)
	b.expect("import innocent")
	b.pass(2 * time.Second)
	b.at("innocent").moved = b.now
	b.expect("check poison")
	b.end(absent)
	b.expect("wait 5s")
	b.end(good)
	b.expect("import poison")
	b.end(unreachable) // which does not kill
	b.see(poison, innocent, newArchive("new", 0))
	b.expect("check new")
	b.end(absent)
	b.expect("import new")
	b.pass(time.Minute)
	b.at("new").moved = b.now
	b.expect("import poison")
}
