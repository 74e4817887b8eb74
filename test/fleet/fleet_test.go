package main

import (
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/tarlift/tarlift/test/cluster"
)

func TestMain(m *testing.M) {
	if os.Getenv(workerEnv) != "" {
		os.Exit(workerMain())
	}
	cluster.Main(m)
}

func buildAgent(t *testing.T) string {
	t.Helper()
	agent := filepath.Join(t.TempDir(), "agent")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", agent, "../../cmd/agent").CombinedOutput(); err != nil {
		t.Fatalf("build the agent: %v\n%s", err, out)
	}
	return agent
}

// TestSmallFleet is `make bench-fleet` in little. It holds the fleet to counts and sizes, never to seconds.
func TestSmallFleet(t *testing.T) {
	agent := buildAgent(t)
	r, err := measure(t.Context(), options{
		nodes: 60, archives: 3, workers: 2, agent: agent, idle: 10 * time.Second, quiet: 5 * time.Second,
		rollout: 20, importTime: 500 * time.Millisecond, patience: 3 * time.Minute,
	}, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	if err := printTable(t.Output(), []result{r}); err != nil {
		t.Error(err)
	}
	if err := judge([]result{r}); err != nil {
		t.Error(err)
	}
	// A bound that nothing came near to may not have been measured at all.
	if r.concurrent < 1 || r.all.sent.Sent[writeStatus] < r.nodes || r.stateSize < 1<<10 || len(r.all.archives) != r.archives {
		t.Errorf("%v importing at a time, %d status writes, %v bytes of a NodeImageState, %d archives seen",
			r.concurrent, r.all.sent.Sent[writeStatus], r.stateSize, len(r.all.archives))
	}
}

func TestBusiest(t *testing.T) {
	for name, tt := range map[string]struct {
		seconds map[int64]int
		want    float64
	}{
		"none":             {nil, 0},
		"one second":       {map[int64]int{100: 50}, 5},
		"within a window":  {map[int64]int{100: 50, 109: 50}, 10},
		"beyond a window":  {map[int64]int{100: 50, 110: 70}, 7},
		"across the tens":  {map[int64]int{95: 10, 99: 10, 104: 10}, 3},
		"a window's bound": {map[int64]int{100: 10, 105: 10, 110: 20, 114: 10}, 4},
	} {
		if got := busiest(tt.seconds); got != tt.want {
			t.Errorf("%s: %v/s, want %v", name, got, tt.want)
		}
	}
}

// Writes of counts that come too early are found out, and those that tell of a change are not counted against it.
func TestExcess(t *testing.T) {
	at := func(seconds int, ready bool) archiveWrite {
		return archiveWrite{when: time.Unix(int64(seconds), 0), ready: ready}
	}
	for name, tt := range map[string]struct {
		writes []archiveWrite
		nodes  int
		want   int
	}{
		"none":                  {nil, 10, 0},
		"the first":             {[]archiveWrite{at(0, false)}, 10, 0},
		"ready at once":         {[]archiveWrite{at(0, false), at(1, true)}, 10, 0},
		"counts in time":        {[]archiveWrite{at(0, false), at(10, false), at(20, false), at(21, true)}, 10, 0},
		"counts too early":      {[]archiveWrite{at(0, false), at(5, false), at(9, false)}, 10, 2},
		"more nodes, more time": {[]archiveWrite{at(0, false), at(10, false), at(20, false), at(50, false)}, 5000, 2},
	} {
		if got := excess(tt.writes, tt.nodes); got != tt.want {
			t.Errorf("%s: %d, want %d", name, got, tt.want)
		}
	}
}

func TestMetrics(t *testing.T) {
	parse := func(text string) metrics {
		t.Helper()
		m, err := parseMetrics(text)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	const name = "apiserver_request_duration_seconds"
	before := parse("# HELP x\n" + name + `_bucket{verb="PATCH",group="g",le="0.1"} 10` + "\n" + name + `_bucket{verb="PATCH",group="g",le="+Inf"} 10` + "\nother 1\n")
	after := parse(name + `_bucket{verb="PATCH",group="g",le="0.1"} 60` + "\n" +
		name + `_bucket{verb="PATCH",group="g",le="0.2"} 110` + "\n" + name + `_bucket{verb="PATCH",group="g",le="+Inf"} 110` + "\n" +
		name + `_bucket{verb="GET",group="g",le="9"} 1e+06` + "\n" + name + `_bucket{verb="GET",group="g",le="+Inf"} 1e+06` + "\n")
	d := after.since(before)
	for q, want := range map[float64]float64{0.5: 0.1, 0.75: 0.15, 1: 0.2} {
		// The bucket of 0.2 has begun later: what was counted in it before is unknown, not 10.
		if got := d.duration(q, mutating("g")); math.Abs(got-want) > 0.02 {
			t.Errorf("quantile %v: %v, want %v", q, got, want)
		}
	}
	if got := d.duration(0.5, mutating("other")); !math.IsNaN(got) {
		t.Errorf("a quantile of nothing: %v", got)
	}
	if _, err := parseMetrics(name + `_bucket{le="1"} x`); err == nil {
		t.Error("a line without a number is taken")
	}
}
