package main

import (
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/tarlift/tarlift/internal/archive/builder"
)

// An archive in the cache stands for its parameters: these give the same bytes each time, and no layer twice.
func TestArchive(t *testing.T) {
	a := archive{Name: "small", Images: []image{
		{Tag: "1", Platforms: five[:2], Layers: layers(0, 2, 4, builder.Gzip)},
		{Tag: "2", Platforms: machine, Layers: layers(2, 1, 4, builder.Zstd)},
	}}
	seen := map[digest.Digest]bool{}
	var last digest.Digest
	for range 2 {
		b, err := a.build()
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		if last != "" && b.IndexDigest != last {
			t.Error("the same parameters gave another archive")
		}
		last = b.IndexDigest
		var total int64
		for _, img := range b.Images {
			for _, p := range img.Platforms {
				for _, l := range p.Layers {
					seen[l.Digest] = true
					total += l.Size
				}
			}
		}
		if total < 10<<20 || total > 16<<20 {
			t.Errorf("%s of 20 MiB are left", size(total))
		}
	}
	if len(seen) != 5 {
		t.Errorf("%d layers, want 5", len(seen))
	}
}

// What is needed counts a blob once, not those that were there, and of other platforms none.
func TestNeed(t *testing.T) {
	base := layers(0, 2, 1, builder.None)
	own := layers(10, 1, 2, builder.None)
	v1 := archive{Name: "v1", Images: []image{{Tag: "1", Platforms: append([]string{"linux/mips64le"}, machine...), Layers: base}}}
	v2 := archive{Name: "v2", Images: one(append(base[:1:1], own...))}
	whole := v2
	whole.Name, whole.Zstd = "whole", true
	// On this platform v1's layers are others, since it is the second.
	other := archive{Name: "other", Images: one(base)}

	const tars = 16 << 10 // of headers, and what is said about the layers
	for name, tc := range map[string]struct {
		files, before []archive
		mib           int64
		read          bool // as much is read as stored
	}{
		"one platform of two":   {[]archive{v1}, nil, 2, true},
		"shared layer":          {[]archive{other, v2}, nil, 4, true},
		"the same again":        {[]archive{v2}, []archive{v2}, 0, true},
		"another version":       {[]archive{v2}, []archive{other}, 2, true},
		"the other's platform":  {[]archive{v2}, []archive{v1}, 3, true},
		"compressed as a whole": {[]archive{whole}, []archive{other}, 2, false},
	} {
		n := needOf(kept(t, tc.files), kept(t, tc.before))
		if got := n.unpacked; got != tc.mib<<20 {
			t.Errorf("%s: %s to unpack, want %d MiB", name, size(got), tc.mib)
		}
		if n.stored < n.unpacked || n.stored > n.unpacked+tars {
			t.Errorf("%s: %s to store, of %s", name, size(n.stored), size(n.unpacked))
		}
		if (n.read == n.stored) != tc.read {
			t.Errorf("%s: %s to read, %s to store", name, size(n.read), size(n.stored))
		}
	}
}

func kept(t *testing.T, as []archive) []file {
	var out []file
	dir := t.TempDir()
	for _, a := range as {
		path := filepath.Join(dir, a.Name)
		if err := a.write(path); err != nil {
			t.Fatal(err)
		}
		f, err := a.open(path)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, f)
	}
	return out
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

// The ranks are those of the sign test, as tables have them for a one-sided 5 %.
func TestLowerBound(t *testing.T) {
	for n, rank := range map[int]float64{1: 0, 4: 0, 5: 1, 7: 1, 8: 2, 10: 2, 11: 3, 20: 6, 50: 19} {
		var v []float64
		for i := range n {
			v = append(v, float64(n-i))
		}
		got, ok := lowerBound(v)
		if got != rank || ok != (rank > 0) {
			t.Errorf("of %d values the %v. bounds the median, want the %v.", n, got, rank)
		}
	}
}

// What misses a target that depends on the machine is said; only the others are errors.
func TestJudge(t *testing.T) {
	run := func(n int, s sample) (out []sample) {
		for range n {
			out = append(out, s)
		}
		return out
	}
	small := benchCase{name: "small", targets: []target{peakAtMost(10), readAtMost(10), writtenAtMost(10)}}
	slow := outcome{benchCase: benchCase{name: "slow", targets: []target{ratio(2)}}, agent: run(5, sample{seconds: 2}), ctr: run(5, sample{seconds: 1})}
	exact := benchCase{name: "exact", targets: []target{readOnlyNeeded, wroteOnlyNeeded}}
	imported := exact
	imported.noUnpack = true
	said := func(s sample, read, written int64) outcome {
		s.reported = reported{read, written}
		return outcome{agent: []sample{s}}
	}
	counted := sample{read: 100 * mib, written: 100 * mib}
	needed := need{read: 1000, stored: 1000, unpacked: 2000}
	for name, tc := range map[string]struct {
		o    outcome
		busy bool
		ok   bool
	}{
		"slower":                {slow, false, true},
		"slower and busy":       {slow, true, true},
		"reached":               {outcome{benchCase: small, agent: run(3, sample{read: 10, written: 10, peak: 10})}, false, true},
		"told what it did":      {said(counted, 99*mib, 99*mib), false, true},
		"read in secret":        {said(counted, 90*mib, 99*mib), false, false},
		"read less than told":   {said(counted, 101*mib, 99*mib), false, false},
		"wrote less than told":  {said(counted, 99*mib, 101*mib), false, false},
		"one run wrote":         {outcome{benchCase: small, agent: []sample{{}, {written: 11}, {}}}, false, false},
		"one run read":          {outcome{benchCase: small, agent: []sample{{}, {read: 11}, {}}}, false, false},
		"one run was fat":       {outcome{benchCase: small, agent: []sample{{peak: 11}, {}}}, false, false},
		"nothing expected":      {outcome{agent: []sample{{written: 1, peak: 1 << 40}}}, false, true},
		"what is needed":        {outcome{benchCase: exact, need: needed, agent: run(1, sample{read: 1020, written: 3060})}, false, true},
		"read too much":         {outcome{benchCase: exact, need: needed, agent: run(1, sample{read: 1021})}, false, false},
		"wrote too much":        {outcome{benchCase: exact, need: needed, agent: run(1, sample{written: 3061})}, false, false},
		"wrote without unpack":  {outcome{benchCase: imported, need: needed, agent: run(1, sample{written: 3060})}, false, false},
		"wrote too much (busy)": {outcome{benchCase: exact, need: needed, agent: run(1, sample{seconds: 1, written: 3061}), ctr: run(1, sample{seconds: 9})}, true, false},
	} {
		if err := judge(t.Output(), []outcome{tc.o}, tc.busy); (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// On a busy machine a ratio's target is that its bound is not below 1.
func TestNeverSlower(t *testing.T) {
	o := outcome{agent: make([]sample, 5), ctr: make([]sample, 5)}
	for i := range o.agent {
		o.agent[i].seconds, o.ctr[i].seconds = 1, 1+float64(i)
	}
	if what, ok := neverSlower.check(o); !ok {
		t.Error(what)
	}
	o.ctr[3].seconds = 0.9
	if what, ok := neverSlower.check(o); ok {
		t.Error(what)
	}
	o.agent, o.ctr = o.agent[:3], o.ctr[:3]
	if what, ok := neverSlower.check(o); ok {
		t.Error("three pairs are enough:", what)
	}
}
