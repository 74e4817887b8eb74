package main

import (
	"fmt"
	"slices"
	"strings"
)

// benchCase is a row of the table.
type benchCase struct {
	name string
	// archives that a client imports one after the other, measured together.
	archives []archive
	// before has what the same client has imported into the same containerd before, which is not measured.
	before []archive
	// keep has all runs of a client in one containerd, which suits those that change nothing. Without it each run has
	// a containerd of its own.
	keep bool
	// noUnpack has neither client unpack layers.
	noUnpack bool
	// http has the archives on a server; without it they are files.
	http bool
	// alone leaves ctr out.
	alone bool
	// parts is of many small blobs or names: most of what is read and written is beside the blobs.
	parts bool
	// targets that the agent's runs are compared with.
	targets []target
}

var cases = []benchCase{
	{name: "fresh", archives: just(single), targets: []target{ratio(1.8), memory}},
	{name: "fresh-no-unpack", archives: just(single), noUnpack: true, targets: []target{ratio(1.9), memory}},
	{name: "again", archives: just(single), before: just(single), keep: true, targets: []target{ratio(80), readAtMost(1 << 20), writtenAtMost(2 << 20), memory}},
	{name: "five-platforms", archives: just(multi), noUnpack: true, targets: []target{ratio(10), readOnlyNeeded, wroteOnlyNeeded, memory}},
	{name: "five-platforms-unpack", archives: just(multi), targets: []target{ratio(3.3), readOnlyNeeded, wroteOnlyNeeded, memory}},
	{name: "five-platforms-http", archives: just(multi), http: true, targets: []target{ratio(3.3), readOnlyNeeded, wroteOnlyNeeded, memory}},
	{name: "shared-base", archives: shared, targets: []target{ratio(4), readOnlyNeeded, wroteOnlyNeeded, memory}},
	{name: "thirty-images", archives: just(thirty), targets: []target{ratio(1.5), memory}},
	{name: "docker", archives: just(docker), targets: []target{ratio(2), memory}},
	{name: "zstd", archives: just(zstds), targets: []target{ratio(2), memory}},
	{name: "unlisted", archives: just(unlisted), targets: []target{memory}},
	{name: "outer-zstd", archives: just(outer), targets: []target{peakAtMost(memoryLimit + largestWindow)}},
	{name: "upgrade", archives: just(version2), before: just(version1), targets: []target{ratio(4), readOnlyNeeded, wroteOnlyNeeded, memory}},
	{name: "many", archives: just(many), alone: true, parts: true, targets: []target{memory}},
	{name: "names", archives: just(names), alone: true, parts: true, targets: []target{memory}},
	{name: "memory", archives: just(large), alone: true, targets: []target{memory}},
}

func just(a archive) []archive { return []archive{a} }

func selectCases(name string) ([]benchCase, error) {
	if name == "" {
		return cases, nil
	}
	i := slices.IndexFunc(cases, func(c benchCase) bool { return c.name == name })
	if i >= 0 {
		return cases[i : i+1], nil
	}
	names := make([]string, len(cases))
	for i, c := range cases {
		names[i] = c.name
	}
	return nil, fmt.Errorf("no case %q; there are %s", name, strings.Join(names, ", "))
}
