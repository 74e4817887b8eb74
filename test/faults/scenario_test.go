package faults

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/google/go-cmp/cmp"

	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/test/node"
)

// scenario is an import that is killed again and again.
type scenario struct {
	*rig
	*row
	client   func(t *testing.T, archive string) program
	material *material
	other    *material
	former   *material // nil when the names are new
	formerBy func(t *testing.T, archive string) program

	// What containerd has when nothing is killed: before the import and after it, without the other archive and with it.
	before, after           node.State
	beforeOther, afterOther node.State
	messages                []message // of an import
	proxies                 int
	usual                   time.Duration // that it takes
	reads                   int64         // bytes that the node's agent reads
}

// newScenario runs all without a kill first.
func newScenario(t *testing.T, name string, r *rig, a builder.Archive, former *builder.Archive) *scenario {
	t.Helper()
	return newScenarioAfter(t, name, r, a, former, agentImport)
}

// newScenarioAfter is newScenario on a node to which somebody else's import has brought the former archive.
func newScenarioAfter(
	t *testing.T, name string, r *rig, a builder.Archive, former *builder.Archive, by func(t *testing.T, archive string) program,
) *scenario {
	t.Helper()
	s := &scenario{rig: r, row: newRow(t, name), client: agentImport, material: write(t, a), other: write(t, other()), formerBy: by}
	if former != nil {
		s.former = write(t, *former)
		s.must(t, by(t, s.former.path)(r.ContainerdAddress))
		r.collect(t) // ctr leaves other platforms' blobs
	}
	s.before = r.state(t)
	s.rehearse(t)
	t.Cleanup(func() { t.Logf("%s: %d messages, %s", name, len(s.messages), s.usual.Round(time.Millisecond)) })
	return s
}

// rehearse finds out what an import does, and what is there afterwards.
func (s *scenario) rehearse(t *testing.T) {
	t.Helper()
	s.must(t, s.client(t, s.other.path)(s.ContainerdAddress))
	s.beforeOther = s.state(t)
	s.restore(t)
	p := s.proxy(t, nil)
	s.must(t, s.client(t, s.material.path)(p.address))
	p.stop()
	s.messages = p.messages()
	s.restore(t)
	s.usual = s.must(t, s.client(t, s.material.path)(s.ContainerdAddress)).took
	s.after = s.state(t)
	s.must(t, s.client(t, s.other.path)(s.ContainerdAddress))
	s.afterOther = s.state(t)
	if cmp.Equal(s.before["images"], s.after["images"]) || len(s.messages) < 20 {
		t.Fatalf("an import of %d messages changed nothing", len(s.messages))
	}
	s.restore(t)
}

// must runs a program that must succeed.
func (s *scenario) must(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := start(t, cmd)
	p.wait(t)
	if p.code() != 0 {
		t.Fatalf("%s: %s", cmd, p.err.String())
	}
	return p
}

// restore goes back to what is there before the import.
func (s *scenario) restore(t *testing.T) {
	t.Helper()
	s.reset(t, func(img images.Image) bool { return slices.Contains(s.before["images"], node.Line(img)) })
	if s.former != nil && !cmp.Equal(s.state(t)["images"], s.before["images"]) {
		s.must(t, s.formerBy(t, s.former.path)(s.ContainerdAddress))
		s.collect(t)
	}
	if d := cmp.Diff(s.before, s.state(t)); d != "" {
		s.scrub(t)
		if d := cmp.Diff(s.before, s.state(t)); d != "" {
			t.Fatalf("cannot go back to the beginning (-want +got):\n%s", d)
		}
	}
}

// crash is a point of an import: a message, or a time.
type crash struct {
	// n-th message of those whose method is like this, from 1; 0 for a time.
	n      int
	method *regexp.Regexp // nil for all
	after  time.Duration  // since the process began
	again  int            // message of the next program, which is killed as well; 0 for none
	where  []message      // that were struck
}

func (c *crash) String() string {
	var at []string
	if c.n == 0 {
		at = append(at, c.after.String())
	}
	for _, m := range c.where {
		at = append(at, m.String())
	}
	return strings.Join(at, ", then ")
}

// strikes gives the function that a proxy asks. It calls do once, at this point.
func (c *crash) strikes(do func()) func(message) bool {
	n := 0
	return func(m message) bool {
		if c.method == nil || c.method.MatchString(m.method) {
			n++
		}
		if n < c.n {
			return false
		}
		c.where = append(c.where, m)
		do()
		return true
	}
}

// killed runs an import and kills it there.
func (s *scenario) killed(t *testing.T, run program, c *crash) *process {
	t.Helper()
	if c.n == 0 {
		p := start(t, run(s.ContainerdAddress))
		select {
		case <-p.ended:
		case <-time.After(c.after):
			p.kill()
		}
		return p
	}
	var p *process
	started := make(chan struct{})
	between := s.proxy(t, c.strikes(func() {
		<-started
		p.kill()
	}))
	defer between.stop()
	p = start(t, run(between.address))
	close(started)
	p.wait(t)
	return p
}

// killedAgain kills what runs next, too, before it has done anything or while it does.
func (s *scenario) killedAgain(t *testing.T, run program, c *crash) {
	t.Helper()
	if c.again == 0 {
		return
	}
	second := &crash{n: c.again}
	if s.killed(t, run, second).killed() {
		s.kills++
		c.where = append(c.where, second.where...)
	}
	s.examine(t, c, "right after the second kill")
}

