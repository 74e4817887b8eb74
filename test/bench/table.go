package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// printTable prints a Markdown table.
func printTable(w io.Writer, outcomes []outcome) error {
	t := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	fmt.Fprintln(t, "| case\t| agent, s\t| ctr, s\t| ctr / agent (min–max)\t| agent read\t| agent wrote\t| agent's peak\t| ctr's peak\t|")
	fmt.Fprintln(t, "|---\t|---\t|---\t|---\t|---\t|---\t|---\t|---\t|")
	for _, o := range outcomes {
		ctrSeconds, ratio, ctrPeak := "", "", ""
		if !o.alone {
			ctrSeconds = fmt.Sprintf("%.2f", median(secondsOf(o.ctr)))
			r := ratios(o)
			ratio = fmt.Sprintf("%.2f (%.2f–%.2f)", median(r), slices.Min(r), slices.Max(r))
			ctrPeak = size(highest(o.ctr, func(s sample) int64 { return s.peak }))
		}
		fmt.Fprintf(t, "| %s\t| %.2f\t| %s\t| %s\t| %s\t| %s\t| %s\t| %s\t|\n", o.name,
			median(secondsOf(o.agent)), ctrSeconds, ratio,
			size(highest(o.agent, func(s sample) int64 { return s.read })),
			size(highest(o.agent, func(s sample) int64 { return s.written })),
			size(highest(o.agent, func(s sample) int64 { return s.peak })), ctrPeak)
	}
	return t.Flush()
}

// ratios are those of the pairs.
func ratios(o outcome) []float64 {
	out := make([]float64, len(o.agent))
	for i := range out {
		out[i] = o.ctr[i].seconds / o.agent[i].seconds
	}
	return out
}

func secondsOf(runs []sample) []float64 {
	out := make([]float64, len(runs))
	for i, r := range runs {
		out[i] = r.seconds
	}
	return out
}

// median of an even number is the mean of the middle two.
func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

func highest(runs []sample, of func(sample) int64) int64 {
	var most int64
	for _, r := range runs {
		most = max(most, of(r))
	}
	return most
}

// size prints bytes: below a mebibyte in KiB, of which the last one counts in full.
func size(n int64) string {
	switch {
	case n == 0:
		return "0"
	case n < 1<<20:
		return fmt.Sprintf("%d KiB", (n+1<<10-1)>>10)
	default:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
}
