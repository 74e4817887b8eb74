package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/test/cluster"
	"github.com/tarlift/tarlift/test/stage"
)

// busy waits until a node reads an archive, and returns it.
func (e *env) busy(t *testing.T) (n *cluster.Node) {
	t.Helper()
	eventually(t, func(context.Context) string {
		for _, n = range e.Nodes {
			if e.Server.Sent(n.IP) > mib {
				return ""
			}
		}
		return "no node reads"
	})
	return n
}

// killLeader ends the controller that leads, the hard way: another takes over when its lease has expired.
func killLeader(t *testing.T, e *env) {
	t.Helper()
	holder, err := e.Run(t.Context(), "kubectl", "get", "lease", "-n", stage.Namespace, "controller.tarlift.dev", "-o", "jsonpath={.spec.holderIdentity}")
	if err != nil {
		t.Fatal(err)
	}
	node, _, _ := strings.Cut(holder, "_") // its name is the host's
	deleted, err := e.Run(t.Context(), "kubectl", "delete", "pod", "-n", stage.Namespace, "-l", "app.kubernetes.io/component=controller",
		"--field-selector", "spec.nodeName="+node, "--force", "--grace-period=0", "--wait=false")
	if err != nil || !strings.Contains(deleted, "force deleted") {
		t.Fatalf("%v: %s", err, deleted)
	}
}

// oneByOne counts at the server. The limit holds while the importing agent is killed, and the leading controller.
func oneByOne(t *testing.T, e *env) {
	e.write(t, "all.tar", "e2e.tarlift.dev/all:1", "all-a", "all-b")
	e.write(t, "one.tar", "e2e.tarlift.dev/one:1", "one-a", "one-b")
	e.Server.Limit(2 * mib)
	defer e.Server.Limit(0)
	e.Server.Reset()
	e.apply(t, "all", "all.tar")
	e.ready(t, "all")
	if most := e.Server.Most(); most < 2 {
		t.Fatalf("without a rollout %d node reads at a time: no test of one", most)
	}
	e.Server.Reset()
	e.apply(t, "one", "one.tar", "  rollout: {maxConcurrent: 1}\n")
	killAgent(t, e.busy(t))
	killLeader(t, e)
	e.ready(t, "one")
	if most := e.Server.Most(); most != 1 {
		t.Errorf("%d nodes read at the same time", most)
	}
	// A loss needs a place too, and gets it.
	removedByCRI(t, e.Nodes[0], "e2e.tarlift.dev/one:1")
	has(t, e.Nodes[0], "e2e.tarlift.dev/one:1", "pinned")
	e.ready(t, "one")
	for _, n := range e.Nodes {
		eventually(t, func(ctx context.Context) string {
			var s v1alpha1.NodeImageState
			if err := e.kube.Get(ctx, client.ObjectKey{Name: n.Name}, &s); err != nil {
				return err.Error()
			}
			if len(s.Spec.Admitted) > 0 {
				return n.Name + " still has a place: " + asJSON(s.Spec)
			}
			return ""
		})
	}
}

func stopped(t *testing.T, e *env) {
	e.write(t, "stopped.tar", "e2e.tarlift.dev/stopped:1", "stopped")
	for _, n := range e.Nodes {
		e.Server.Deny(n.IP)
		defer e.Server.Allow(n.IP)
	}
	e.Server.Reset()
	e.apply(t, "stopped", "stopped.tar", "  rollout: {maxConcurrent: 1, maxFailed: 0}\n")
	eventually(t, func(context.Context) string {
		s := e.archive(t, "stopped").Status
		c := meta.FindStatusCondition(s.Conditions, v1alpha1.ConditionStalled)
		if c != nil && c.Reason == v1alpha1.ReasonRolloutStopped && s.Nodes.Failed == 1 {
			return ""
		}
		return asJSON(s)
	})
	asked := 0
	for _, n := range e.Nodes {
		if e.Server.Asked(n.IP) > 0 {
			asked++
		}
	}
	if asked != 1 {
		t.Errorf("%d nodes have asked the server", asked)
	}
	for _, n := range e.Nodes {
		e.Server.Allow(n.IP)
	}
	annotate(t, e, "stopped")
	e.ready(t, "stopped")
}

