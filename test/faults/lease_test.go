package faults

import (
	"net/http"
	"slices"
	"testing"
	"time"

	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	"google.golang.org/protobuf/proto"

	"github.com/tarlift/tarlift/test/cluster"
)

// handOver is the age at which leases are replaced here, in place of half a day. A blob takes several of them.
const handOver = 60 * time.Millisecond

// An import that outlives its leases hands them over, in the middle of a blob: nothing is collected and nothing read again,
// and one that is killed between two leases is like any other.
func TestLeaseIsHandedOver(t *testing.T) {
	former := application(1)
	for _, on := range []string{"", "1.7"} {
		t.Run("containerd "+on, func(t *testing.T) {
			r := newRig(t, cluster.ContainerdOptions{Release: on})
			s := newScenario(t, "killed while leases are handed over "+on, r, application(2), &former)
			local := helpSpec{Archive: s.material.path, Owner: owner}.program(t)
			s.rehearseOwner(t, local)
			dice := dice(t)
			pace := func(r *http.Request, _ int64) {
				select {
				case <-time.After(handOver / 4):
				case <-r.Context().Done():
				}
			}
			for k := range pick(3, 16) {
				s.restore(t)
				server := serveSlowly(t, s.material.path, pace)
				c := &crash{after: time.Duration(dice.Int64N(int64(10 * handOver)))}
				p := start(t, helpSpec{Archive: server.URL, Owner: owner, HandOver: handOver}.program(t)(s.ContainerdAddress))
				if k%2 == 1 {
					s.kills++
					time.Sleep(c.after)
					p.kill()
				}
				seen := s.leasesSeen(t, p)
				server.Close()
				s.aftermath(t, c, p)
				if k%2 == 0 {
					if p.code() != 0 {
						s.blame(t, &s.failed, c, "leases were handed over: %s", p.err.String())
					}
					if seen < 3 {
						t.Errorf("only %d leases in %s", seen, p.took)
					}
					if read, err := p.read(); err != nil || read > s.reads+64<<10 {
						t.Errorf("read %d bytes in place of %d, error %v", read, s.reads, err)
					}
				}
				s.adopted(t, c, local)
				s.settled(t, c, s.after)
			}
		})
	}
}

// leasesSeen counts those of importers until a program ends.
func (s *scenario) leasesSeen(t *testing.T, p *process) int {
	t.Helper()
	var seen []string
	for {
		for _, id := range s.ourLeases(t) {
			if !slices.Contains(seen, id) {
				seen = append(seen, id)
			}
		}
		select {
		case <-p.ended:
			return len(seen)
		case <-time.After(handOver / 10):
		}
	}
}

// An import whose lease goes while it is at work, as after a step of the clock, starts again at once and ends. One that reads
// a stream cannot start again: it fails, and the next attempt succeeds.
func TestLeaseIsLost(t *testing.T) {
	former := application(1)
	for _, tc := range []struct {
		name   string
		stream bool
		expire bool
	}{
		{"deleted", false, false},
		{"expired", false, true},
		{"deleted under a stream", true, false},
		{"expired under a stream", true, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newScenario(t, "lease "+tc.name, newRig(t, cluster.ContainerdOptions{}), application(2), &former)
			free := serveSlowly(t, s.material.path, func(*http.Request, int64) {})
			free.stream = tc.stream
			s.rehearseOwner(t, helpSpec{Archive: free.URL, Owner: owner}.program(t))
			dice := dice(t)
			for range pick(3, 12) {
				s.restore(t)
				s.loseLease(t, &crash{n: int(700_000 + dice.Int64N(600_000))}, tc.stream, tc.expire)
			}
		})
	}
}

// loseLease runs an import that is held up after so many bytes while its lease goes.
func (s *scenario) loseLease(t *testing.T, c *crash, stream, expire bool) {
	t.Helper()
	server := serveHeld(t, s.material.path, int64(c.n))
	defer server.Close()
	server.stream = stream
	between := s.proxy(t, nil)
	defer between.stop()
	if expire {
		between.edit = shortLease(t)
	}
	run := helpSpec{Archive: server.URL, Owner: owner}.program(t)
	p := start(t, run(between.address))
	select {
	case <-server.reached:
	case <-p.ended:
		t.Fatalf("it ended before: %s%s", p.out.String(), p.err.String())
	}
	lost := s.arrival(t)
	if expire {
		time.Sleep(shortLife + 1100*time.Millisecond) // the label has whole seconds
		s.collect(t)
	} else {
		s.expire(t)
	}
	for _, id := range s.ourLeases(t) {
		if slices.Contains(lost, id) {
			t.Fatalf("lease %s has not gone", id)
		}
	}
	s.kills++
	server.open()
	p.wait(t)
	s.aftermath(t, c, p)
	if stream == (p.code() == 0) {
		s.blame(t, &s.failed, c, "exit code %d: %s", p.code(), p.err.String())
	}
	if p.code() != 0 {
		s.attempt(t, c, "the next attempt", run, s.after)
	}
	s.settled(t, c, s.after)
}

// arrival waits until an import has begun to write, and returns its lease. What the server has sent may be on its way yet.
func (s *scenario) arrival(t *testing.T) []string {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if len(s.state(t)["ingests"]) > len(s.before["ingests"]) {
			return s.ourLeases(t)
		}
	}
	t.Fatal("nothing is written")
	return nil
}

// shortLife is that of a lease that expires at work.
const shortLife = time.Second

// shortLease makes the first lease of an importer expire soon.
func shortLease(t *testing.T) func(method string, f *frame) {
	done := false
	return func(method string, f *frame) {
		if done || method != "/containerd.services.leases.v1.Leases/Create" {
			return
		}
		done = true
		var r leasesapi.CreateRequest
		err := proto.Unmarshal(f.data, &r)
		if err != nil || r.Labels["containerd.io/gc.expire"] == "" {
			t.Errorf("a lease without expiry: %v, error %v", &r, err)
			return
		}
		r.Labels["containerd.io/gc.expire"] = time.Now().Add(shortLife).UTC().Format(time.RFC3339)
		if f.data, err = proto.Marshal(&r); err != nil {
			t.Error(err)
		}
	}
}
