package main

import (
	"fmt"
	"io"
	"strings"
)

// benchCase is a row of the table.
type benchCase struct {
	name    string
	archive archive
	// noUnpack leaves both clients at importing. Without it both unpack.
	noUnpack bool
	// again measures an import of what the same client has imported into the same containerd before. Without it each
	// run has a containerd that has never had an image.
	again bool
	// alone leaves ctr out.
	alone bool
	// targets that the agent's runs are compared with.
	targets []target
}

var cases = []benchCase{
	{name: "fresh", archive: single},
	{name: "fresh-no-unpack", archive: single, noUnpack: true},
	{name: "again", archive: single, again: true, targets: []target{seconds(1), writtenNothing}},
	{name: "five-platforms", archive: multi, noUnpack: true},
	{name: "memory", archive: large, alone: true, targets: []target{peak(64 << 20)}},
}

func selectCases(name string) ([]benchCase, error) {
	if name == "" {
		return cases, nil
	}
	var names []string
	for _, c := range cases {
		if c.name == name {
			return []benchCase{c}, nil
		}
		names = append(names, c.name)
	}
	return nil, fmt.Errorf("no case %q; there are %s", name, strings.Join(names, ", "))
}

// target is what the agent shall reach.
type target struct {
	// what is said about the outcome, and whether it is good.
	check func(outcome) (what string, ok bool)
	// must fails the whole run when missed. Seconds depend on who else uses the machine, bytes do not.
	must bool
}

func seconds(limit float64) target {
	return target{check: func(o outcome) (string, bool) {
		got := median(secondsOf(o.agent))
		return fmt.Sprintf("median of %.2f s, at most %.0f s", got, limit), got <= limit
	}}
}

var writtenNothing = target{must: true, check: func(o outcome) (string, bool) {
	got := highest(o.agent, func(s sample) int64 { return s.written })
	return fmt.Sprintf("%s written, at most 0", size(got)), got == 0
}}

func peak(limit int64) target {
	return target{must: true, check: func(o outcome) (string, bool) {
		got := highest(o.agent, func(s sample) int64 { return s.peak })
		return fmt.Sprintf("peak of %s, at most %s", size(got), size(limit)), got <= limit
	}}
}

// judge prints how the outcomes compare with the targets. A target that must be reached and is not is an error.
func judge(w io.Writer, outcomes []outcome) error {
	var missed []string
	for _, o := range outcomes {
		for _, t := range o.targets {
			what, ok := t.check(o)
			verdict := "reached"
			if !ok {
				verdict = "MISSED"
			}
			fmt.Fprintf(w, "%s: %s: %s\n", o.name, what, verdict)
			if !ok && t.must {
				missed = append(missed, o.name+": "+what)
			}
		}
	}
	if missed != nil {
		return fmt.Errorf("targets missed: %s", strings.Join(missed, "; "))
	}
	return nil
}
