package node

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/api/v1alpha1"
)

// away is an API server that takes no writes.
type away struct {
	client.Client
	writes []time.Time
}

func (a *away) Create(context.Context, client.Object, ...client.CreateOption) error {
	a.writes = append(a.writes, time.Now())
	return errors.New("connection refused")
}

// While the API server is away a write is tried often enough to be right soon after it is back, and in a large fleet as
// rarely as any write.
func TestWritesDuringAnOutage(t *testing.T) {
	for _, test := range []struct {
		nodes    int32
		archives []string
		longest  time.Duration // between two attempts
	}{
		{3, []string{"quick"}, apiRetryLimit},
		{10 * clusterWriteRate, []string{"quick"}, 10 * time.Second},
		{50 * clusterWriteRate, []string{"quick"}, 50 * time.Second},
		{12 * clusterWriteRate, []string{"quick", "quick-2"}, 13 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			lo := newLoop(t, defaultLimits, test.archives...)
			server := &away{}
			lo.Client, lo.now, lo.jitter = server, time.Now, noJitter
			lo.view.node = nodeMetadata()
			for _, a := range lo.view.archives {
				a.Status.Nodes = &v1alpha1.NodeCounts{Desired: test.nodes}
			}
			ctx := ctrl.LoggerInto(t.Context(), logr.Discard())
			for end := time.Now().Add(10 * time.Minute); time.Now().Before(end); {
				now := time.Now()
				lo.takeIn(ctx, &lo.view, now)
				lo.steer(ctx, now)
				wait := lo.report(ctx, &lo.view, now)
				if wait <= 0 {
					t.Fatal("there is something to write, and nobody will")
				}
				time.Sleep(min(wait, 100*time.Millisecond)) // as often as anything else happens
			}
			var longest time.Duration
			for i, at := range server.writes[1:] {
				longest = max(longest, at.Sub(server.writes[i]))
			}
			if slack := 100 * time.Millisecond; longest < test.longest-slack || longest > test.longest+slack {
				t.Errorf("%d nodes: up to %s between two attempts, want %s", test.nodes, longest, test.longest)
			}
			if lo.ended["quick"] == 0 {
				t.Error("the import did not go on")
			}
		})
	}
}
