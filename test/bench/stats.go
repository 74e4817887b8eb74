package main

import (
	"math"
	"slices"
)

// ratios are those of the pairs.
func ratios(o outcome) []float64 {
	out := make([]float64, len(o.agent))
	for i := range out {
		out[i] = o.ctr[i].seconds / o.agent[i].seconds
	}
	return out
}

// median of an even number is the mean of the middle two.
func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// lowerBound is one of the true median, right with a probability of at least 95 % whatever the distribution. The
// k-th smallest value is above the median only when fewer than k values are below it, and each is with a
// probability of a half. Fewer than five values give none.
func lowerBound(v []float64) (bound float64, ok bool) {
	const wrong = 0.05
	n := len(v)
	exactly := math.Pow(0.5, float64(n)) // k values are below
	fewer := 0.0                         // at most k are
	sorted := slices.Sorted(slices.Values(v))
	for k := range n {
		if fewer += exactly; fewer > wrong {
			return bound, ok
		}
		bound, ok = sorted[k], true
		exactly *= float64(n-k) / float64(k+1)
	}
	return bound, ok
}

func secondsOf(runs []sample) []float64 {
	out := make([]float64, len(runs))
	for i, r := range runs {
		out[i] = r.seconds
	}
	return out
}

func highest(runs []sample, of func(sample) int64) int64 {
	var most int64
	for _, r := range runs {
		most = max(most, of(r))
	}
	return most
}
