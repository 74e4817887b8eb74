package main

import (
	"testing"

	"github.com/opencontainers/go-digest"
)

// An archive in the cache stands for its parameters: these give the same bytes each time, and no layer twice.
func TestArchive(t *testing.T) {
	a := archive{Name: "small", Platforms: []string{"linux/amd64", "linux/arm64"}, Layers: 2, LayerSize: 4 << 20}
	seen := map[digest.Digest]bool{}
	var last digest.Digest
	for range 2 {
		b, err := a.image().Build()
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		if last != "" && b.IndexDigest != last {
			t.Error("the same parameters gave another archive")
		}
		last = b.IndexDigest
		var total int64
		for _, p := range b.Images[0].Platforms {
			for _, l := range p.Layers {
				seen[l.Digest] = true
				total += l.Size
			}
		}
		if total < 8<<20 || total > 12<<20 {
			t.Errorf("%s of 16 MiB are left", size(total))
		}
	}
	if len(seen) != 4 {
		t.Errorf("%d layers, want 4", len(seen))
	}
}

func TestMedian(t *testing.T) {
	for want, v := range map[float64][]float64{
		2:   {3, 1, 2},
		2.5: {4, 1, 3, 2},
		7:   {7},
	} {
		if got := median(v); got != want {
			t.Errorf("median of %v is %v, want %v", v, got, want)
		}
	}
}

// What misses a target that depends on the machine is said; only the others are errors.
func TestJudge(t *testing.T) {
	slow := outcome{benchCase: benchCase{name: "slow", targets: []target{seconds(1)}}, agent: []sample{{seconds: 2}}}
	good := outcome{benchCase: benchCase{name: "good", targets: []target{writtenNothing, peak(10)}}, agent: []sample{{peak: 10}}}
	for name, tc := range map[string]struct {
		o  outcome
		ok bool
	}{
		"seconds":          {slow, true},
		"reached":          {good, true},
		"one run wrote":    {outcome{benchCase: good.benchCase, agent: []sample{{}, {written: 1}, {}}}, false},
		"one run was fat":  {outcome{benchCase: good.benchCase, agent: []sample{{peak: 11}, {}}}, false},
		"nothing expected": {outcome{agent: []sample{{written: 1, peak: 1 << 40}}}, true},
	} {
		if err := judge(t.Output(), []outcome{tc.o}); (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
