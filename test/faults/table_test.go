package faults

import (
	"bytes"
	"fmt"
	"testing"
	"text/tabwriter"
	"time"
)

// row sums up a scenario.
type row struct {
	scenario string
	kills    int
	// dirty and torn count what the kills did, before anything was done about it: leases or ingests left, and names in part.
	dirty, torn int
	// acknowledged are imports that had ended well before; lost are those of them that are not there.
	acknowledged, lost int
	// incomplete are names that point to an image with a blob or a snapshot missing, or damaged: right after the kill, and
	// after the next attempts.
	incomplete int
	// partial counts next attempts after which an earlier attempt's names are there in part.
	partial int
	// foreign counts kills after which something of somebody else's had changed.
	foreign int
	// leftovers are leases, ingests, blobs and snapshots that nobody needs after a next attempt, or that are missing.
	leftovers int
	// failed counts next attempts that failed.
	failed int
	// slowest is the longest of the next attempts (or of Recover).
	slowest time.Duration
	control string // the same done to `ctr images import --local`
	began   time.Time
	took    time.Duration
}

// table has the rows of all tests, which run one after the other.
var table []*row

// newRow begins a scenario, which ends with the test.
func newRow(t *testing.T, scenario string) *row {
	t.Helper()
	r := &row{scenario: scenario, control: "-", began: time.Now()}
	table = append(table, r)
	t.Cleanup(func() {
		r.took = time.Since(r.began)
		if r.kills == 0 {
			t.Error("nothing was killed")
		}
	})
	return r
}

func formatTable(rows []*row) string {
	var out bytes.Buffer
	w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "scenario\tkills\tleft by them\tlost of acknowledged\tnames incomplete\tnames in part\tforeign changes\tleftovers\tfailed recoveries\tslowest recovery\ttook\tcontrol")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%d\t%d dirty, %d in part\t%d of %d\t%d\t%d\t%d\t%d\t%d\t%.2f s\t%.0f s\t%s\n", r.scenario, r.kills, r.dirty, r.torn, r.lost, r.acknowledged, r.incomplete, r.partial,
			r.foreign, r.leftovers, r.failed, r.slowest.Seconds(), r.took.Seconds(), r.control)
	}
	w.Flush()
	return out.String()
}

// complaints are how many of a row's faults are told one by one.
const complaints = 8

// blame counts a fault, and tells the test.
func (r *row) blame(t *testing.T, count *int, crash fmt.Stringer, format string, args ...any) {
	t.Helper()
	*count++
	if total := r.lost + r.incomplete + r.partial + r.foreign + r.leftovers + r.failed; total <= complaints {
		t.Errorf("%s, killed at %s: %s", r.scenario, crash, fmt.Sprintf(format, args...))
	} else {
		t.Fail()
	}
}

// slowRecovery is worth a line. On an idle machine a recovery takes a fraction of a second.
const slowRecovery = 5 * time.Second

// recovered notes how long a next attempt took.
func (r *row) recovered(t *testing.T, crash fmt.Stringer, took time.Duration) {
	t.Helper()
	r.slowest = max(r.slowest, took)
	if took > slowRecovery {
		t.Logf("killed at %s: the recovery took %s", crash, took)
	}
}
