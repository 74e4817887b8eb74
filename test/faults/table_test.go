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
	// dirty and mixed count what the kills did, before anything was done about it: leases or ingests left, and some names as
	// before while others were as after, which is allowed.
	dirty, mixed int
	// acknowledged are imports that had ended well before; lost are those of them that are not there.
	acknowledged, lost int
	// incomplete are names that point to an image with a blob or a snapshot missing, or damaged: right after the kill, and
	// after the next attempts.
	incomplete int
	// forbidden are names in none of the states that are allowed: after a kill as before or as after, in any mixture, and after
	// the next attempt as after.
	forbidden int
	// foreign counts kills after which something of somebody else's had changed.
	foreign int
	// leftovers counts attempts that left a lease of their own, and states that are not exactly the right one when the leases
	// of killed processes are gone: an ingest, a blob or a snapshot too many or too few.
	leftovers int
	// failed counts next attempts that failed.
	failed int
	// again are bytes of layers that a next attempt read although they were there.
	again int64
	// slowest is the longest of the next attempts.
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
	fmt.Fprintln(w, "scenario\tkills\tleft by them\tincomplete names\tlost after acknowledgement\tforeign changes\t"+
		"names in no allowed state\t"+
		"leftovers outside leases\tfailed next attempts\tbytes moved again\tslowest attempt\ttook\tcontrol")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%d\t%d dirty, %d mixed\t%d\t%d of %d\t%d\t%d\t%d\t%d\t%d\t%.2f s\t%.0f s\t%s\n",
			r.scenario, r.kills, r.dirty, r.mixed, r.incomplete, r.lost, r.acknowledged, r.foreign, r.forbidden,
			r.leftovers, r.failed, r.again, r.slowest.Seconds(), r.took.Seconds(), r.control)
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
	r.complain(t, crash, format, args...)
}

// complain tells the test.
func (r *row) complain(t *testing.T, crash fmt.Stringer, format string, args ...any) {
	t.Helper()
	if total := r.lost + r.incomplete + r.forbidden + r.foreign + r.leftovers + r.failed; total <= complaints {
		t.Errorf("%s, killed at %s: %s", r.scenario, crash, fmt.Sprintf(format, args...))
	} else {
		t.Fail()
	}
}

// slowAttempt is worth a line. On an idle machine an attempt takes a fraction of a second.
const slowAttempt = 5 * time.Second

// timed notes how long a next attempt took.
func (r *row) timed(t *testing.T, crash fmt.Stringer, took time.Duration) {
	t.Helper()
	r.slowest = max(r.slowest, took)
	if took > slowAttempt {
		t.Logf("killed at %s: the next attempt took %s", crash, took)
	}
}
