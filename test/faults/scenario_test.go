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

	// What containerd has when nothing is killed: before the import and after it, without the other archive and with it.
	before, after           node.State
	beforeOther, afterOther node.State
	stay                    map[string]string // names that are there before, and their digests
	messages                []message         // of an import
	proxies                 int
	usual                   time.Duration // that it takes
	reads                   int64         // bytes that the node's agent reads
}

// newScenario runs all without a kill first.
func newScenario(t *testing.T, name string, r *rig, a builder.Archive, former *builder.Archive) *scenario {
	t.Helper()
	s := &scenario{
		rig: r, row: newRow(t, name), client: agentImport, material: write(t, a), other: write(t, other()), stay: map[string]string{},
	}
	if former != nil {
		s.former = write(t, *former)
		s.must(t, s.client(t, s.former.path)(r.ContainerdAddress))
	}
	list, err := r.ImageService().List(r.ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range list {
		s.stay[img.Name] = img.Target.Digest.String()
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
	s.reset(t, func(img images.Image) bool { return s.stay[img.Name] == img.Target.Digest.String() })
	if s.former != nil && !cmp.Equal(s.state(t)["images"], s.before["images"]) {
		s.must(t, agentImport(t, s.former.path)(s.ContainerdAddress))
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

// killedAgain kills what runs next, too, before it has cleared up or while it does.
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

// aftermath looks at what is there right after a kill: no name may be half written, or point to what is not complete.
func (s *scenario) aftermath(t *testing.T, c *crash, p *process) {
	t.Helper()
	s.examine(t, c, "right after the kill")
	got := s.state(t)
	for _, line := range got["images"] {
		if !slices.Contains(s.before["images"], line) && !slices.Contains(s.after["images"], line) {
			s.blame(t, &s.row.incomplete, c, "right after the kill, a name is neither as before nor as after: %s", line)
		}
	}
	if len(got["leases"]) > len(s.before["leases"]) || len(got["ingests"]) > len(s.before["ingests"]) {
		s.dirty++
	}
	if !cmp.Equal(got["images"], s.before["images"]) && !cmp.Equal(got["images"], s.after["images"]) {
		s.torn++
	}
	if p.code() != 0 {
		return
	}
	s.acknowledged++
	if i := slices.IndexFunc(s.after["images"], func(line string) bool { return !slices.Contains(got["images"], line) }); i >= 0 {
		s.blame(t, &s.lost, c, "acknowledged, and not there: %s", s.after["images"][i])
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

// attempts are what comes next: the other archive and the same again, in one order or the other. Each must succeed at
// once and clear up what the kill left.
func (s *scenario) attempts(t *testing.T, c *crash, otherFirst bool) {
	t.Helper()
	same, other := s.client(t, s.material.path), s.client(t, s.other.path)
	if otherFirst {
		s.killedAgain(t, other, c)
		s.attempt(t, c, "the import of another archive", other, s.beforeOther, s.afterOther)
		s.attempt(t, c, "the same import", same, s.afterOther)
		return
	}
	s.killedAgain(t, same, c)
	s.attempt(t, c, "the same import", same, s.after)
	s.attempt(t, c, "the import of another archive", other, s.afterOther)
}

// attempt runs a program, after which one of these states is the right one.
func (s *scenario) attempt(t *testing.T, c fmt.Stringer, what string, run program, right ...node.State) {
	t.Helper()
	p := start(t, run(s.ContainerdAddress))
	p.wait(t)
	s.recovered(t, c, p.took)
	if p.code() != 0 {
		s.blame(t, &s.failed, c, "%s failed: %s%s", what, p.out.String(), p.err.String())
	}
	s.judge(t, c, "after "+what, right...)
}

// judge compares all that is there with the states that would be right.
func (s *scenario) judge(t *testing.T, c fmt.Stringer, when string, right ...node.State) {
	t.Helper()
	s.examine(t, c, when)
	got := s.state(t)
	for _, want := range right {
		if !cmp.Equal(want["images"], got["images"]) {
			continue
		}
		if d := differences(want, got); len(d) > 0 {
			s.blame(t, &s.leftovers, c, "%s: %q", when, d)
		}
		return
	}
	s.blame(t, &s.partial, c, "%s, the names are none of those that are right (-want +got):\n%s", when, cmp.Diff(right[len(right)-1]["images"], got["images"]))
}
