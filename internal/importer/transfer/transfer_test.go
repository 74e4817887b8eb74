package transfer

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tarlift/tarlift/internal/archive"
)

const leastGap = 16 << 10 // of package source: of a source that is near, headers are read through

func TestRuns(t *testing.T) {
	extent := func(name string, off, size int64) archive.Extent {
		return archive.Extent{Member: name, Offset: off, Size: size}
	}
	a, b, c := extent("a", 1000, 500), extent("b", 2048, 500), extent("c", 3072, 500)
	far := &link{Reader: bytes.NewReader(nil), rate: 1 << 20, trip: 100 * time.Millisecond}
	for name, tc := range map[string]struct {
		src     *link
		extents []archive.Extent
		want    string
	}{
		"neighbours":                {extents: []archive.Extent{a, b, c}, want: "[[a b c]]"},
		"in another order":          {extents: []archive.Extent{c, a, b}, want: "[[a b c]]"},
		"a gap":                     {extents: []archive.Extent{a, extent("far", 1500+leastGap+1, 5)}, want: "[[a] [far]]"},
		"as wide as a gap may be":   {extents: []archive.Extent{a, extent("far", 1500+leastGap, 5)}, want: "[[a far]]"},
		"cheaper than a round trip": {src: far, extents: []archive.Extent{a, extent("far", 100_000, 5)}, want: "[[a far]]"},
		"wanted first, lying last":  {extents: []archive.Extent{extent("far", 1<<20, 5), b, a}, want: "[[far] [a b]]"},
		"too large for one request": {extents: []archive.Extent{a, extent("large", 2048, maxRun)}, want: "[[a] [large]]"},
		"overlapping":               {extents: []archive.Extent{a, extent("inside", 1200, 5)}, want: "[[a] [inside]]"},
		"none":                      {want: "[]"},
	} {
		if tc.src == nil {
			tc.src = &link{Reader: bytes.NewReader(nil)}
		}
		got := [][]string{}
		for _, r := range runs(tc.src, tc.extents) {
			var names []string
			for _, k := range r.Blobs {
				names = append(names, tc.extents[k].Member)
			}
			got = append(got, names)
		}
		if fmt.Sprint(got) != tc.want {
			t.Errorf("%s: %v, want %s", name, got, tc.want)
		}
	}
}

// What lies between two blobs that are opened is read through as far as that is cheaper, and a released run asks anew.
func TestRunOpens(t *testing.T) {
	for name, tc := range map[string]struct {
		next     int64
		release  bool
		sections int
	}{
		"near": {200, false, 1}, "far": {100 + leastGap + 1, false, 2}, "back": {50, false, 2}, "released": {200, true, 2},
	} {
		l := newLink(3*leastGap, mebi)
		extents := []archive.Extent{{Offset: 0, Size: 100}, {Offset: tc.next, Size: 100}, {Offset: 2*leastGap + 500, Size: 10}}
		r := &Run{Blobs: []int{0, 1, 2}, blob: l, src: l, extents: extents}
		for k, x := range extents[:2] {
			rc, err := r.Open(t.Context(), k, 10)
			if err != nil {
				t.Fatal(err)
			}
			want := make([]byte, 90)
			if _, err := l.ReadAt(want, x.Offset+10); err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(rc); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %d other bytes at %d, error %v", name, len(got), x.Offset, err)
			}
			if tc.release {
				r.Release()
			}
		}
		if got := len(l.sections); got != tc.sections {
			t.Errorf("%s: %d sections, want %d", name, got, tc.sections)
		}
		if r.Release(); l.open != 0 {
			t.Errorf("%s: %d sections are open", name, l.open)
		}
	}
}

// Whoever releases a run while he waits for somebody else's blob holds no connection, and goes on where he was.
func TestReleasedRunHoldsNoConnection(t *testing.T) {
	for _, trip := range []time.Duration{0, 100 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			l := newLink(2*mebi, 100*mebi)
			l.trip = trip
			err := Each(t.Context(), l, 1, l.blobs(4), func(ctx context.Context, r *Run) error {
				for _, k := range r.Blobs {
					if k == 2 {
						continue // somebody else has brought it meanwhile
					}
					if err := l.all(ctx, r, r.extents[k], func(int64) {}); err != nil {
						return err
					}
					r.Release()
					time.Sleep(time.Second)
					if l.open != 0 {
						t.Errorf("%d connections are held", l.open)
					}
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// Of a local source as many blobs are open at a time as may be, each by a section of its own.
func TestEachOfALocalSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &local{newLink(8*mebi, 100*mebi)}
		var now, most, blobs atomic.Int64
		err := Each(t.Context(), l, 3, l.blobs(8), func(ctx context.Context, r *Run) error {
			most.Store(max(most.Load(), now.Add(1)))
			defer now.Add(-1)
			blobs.Add(int64(len(r.Blobs)))
			return l.all(ctx, r, r.extents[r.Blobs[0]], func(int64) {})
		})
		if err != nil {
			t.Error(err)
		}
		l.wantOnce(t)
		if most.Load() != 3 || blobs.Load() != 8 {
			t.Errorf("%d blobs, %d at a time", blobs.Load(), most.Load())
		}
	})
}

type local struct{ *link }

func (local) Remote() bool { return false }

// The order is that of the extents, whatever lies where.
func TestEachKeepsTheOrder(t *testing.T) {
	l := &local{newLink(mebi, mebi)}
	extents := l.blobs(5)
	slices.Reverse(extents)
	var got []int
	err := Each(t.Context(), l, 1, extents, func(_ context.Context, r *Run) error {
		got = append(got, r.Blobs...)
		return nil
	})
	if err != nil || !slices.Equal(got, []int{0, 1, 2, 3, 4}) {
		t.Errorf("%v, %v", got, err)
	}
}
