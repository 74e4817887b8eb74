package node

import (
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/tarlift/tarlift/internal/importer"
)

// limits are how many imports run at a time.
//
// They bound the memory of this process: each import has buffers of its own, twice 512 KiB for each of the at most four
// blobs that are on its way, up to 16 MiB of metadata while it reads an index, and of an archive that is compressed as a
// whole the window, at most 32 MiB and commonly 8 MiB. What only asks containerd has none worth counting.
type limits struct {
	moving int // those that make progress
	all    int // with those that stall
	probes int // looks at sources
}

// defaultLimits let two imports make progress: while one waits for its server, or for the disk to sync, the other uses
// what is idle, and more would only put off the oldest. Stalled ones cost next to nothing but memory; eight are more
// servers than are likely to hang at a time. So are four among those that are only asked, for half a minute at most.
var defaultLimits = limits{moving: 2, all: 8, probes: 4}

const (
	// stallTime is after how long without progress an import gives its place to another. A server that has to fetch or
	// to think first answers sooner. It does not end the import: that is for whoever reads the source to decide.
	stallTime = 5 * time.Second
	// stallBytes within that time are no progress: below 1 KiB/s no archive arrives, but a server that sends a byte now
	// and then would keep its place for days.
	stallBytes = 4 << 10
)

// pulse tells since when an import makes no progress. It is looked at as often as one likes.
type pulse struct {
	at    time.Time // of the last progress that was seen
	bytes int64     // then
}

// look takes in how far the import is. Only what waits for its source can stall; bytes that are unpacked while it does
// are progress.
func (p *pulse) look(now time.Time, progress importer.Progress, read int64) {
	reads := progress.Phase == importer.PhaseIndexing || progress.Phase == importer.PhaseTransferring
	if bytes := read + progress.Unpacked; !reads || bytes-p.bytes >= stallBytes {
		*p = pulse{now, bytes}
	}
}

// stalls says whether an import that runs has lost its place to others. One that was told to end moves nothing any more.
func (r activity) stalls(now time.Time) bool {
	return r.stopping || now.Sub(r.moved) >= stallTime
}

// turn is one look for what is to be done next.
type turn struct {
	now     time.Time
	wait    time.Duration      // until something else will be due, 0 for not known
	busy    map[types.UID]bool // archives that the worker is at
	asking  bool               // it asks containerd something
	probes  int                // sources that it asks
	imports int                // that run
	moving  int                // those of them that make progress
	stall   time.Duration      // until the first of these stalls, unless it moves on
}

func newTurn(running []activity, now time.Time) *turn {
	t := &turn{now: now, busy: map[types.UID]bool{}}
	for _, r := range running {
		t.busy[r.uid] = true
		switch r.kind {
		default:
			t.asking = true
		case jobProbe:
			t.probes++
		case jobImport:
			t.imports++
			if !r.stalls(now) {
				t.moving++
				t.stall = sooner(t.stall, r.moved.Add(stallTime).Sub(now))
			}
		}
	}
	return t
}

// due says whether something may be tried, and else remembers when it may.
func (t *turn) due(at attempt) bool {
	d := at.notBefore.Sub(t.now)
	if d > 0 {
		t.wait = sooner(t.wait, d)
	}
	return d <= 0
}

// reached is due for a time that may be zero, which is never.
func (t *turn) reached(at time.Time) bool { return !at.IsZero() && t.due(attempt{notBefore: at}) }
