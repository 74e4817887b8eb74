package main

import (
	"os"
	"runtime/debug"
)

const (
	// collectAt has Go collect garbage when the heap has grown by this many percent. Mostly it is a few megabytes, and what is
	// garbage in it is memory that the node's pods lack. GOGC overrides it.
	collectAt = 40
	// softMemory in bytes is where the collector begins to work harder, below what GOMEMLIMIT may allow: eight of the worst
	// archives at a time use about as much, and would let as much garbage lie. What Go does not count comes on top, some 30 MiB.
	softMemory = 80 << 20
)

// boundMemory is for what imports archives on a node.
func boundMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(collectAt)
	}
	debug.SetMemoryLimit(min(debug.SetMemoryLimit(-1), softMemory))
}