// proxies are numbered: each has a socket of its own.
func (s *scenario) proxy(t *testing.T, strike func(message) bool) *proxy {
	t.Helper()
	s.proxies++
	p := &proxy{address: filepath.Join(s.sockets, fmt.Sprint(s.proxies)), strike: strike}
	if err := p.listen(s.ContainerdAddress); err != nil {
		t.Fatal(err)
	}
	return p
}

// aftermath looks at what is there right after a kill: each name is as before or as after, and none points to what is not
// complete.
func (s *scenario) aftermath(t *testing.T, c *crash, p *process) {
	t.Helper()
	s.examine(t, c, "right after the kill")
	got := s.state(t)
	s.names(t, c, "right after the kill", s.before, s.after)
	if len(got["leases"]) > len(s.before["leases"]) || len(got["ingests"]) > len(s.before["ingests"]) {
		s.dirty++
	}
	if !cmp.Equal(got["images"], s.before["images"]) && !cmp.Equal(got["images"], s.after["images"]) {
		s.mixed++
	}
	if p.code() == 0 {
		s.acknowledge(t, c, s.after)
	}
}

// acknowledge looks for what an import that has succeeded has published.
func (s *scenario) acknowledge(t *testing.T, c fmt.Stringer, want node.State) {
	t.Helper()
	s.acknowledged++
	got := s.state(t)["images"]
	if i := slices.IndexFunc(want["images"], func(line string) bool { return !slices.Contains(got, line) }); i >= 0 {
		s.blame(t, &s.lost, c, "acknowledged, and not there: %s", want["images"][i])
	}
	s.noLease(t, c, "acknowledged", s.before["leases"])
}

// noLease says that an import which has ended by itself has left no lease of its own beside those that were there.
func (s *scenario) noLease(t *testing.T, c fmt.Stringer, when string, had []string) {
	t.Helper()
	for _, id := range s.ourLeases(t) {
		if !slices.Contains(had, id) {
			s.blame(t, &s.leftovers, c, "%s, and its lease is there: %s", when, id)
		}
	}
}

// names says that each name is as in one of these states.
func (s *scenario) names(t *testing.T, c fmt.Stringer, when string, allowed ...node.State) {
	t.Helper()
	name := func(line string) string { return line[:strings.Index(line, " ")] }
	lines, states := map[string][]string{}, map[string]int{}
	for _, state := range allowed {
		for _, line := range state["images"] {
			lines[name(line)] = append(lines[name(line)], line)
			states[name(line)]++
		}
	}
	there := map[string]bool{}
	for _, line := range s.state(t)["images"] {
		there[name(line)] = true
		if !slices.Contains(lines[name(line)], line) {
			s.blame(t, &s.forbidden, c, "%s, a name is in no allowed state: %s, not one of %q", when, line, lines[name(line)])
		}
	}
	for n, k := range states {
		if k == len(allowed) && !there[n] {
			s.blame(t, &s.forbidden, c, "%s, a name is gone: %s", when, n)
		}
	}
}

// examine looks at all names, and at what is somebody else's.
func (s *scenario) examine(t *testing.T, c fmt.Stringer, when string) {
	t.Helper()
	for _, name := range s.rig.incomplete(t) {
		s.blame(t, &s.row.incomplete, c, "%s, incomplete: %s", when, name)
	}
	if d := cmp.Diff(s.theirs, s.rig.foreign(t)); d != "" {
		s.blame(t, &s.row.foreign, c, "%s, somebody else's things changed (-before +after):\n%s", when, d)
	}
}

// attempts are what comes next: the other archive and the same again, in one order or the other. Each must succeed at once.
// The names of the killed import wait for the same import, and what else it left for that or for the end of its lease.
func (s *scenario) attempts(t *testing.T, c *crash, otherFirst bool) {
	t.Helper()
	same, other := s.client(t, s.material.path), s.client(t, s.other.path)
	if otherFirst {
		s.killedAgain(t, other, c)
		s.attempt(t, c, "the import of another archive", other, s.beforeOther, s.afterOther)
		s.attempt(t, c, "the same import", same, s.afterOther)
	} else {
		s.killedAgain(t, same, c)
		s.attempt(t, c, "the same import", same, s.after)
		s.attempt(t, c, "the import of another archive", other, s.afterOther)
	}
	s.settled(t, c, s.afterOther)
}

// attempt runs a program, which must succeed and leave no lease of its own. After it, each name is as in one of these states.
func (s *scenario) attempt(t *testing.T, c fmt.Stringer, what string, run program, allowed ...node.State) *process {
	t.Helper()
	had := s.ourLeases(t)
	p := start(t, run(s.ContainerdAddress))
	p.wait(t)
	s.timed(t, c, p.took)
	if p.code() != 0 {
		s.blame(t, &s.failed, c, "%s failed: %s%s", what, p.out.String(), p.err.String())
	}
	s.examine(t, c, "after "+what)
	s.names(t, c, "after "+what, allowed...)
	s.noLease(t, c, "after "+what, had)
	return p
}

// settled says that all is as in this state when the leases of killed processes have expired: nothing has lain elsewhere.
func (s *scenario) settled(t *testing.T, c fmt.Stringer, want node.State) {
	t.Helper()
	s.expire(t)
	s.examine(t, c, "in the end")
	s.names(t, c, "in the end", want)
	if d := differences(want, s.state(t)); len(d) > 0 {
		s.blame(t, &s.leftovers, c, "in the end: %q", d)
	}
}
