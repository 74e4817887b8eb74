package e2e

import (
	"context"
	"flag"
	"testing"
	"time"

	"github.com/tarlift/tarlift/api/v1alpha1"
)

var (
	slow = flag.Bool("slow", false, "run what takes many minutes, too")
	away = flag.Duration("away", 2*time.Minute, "how long there is no API server")
)

// collection is how often the kubelet collects images: a constant of its.
const collection = 5 * time.Minute

// TestKubeletCollectsImages lets the kubelet collect every image that is not used for half a minute.
func TestKubeletCollectsImages(t *testing.T) {
	if !*slow {
		t.Skip("takes eight minutes; `make test-slow` runs it")
	}
	e := newEnv(t, map[string]any{"imageMinimumGCAge": "10s", "imageMaximumGCAge": "30s"})
	if err := e.Install(t.Context(), "node.checkInterval=10m"); err != nil {
		t.Fatal(err)
	}
	const unwatched, watched, pinned = "e2e.tarlift.dev/unwatched:1", "e2e.tarlift.dev/watched:1", "e2e.tarlift.dev/pinned:1"
	e.write(t, "unwatched.tar", unwatched, "unwatched")
	e.write(t, "watched.tar", watched, "watched")
	e.write(t, "pinned.tar", pinned, "pinned")
	e.apply(t, "unwatched", "unwatched.tar", "  pin: false\n  driftPolicy: Ignore\n")
	e.apply(t, "watched", "watched.tar", "  pin: false\n")
	e.apply(t, "pinned", "pinned.tar")
	for _, name := range []string{"unwatched", "watched", "pinned"} {
		e.ready(t, name)
	}
	n := e.Nodes[0]
	e.Server.Reset()
	deadline := time.Now().Add(collection + collection/2)
	for criImage(t, n, unwatched) != nil {
		if time.Now().After(deadline) {
			t.Fatal("the kubelet has collected nothing: no test")
		}
		time.Sleep(100 * time.Millisecond)
	}
	began := time.Now()
	e.reported(t, n, "unwatched", v1alpha1.ReasonDrifted)
	eventually(t, func(context.Context) string {
		if e.Server.Sent(n.IP) == 0 {
			return "the image that is not pinned was not fetched again"
		}
		return ""
	})
	has(t, n, watched, "unpinned")
	e.ready(t, "watched")
	if took := time.Since(began); took > healTime {
		t.Errorf("healed after %s", took)
	}
	has(t, n, pinned, "pinned")
	e.sentAtMost(t, n, 8*mib+mib) // the watched one's
}

// TestAPIServerAway is the long form of what TestFleet does.
func TestAPIServerAway(t *testing.T) {
	if !*slow {
		t.Skip("takes three minutes; TestFleet has a short form, and `make test-slow` runs it")
	}
	e := newEnv(t, nil)
	if err := e.Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	apiServerAway(t, e, *away)
}
