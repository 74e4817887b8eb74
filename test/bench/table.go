package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// columns of the table. Those that need ctr are empty where it did not run.
var columns = []struct {
	head   string
	byPair bool
	cell   func(outcome) string
}{
	{"case", false, func(o outcome) string { return o.name }},
	{"agent, s", false, func(o outcome) string { return fmt.Sprintf("%.2f", median(secondsOf(o.agent))) }},
	{"ctr, s", true, func(o outcome) string { return fmt.Sprintf("%.2f", median(secondsOf(o.ctr))) }},
	{"ctr / agent (min–max)", true, func(o outcome) string {
		r := ratios(o)
		return fmt.Sprintf("%.2f (%.2f–%.2f)", median(r), slices.Min(r), slices.Max(r))
	}},
	{"95 %: at least", true, func(o outcome) string {
		bound, ok := lowerBound(ratios(o))
		if !ok {
			return "–"
		}
		return fmt.Sprintf("%.2f", bound)
	}},
	{"read: agent", false, func(o outcome) string { return size(highest(o.agent, read)) }},
	{"ctr", true, func(o outcome) string { return size(highest(o.ctr, read)) }},
	{"written: agent", false, func(o outcome) string { return size(highest(o.agent, written)) }},
	{"ctr", true, func(o outcome) string { return size(highest(o.ctr, written)) }},
	{"peak: agent", false, func(o outcome) string { return size(highest(o.agent, peak)) }},
	{"ctr", true, func(o outcome) string { return size(highest(o.ctr, peak)) }},
	{"containerd: agent", false, func(o outcome) string { return size(highest(o.agent, daemonPeak)) }},
	{"ctr", true, func(o outcome) string { return size(highest(o.ctr, daemonPeak)) }},
}

func read(s sample) int64       { return s.read }
func written(s sample) int64    { return s.written }
func peak(s sample) int64       { return s.peak }
func daemonPeak(s sample) int64 { return s.daemonPeak }

// printTable prints a Markdown table.
func printTable(w io.Writer, outcomes []outcome) error {
	t := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	row := func(cells []string) { fmt.Fprintf(t, "| %s\t|\n", strings.Join(cells, "\t| ")) }
	heads, rules := make([]string, len(columns)), make([]string, len(columns))
	for i, c := range columns {
		heads[i], rules[i] = c.head, "---"
	}
	row(heads)
	row(rules)
	for _, o := range outcomes {
		cells := make([]string, len(columns))
		for i, c := range columns {
			if !c.byPair || !o.alone {
				cells[i] = c.cell(o)
			}
		}
		row(cells)
	}
	return t.Flush()
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
