package main

import (
	"fmt"
	"io"
	"strings"
)

// target is what the agent shall reach.
type target struct {
	// what is said about the outcome, and whether it is good.
	check func(outcome) (what string, ok bool)
	// speed depends on the machine and on who else uses it. Missing it is only said; any other miss fails the command.
	speed bool
}

// memoryLimit is that of the agent in every case.
const memoryLimit = 64 << 20

var memory = peakAtMost(memoryLimit)

// ratio is how much faster than ctr it shall be.
func ratio(least float64) target {
	return target{speed: true, check: func(o outcome) (string, bool) {
		got := median(ratios(o))
		return fmt.Sprintf("%.2f times as fast, at least %g", got, least), got >= least
	}}
}

// neverSlower stands for ratios where something else keeps the machine busy.
var neverSlower = target{speed: true, check: func(o outcome) (string, bool) {
	got, ok := lowerBound(ratios(o))
	if !ok {
		return "too few pairs to say whether it is never slower", false
	}
	return fmt.Sprintf("%.2f times as fast or faster, with 95 %% confidence; at least 1", got), got >= 1
}}

func peakAtMost(limit int64) target {
	return atMost("peak of", peak, func(outcome) int64 { return limit })
}

func readAtMost(limit int64) target {
	return atMost("read", read, func(outcome) int64 { return limit })
}

func writtenAtMost(limit int64) target {
	return atMost("written", written, func(outcome) int64 { return limit })
}

// The rest is for headers, indexes and containerd's database.
const onlyNeeded = 1.02

var (
	readOnlyNeeded = atMost("read", read, func(o outcome) int64 { return int64(onlyNeeded * float64(o.need.read)) })

	wroteOnlyNeeded = atMost("written", written, func(o outcome) int64 { return int64(onlyNeeded * float64(o.writtenAtLeast())) })
)

// atMost holds for each of the agent's runs.
func atMost(what string, of func(sample) int64, limit func(outcome) int64) target {
	return target{check: func(o outcome) (string, bool) {
		got, most := highest(o.agent, of), limit(o)
		return fmt.Sprintf("%s %s, at most %s", what, size(got), size(most)), got <= most
	}}
}

// truthful is every case's but for those of many small parts: what the agent reports agrees with what the kernel or the server counted. That has a
// little more: answers of containerd, for one.
var truthful = target{check: func(o outcome) (string, bool) {
	const more = 1 << 20
	for _, s := range o.agent {
		said := s.reported
		if said.Read > s.read || onlyNeeded*float64(said.Read)+more < float64(s.read) || said.Written > s.written {
			return fmt.Sprintf("reports %s read and %s written, were %s and %s", size(said.Read), size(said.Written), size(s.read), size(s.written)), false
		}
	}
	return "reports what was counted", true
}}

// targetsOf are those of the case, on a machine that something else keeps busy or not.
func targetsOf(o outcome, busy bool) []target {
	var out []target
	if !o.parts {
		out = append(out, truthful)
	}
	if !busy {
		return append(out, o.targets...)
	}
	for _, t := range o.targets {
		if !t.speed {
			out = append(out, t)
		}
	}
	if !o.alone {
		out = append(out, neverSlower)
	}
	return out
}

// judge prints how the outcomes compare with the targets. A target that must be reached and is not is an error.
func judge(w io.Writer, outcomes []outcome, busy bool) error {
	var missed []string
	for _, o := range outcomes {
		for _, t := range targetsOf(o, busy) {
			what, ok := t.check(o)
			verdict := "reached"
			if !ok {
				verdict = "MISSED"
			}
			fmt.Fprintf(w, "%s: %s: %s\n", o.name, what, verdict)
			if !ok && !t.speed {
				missed = append(missed, o.name+": "+what)
			}
		}
	}
	if missed != nil {
		return fmt.Errorf("targets missed: %s", strings.Join(missed, "; "))
	}
	return nil
}