func silent(t *testing.T, e *env) {
	e.write(t, "silent.tar", "e2e.tarlift.dev/silent:1", "silent-a", "silent-b")
	e.Server.Limit(2 * mib)
	defer e.Server.Limit(0)
	e.Server.Reset()
	e.apply(t, "silent", "silent.tar", "  rollout: {maxConcurrent: 1, maxFailed: 1, progressDeadline: 15s}\n")
	n := e.busy(t)
	n.PowerOff()
	eventually(t, func(context.Context) string {
		s := e.archive(t, "silent").Status
		if s.Nodes != nil && s.Nodes.Ready == 2 && s.Nodes.Failed == 1 {
			return ""
		}
		return asJSON(s)
	})
	if most := e.Server.Most(); most != 1 {
		t.Errorf("%d nodes read at the same time", most)
	}
	if err := n.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	e.ready(t, "silent")
}

// awayTime is how long the API server is away, and statusTime how long the status may take after that.
const awayTime, statusTime = 20 * time.Second, 15 * time.Second

func serverAway(t *testing.T, e *env) { apiServerAway(t, e, awayTime) }

func apiServerAway(t *testing.T, e *env, away time.Duration) {
	e.write(t, "alone.tar", "e2e.tarlift.dev/alone:1", "alone-a", "alone-b", "alone-c")
	e.Server.Limit(mib)
	defer e.Server.Limit(0)
	e.Server.Reset()
	e.apply(t, "alone", "alone.tar")
	for _, n := range e.Nodes {
		eventually(t, func(context.Context) string {
			if e.Server.Sent(n.IP) < mib {
				return n.Name + " does not read"
			}
			return ""
		})
	}
	if err := e.APIServer.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	gone := time.Now()
	for _, n := range e.Nodes {
		has(t, n, "e2e.tarlift.dev/alone:1", "pinned")
	}
	time.Sleep(time.Until(gone.Add(away)))
	if err := e.APIServer.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	for _, n := range e.Nodes {
		eventually(t, func(ctx context.Context) string {
			if s := e.on(ctx, n, "alone"); s == nil || !s.Ready {
				return n.Name + " reports " + asJSON(s)
			}
			return ""
		})
		if took := time.Since(back); took > statusTime {
			t.Errorf("%s reports %s after the API server's return, more than %s", n.Name, took, statusTime)
		}
		if s := e.on(t.Context(), n, "alone"); s.Attempts != 1 || s.LastError != nil {
			t.Errorf("%s reports %s", n.Name, asJSON(s))
		}
	}
	t.Logf("all nodes report %s after the API server's return", time.Since(back).Round(100*time.Millisecond))
	e.ready(t, "alone")
}

func nodeGone(t *testing.T, e *env) {
	n := e.Nodes[2]
	n.PowerOff()
	if _, err := e.Run(t.Context(), "kubectl", "delete", "node", n.Name); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	eventually(t, func(ctx context.Context) string {
		var s v1alpha1.NodeImageState
		if err := e.kube.Get(ctx, client.ObjectKey{Name: n.Name}, &s); client.IgnoreNotFound(err) != nil || err == nil {
			return fmt.Sprintf("%s is still there, %v", n.Name, err)
		}
		var list v1alpha1.ImageArchiveList
		if err := e.kube.List(ctx, &list); err != nil {
			return err.Error()
		}
		for _, a := range list.Items {
			if a.Status.Nodes.Desired > 2 || a.Status.Nodes.Ready != a.Status.Nodes.Desired {
				return a.Name + ": " + asJSON(a.Status.Nodes)
			}
		}
		return ""
	})
	if took := time.Since(began); took > time.Minute {
		t.Errorf("it counts for %s", took)
	}
	if err := n.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, func(ctx context.Context) string {
		var node corev1.Node
		if err := e.kube.Get(ctx, client.ObjectKey{Name: n.Name}, &node); err != nil {
			return err.Error()
		}
		return ""
	})
	e.ready(t, "alone")
}
