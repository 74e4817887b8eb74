package faults

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tarlift/tarlift/test/cluster"
	"github.com/tarlift/tarlift/test/node"
)

// apart is the most that lies between the starts of two importers, which take some 100 ms: in half of the rounds so little that
// they publish at the same time.
var apart = []time.Duration{5 * time.Millisecond, 80 * time.Millisecond}

// Two importers on one node at the same time do each other no harm, and none is harmed when one of them is killed: two agents
// during a rolling update, of one spec or of two, and an `agent import` beside the agent.
func TestTwoAgents(t *testing.T) {
	former, newer := application(1), owner
	newer.SpecHash = "2"
	for _, tc := range []struct {
		name   string
		second func(t *testing.T, s *scenario) program
	}{
		{"one spec", func(t *testing.T, s *scenario) program {
			return helpSpec{Archive: s.material.path, Owner: owner}.program(t)
		}},
		{"two specs", func(t *testing.T, _ *scenario) program {
			return helpSpec{Archive: write(t, application(3)).path, Owner: newer}.program(t)
		}},
		{"agent import beside it", func(t *testing.T, s *scenario) program { return agentImport(t, s.material.path) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newScenario(t, "two at a time: "+tc.name, newRig(t, cluster.ContainerdOptions{}), application(2), &former)
			p := newPair(t, s, tc.second(t, s), tc.name == "two specs")
			dice := dice(t)
			for k := range pick(12, 90) {
				s.restore(t)
				p.round(t, dice, k%3)
			}
		})
	}
}

// pair are two importers.
type pair struct {
	*scenario
	programs [2]program
	// alone is what each leaves by itself, and all what they may leave together.
	alone [2]node.State
	all   []node.State
	// differ: they have different specs. Then the second one's, the newer, is what counts in the end.
	differ bool
}

// newPair finds out what each of them does alone, and after the other.
func newPair(t *testing.T, s *scenario, second program, differ bool) *pair {
	t.Helper()
	first := helpSpec{Archive: s.material.path, Owner: owner}.program(t)
	p := &pair{scenario: s, programs: [2]program{first, second}, differ: differ}
	for k, run := range p.programs {
		s.restore(t)
		s.usual = s.must(t, run(s.ContainerdAddress)).took
		p.alone[k] = s.state(t)
		s.must(t, p.programs[1-k](s.ContainerdAddress))
		p.all = append(p.all, p.alone[k], s.state(t))
	}
	p.all = append(p.all, s.before)
	return p
}

// round starts both, in any order, and kills one of them or none: 0 and 1 for that one. After it, an attempt of each must
// finish, the newer last.
func (p *pair) round(t *testing.T, dice *rand.Rand, victim int) {
	t.Helper()
	c := &crash{after: time.Duration(dice.Int64N(int64(p.usual)))}
	wait, first := time.Duration(dice.Int64N(int64(apart[dice.IntN(len(apart))]))), dice.IntN(2)
	var both [2]*process
	both[first] = start(t, p.programs[first](p.ContainerdAddress))
	time.Sleep(wait)
	both[1-first] = start(t, p.programs[1-first](p.ContainerdAddress))
	if victim < len(both) {
		time.Sleep(c.after)
		both[victim].kill()
		if both[victim].killed() {
			p.kills++
		}
	}
	killed := false
	for k, one := range both {
		one.wait(t)
		killed = killed || one.killed()
		if !one.killed() && one.code() != 0 {
			p.blame(t, &p.failed, c, "importer %d was disturbed: %s%s", k, one.out.String(), one.err.String())
		}
	}
	p.examine(t, c, "after both")
	p.names(t, c, "after both", p.all...)
	if !killed {
		p.noLease(t, c, "after both", nil)
	}
	p.published(t, c, both)
	p.attempt(t, c, "the next attempt", p.programs[1], p.all...)
	if p.differ {
		p.attempt(t, c, "the newer spec again", p.programs[1], p.alone[1])
		p.settled(t, c, p.alone[1])
		return
	}
	p.attempt(t, c, "the agent's next attempt", p.programs[0], p.alone[0])
	p.settled(t, c, p.alone[0])
}

// published looks for the images of those that have succeeded. With two specs, names may stand for either's.
func (p *pair) published(t *testing.T, c *crash, both [2]*process) {
	t.Helper()
	image := func(line string) string { return strings.Join(strings.SplitN(line, " ", 3)[:2], " ") } // the other may have added a label
	var got []string
	for _, line := range p.state(t)["images"] {
		got = append(got, image(line))
	}
	for k, one := range both {
		if one.code() != 0 || p.differ {
			continue
		}
		p.acknowledged++
		for _, line := range p.alone[k]["images"] {
			if !slices.Contains(got, image(line)) {
				p.blame(t, &p.lost, c, "acknowledged, and not there: %s", line)
				break
			}
		}
	}
}
