package faults

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/test/cluster"
)

// writesName are calls that write a name, and answers to them.
var writesName = regexp.MustCompile(`\.Images/(Create|Update)$`)

// plan is how often what is killed.
type plan struct {
	names   int // messages that have to do with the writing of names
	sample  int // of all messages
	instant int // random times
	// again is in how many of these the next program is killed, too: one in so many, 0 for never.
	again int
}

// crashes of an import that passes these messages and takes this long.
func (p plan) crashes(dice *rand.Rand, messages []message, usual time.Duration) []*crash {
	var out []*crash
	writes := 0
	for _, m := range messages {
		if writesName.MatchString(m.method) {
			writes++
		}
	}
	for _, k := range dice.Perm(writes)[:min(p.names, writes)] {
		out = append(out, &crash{n: k + 1, method: writesName})
	}
	for _, k := range dice.Perm(len(messages))[:min(p.sample, len(messages))] {
		out = append(out, &crash{n: k + 1})
	}
	for range p.instant {
		out = append(out, &crash{after: time.Duration(dice.Int64N(int64(usual + usual/10)))})
	}
	for _, c := range out {
		if p.again > 0 && dice.IntN(p.again) == 0 {
			c.again = 1 + dice.IntN(againWithin)
		}
	}
	return out
}

// againWithin are the messages in which a program adopts what is there at its start, and some more.
const againWithin = 60

// all is a sample of every message.
const all = 1 << 20

// An `agent import` that is killed harms nobody, and the next one succeeds.
func TestAgentIsKilled(t *testing.T) {
	former := application(1)
	for _, tc := range []struct {
		name   string
		change func(*builder.Archive)
		former *builder.Archive
		short  plan
		long   plan
		on     string // an older release of containerd
	}{
		{"new names", func(*builder.Archive) {}, nil, plan{5, 6, 2, 3}, plan{all, all, 30, 3}, ""},
		{"other images for the names", func(*builder.Archive) {}, &former, plan{all, 4, 2, 3}, plan{all, all, 30, 3}, ""},
		{"stream", func(a *builder.Archive) { a.Compression = builder.Gzip }, nil, plan{3, 6, 2, 3}, plan{all, 80, 30, 3}, ""},
		{"docker archive", func(a *builder.Archive) { a.Format = builder.Docker }, nil, plan{3, 6, 2, 3}, plan{all, 80, 30, 3}, ""},
		{"on containerd 1.7", func(*builder.Archive) {}, &former, plan{2, 4, 2, 3}, plan{all, all, 30, 3}, "1.7"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := application(2)
			tc.change(&a)
			r := newRig(t, cluster.ContainerdOptions{Release: tc.on})
			s := newScenario(t, "agent import killed: "+tc.name, r, a, tc.former)
			for k, c := range pick(tc.short, tc.long).crashes(dice(t), s.messages, s.usual) {
				s.restore(t)
				p := s.killed(t, s.client(t, s.material.path), c)
				if p.killed() {
					s.kills++
				}
				s.aftermath(t, c, p)
				s.attempts(t, c, k%2 == 0)
			}
			if a.Compression == builder.None && tc.on == "" { // ctr reads nothing else, and is of the present release
				s.compare(t, func(control *scenario, c *crash) { control.killed(t, ctrImport(t, s.material.path), c) })
			}
		})
	}
}

// compare does the same to containerd's own client, which shows that this test would see it.
func (s *scenario) compare(t *testing.T, strike func(control *scenario, c *crash)) {
	t.Helper()
	control := &scenario{
		rig: s.rig, row: &row{}, usual: s.usual, client: ctrImport,
		material: s.material, other: s.other, former: s.former, formerBy: s.formerBy, before: s.before,
	}
	s.restore(t)
	p := control.proxy(t, nil)
	control.must(t, ctrImport(t, s.material.path)(p.address))
	p.stop()
	after := s.state(t)["images"]
	left, partial, incomplete, failed := 0, 0, 0, 0
	points := pick(plan{3, 3, 0, 0}, plan{all, 20, 0, 0}).crashes(dice(t), p.messages(), 0)
	for _, c := range points {
		control.restore(t)
		strike(control, c)
		if len(s.rig.incomplete(t)) > 0 {
			incomplete++
		}
		next := start(t, ctrImport(t, s.other.path)(s.ContainerdAddress))
		next.wait(t)
		if next.code() != 0 {
			failed++
		}
		got := slices.DeleteFunc(s.state(t)["images"], func(line string) bool { return strings.HasPrefix(line, otherName) })
		if !cmp.Equal(got, s.before["images"]) && !cmp.Equal(got, after) {
			partial++
		}
		if control.scrub(t) > 0 {
			left++
		}
	}
	s.control = fmt.Sprintf("ctr, %d times: incomplete %d, in part %d, leftovers %d, failed %d",
		len(points), incomplete, partial, left, failed)
	if left == 0 || incomplete+partial == 0 {
		t.Errorf("the control shows nothing: %s", s.control)
	}
}

// A node's agent that is killed goes on at its next start where it was: what has arrived is not read again.
func TestOwnerIsKilled(t *testing.T) {
	former := application(1)
	s := newScenario(t, "node's agent killed, archive wanted", newRig(t, cluster.ContainerdOptions{}), application(2), &former)
	run := helpSpec{Archive: s.material.path, Owner: owner}.program(t)
	s.rehearseOwner(t, run)
	for _, c := range pick(plan{all, 6, 2, 3}, plan{all, 120, 20, 3}).crashes(dice(t), s.messages, s.usual) {
		s.restore(t)
		p := s.killed(t, run, c)
		if p.killed() {
			s.kills++
		}
		s.aftermath(t, c, p)
		s.killedAgain(t, run, c)
		s.adopted(t, c, run)
		s.settled(t, c, s.after)
	}
}

// A node's agent that is killed and finds at its next start that the archive is gone lets go of the names and of all that has
// arrived. A name of somebody else's that was there before is given back as it was; one that it had moved goes.
func TestUnwantedOwnerIsKilled(t *testing.T) {
	former, same := application(1), application(2)
	for _, tc := range []struct {
		name   string
		former *builder.Archive
		by     func(t *testing.T, archive string) program
	}{
		{"new names", nil, nil},
		{"other images for the names", &former, agentImport},
		{"names of somebody else's with the same images", &same, ctrImport},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, cluster.ContainerdOptions{})
			s := newScenarioAfter(t, "node's agent killed, archive gone: "+tc.name, r, application(2), tc.former, tc.by)
			run, sweep := helpSpec{Archive: s.material.path, Owner: owner}.program(t), helpSpec{}.program(t)
			s.rehearseOwner(t, run)
			for _, c := range pick(plan{all, 4, 2, 3}, plan{all, 60, 10, 3}).crashes(dice(t), s.messages, s.usual) {
				s.restore(t)
				p := s.killed(t, run, c)
				if p.killed() {
					s.kills++
				}
				s.aftermath(t, c, p)
				want := s.released(t)
				s.killedAgain(t, sweep, c)
				s.attempt(t, c, "Sweep of nothing wanted", sweep, want)
				if left := s.ourLeases(t); len(left) > 0 {
					s.blame(t, &s.leftovers, c, "after Sweep, leases of an owner that is gone: %q", left)
				}
				left := slices.DeleteFunc(differences(s.before, s.state(t)), func(d string) bool {
					return tc.former == &former && strings.HasPrefix(d, "missing") // what only names that are gone needed
				})
				if len(left) > 0 {
					s.blame(t, &s.leftovers, c, "after Sweep: %q", left)
				}
			}
		})
	}
}
