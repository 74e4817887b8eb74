// Package faults kills the agent, containerd and the machine's power at every point of an import, again and again, and
// looks at what is left: see the scenarios' tests and [row].
//
// `go test ./test/faults` is a sample of it, `make test-faults` all of it. Which points are random is decided by -seed.
package faults

import (
	"flag"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/tarlift/tarlift/test/cluster"
)

var (
	full = flag.Bool("full", false, "every point of an import, and many random ones")
	seed = flag.Uint64("seed", 1, "of what is random")
)

func TestMain(m *testing.M) {
	if spec := os.Getenv(helperEnv); spec != "" {
		os.Exit(help(spec))
	}
	cluster.Main(tabulated{m})
}

// tabulated tests print their table in the end.
type tabulated struct{ *testing.M }

func (m tabulated) Run() int {
	flag.Parse()
	code := m.M.Run()
	if len(table) > 0 {
		fmt.Printf("\nseed %d\n%s", *seed, formatTable(table))
	}
	return code
}

// dice are a test's own: what one test throws does not depend on which others run.
func dice(t *testing.T) *rand.Rand {
	name := fnv.New64()
	name.Write([]byte(t.Name()))
	return rand.New(rand.NewPCG(*seed, name.Sum64()))
}

// pick takes one for the form of this run.
func pick[T any](short, long T) T {
	if *full {
		return long
	}
	return short
}
