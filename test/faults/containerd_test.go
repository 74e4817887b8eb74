package faults

import (
	"testing"
	"time"

	"github.com/tarlift/tarlift/test/cluster"
)

// downtime is the most that passes until containerd is started again; systemd waits 100 ms, or as it is told.
const downtime = 200 * time.Millisecond

// A containerd that is killed under an import comes back with nothing broken, and the agent says why it failed.
func TestContainerdIsKilled(t *testing.T) {
	former := application(1)
	s := newScenario(t, "containerd killed under agent import", newRig(t, cluster.ContainerdOptions{}), application(2), &former)
	dice := dice(t)
	for k, c := range pick(plan{2, 4, 2, 0}, plan{all, 75, 20, 0}).crashes(dice, s.messages, s.usual) {
		s.restore(t)
		p, dead := s.bereaved(t, s.client(t, s.material.path), c, time.Duration(dice.Int64N(int64(downtime))))
		if dead {
			s.kills++
		}
		if reason, err := p.reason(); p.code() != 0 && (err != nil || p.code() != 1 || reason != "RuntimeUnavailable") {
			s.blame(t, &s.failed, c, "exit code %d, reason %q, error %v", p.code(), reason, err)
		}
		s.noLease(t, c, "an import that failed by itself", nil)
		s.aftermath(t, c, p)
		s.attempts(t, c, k%2 == 0)
	}
	s.compare(t, func(control *scenario, c *crash) { control.bereaved(t, ctrImport(t, s.material.path), c, 0) })
}

// bereaved runs an import under which containerd is killed, and started again a little later. It says whether it was
// killed before the import had ended.
func (s *scenario) bereaved(t *testing.T, run program, c *crash, down time.Duration) (p *process, dead bool) {
	t.Helper()
	killed := make(chan struct{})
	var between *proxy
	if c.n == 0 {
		p = start(t, run(s.ContainerdAddress))
		time.AfterFunc(c.after, func() {
			s.Containerd.Kill()
			close(killed)
		})
	} else {
		between = s.proxy(t, c.strikes(func() {
			s.Containerd.Kill()
			between.clients.breakAll()
			close(killed)
		}))
		p = start(t, run(between.address))
	}
	select {
	case <-killed:
	case <-p.ended:
		if between != nil && between.alive() { // the import has fewer messages
			between.stop()
			return p, false
		}
		<-killed
	}
	select {
	case <-p.ended:
	default:
		dead = true
	}
	time.Sleep(down)
	s.revive(t)
	if between != nil {
		between.stop()
		if err := between.listen(s.ContainerdAddress); err != nil {
			t.Fatal(err)
		}
		defer between.stop()
	}
	p.wait(t)
	return p, dead
}
