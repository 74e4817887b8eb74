package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/test/cluster"
	"github.com/tarlift/tarlift/test/stage"
)

// agentUpgraded brings the agent's next image by an ImageArchive, and goes to it and back. There is no registry, and
// imagePullPolicy is Never.
func (e *env) agentUpgraded(t *testing.T) {
	const next = "ghcr.io/tarlift/agent:next"
	cmd := exec.CommandContext(t.Context(), "go", "run", "./hack/image", "-name", next, "-platforms", "linux/"+runtime.GOARCH,
		"-ldflags", "-X main.version=next", "-o", filepath.Join(e.Files, "agent-next.tar"))
	cmd.Dir = moduleRoot(t)
	if output, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	old := e.AgentImage
	e.apply(t, "agent-next", "agent-next.tar")
	e.ready(t, "agent-next")
	e.AgentImage = next
	if err := e.Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	e.runs(t, next)
	e.ready(t, "bootstrap")
	if _, err := e.Run(t.Context(), "helm", "rollback", "tarlift", "--namespace", stage.Namespace, "--wait", "--timeout", "3m"); err != nil {
		t.Fatal(err)
	}
	e.AgentImage = old
	e.runs(t, old)
	e.remove(t, "agent-next")
	for _, n := range e.Nodes {
		has(t, n, next, "unpinned")
		has(t, n, old, "pinned")
	}
}

// helmTest has the chart's own test look at a node on which all is well.
func helmTest(t *testing.T, e *env) {
	out, err := e.Run(t.Context(), "helm", "test", "tarlift", "--namespace", stage.Namespace, "--logs", "--timeout", "2m")
	if err != nil {
		t.Fatal(err)
	}
	for _, check := range []string{"cri", "disk", "api server", "crds", "rights", "own state", "policy"} {
		if !strings.Contains(out, "ok    "+check+" ") {
			t.Errorf("the doctor has not found %s to be right:\n%s", check, out)
		}
	}
}

// reinstalled finds all ImageArchives and images where they were. The source is gone by now.
func reinstalled(t *testing.T, e *env) {
	var before []*v1alpha1.ImageArchive
	for _, name := range []string{"demo", "demo-again", "later"} {
		before = append(before, e.ready(t, name))
	}
	if _, err := e.Run(t.Context(), "helm", "uninstall", "tarlift", "--namespace", stage.Namespace, "--wait", "--timeout", "2m"); err != nil {
		t.Fatal(err)
	}
	for _, a := range before {
		if now := e.archive(t, a.Name); now.UID != a.UID || now.DeletionTimestamp != nil {
			t.Fatalf("%s is another one, or goes: %s", a.Name, asJSON(now.ObjectMeta))
		}
	}
	// So that what nodes report from here on is what the new agents do.
	if _, err := e.Run(t.Context(), "kubectl", "delete", "nodeimagestates", "--all"); err != nil {
		t.Fatal(err)
	}
	if err := e.Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, func(ctx context.Context) string {
		for _, a := range before {
			for _, n := range e.Nodes {
				if s := e.on(ctx, n, a.Name); s == nil || s.UID != a.UID || !s.Ready {
					return fmt.Sprintf("%s reports of %s: %s", n.Name, a.Name, asJSON(s))
				}
			}
		}
		return ""
	})
}

// runs waits until all pods of the release run an image, and no others are left.
func (e *env) runs(t *testing.T, image string) {
	t.Helper()
	eventually(t, func(ctx context.Context) string {
		var pods corev1.PodList
		if err := e.kube.List(ctx, &pods, client.InNamespace(stage.Namespace)); err != nil {
			return err.Error()
		}
		for _, p := range pods.Items {
			if p.Spec.Containers[0].Image != image || len(p.Status.ContainerStatuses) == 0 || !p.Status.ContainerStatuses[0].Ready {
				return fmt.Sprintf("%s is to run %s: %s", p.Name, p.Spec.Containers[0].Image, asJSON(p.Status.ContainerStatuses))
			}
		}
		if len(pods.Items) != 5 {
			return fmt.Sprintf("%d pods", len(pods.Items))
		}
		return ""
	})
}

// componentUpgraded does so with a static pod, as a control plane's are. The workloads' archive has its first image.
func (e *env) componentUpgraded(t *testing.T) {
	n := e.Nodes[0]
	static(t, n, "1.0")
	e.staticRuns(t, n, "1.0")
	if err := stage.WriteArchive(t.Context(), filepath.Join(e.Files, "demo-2.tar"), "2.0"); err != nil {
		t.Fatal(err)
	}
	e.apply(t, "workloads-2", "demo-2.tar")
	e.ready(t, "workloads-2")
	static(t, n, "2.0")
	e.staticRuns(t, n, "2.0")
	want := image(t, n, stage.Greeter+":2.0").Metadata()
	e.remove(t, "workloads")
	for _, n := range e.Nodes {
		has(t, n, stage.Greeter+":1.0", "unpinned")
		has(t, n, stage.Greeter+":2.0", "pinned")
	}
	removedByCRI(t, n, stage.Greeter+":1.0") // as the kubelet's collection would
	if what := lacks(t, n, want); what != "" {
		t.Errorf("what the versions share has gone with the old one: %s", what)
	}
}

// static writes a static pod of the greeter.
func static(t *testing.T, n *cluster.Node, version string) {
	t.Helper()
	dir := filepath.Join(n.Dir, "kubelet", "manifests")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	pod := fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: component, namespace: kube-system}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 1
  containers:
    - {name: main, image: "%s:%s", imagePullPolicy: Never, env: [{name: NODE_NAME, value: %s}]}
`, stage.Greeter, version, n.Name)
	if err := os.WriteFile(filepath.Join(dir, "component.yaml"), []byte(pod), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (e *env) staticRuns(t *testing.T, n *cluster.Node, version string) {
	t.Helper()
	eventually(t, func(ctx context.Context) string {
		var p corev1.Pod
		if err := e.kube.Get(ctx, client.ObjectKey{Namespace: "kube-system", Name: "component-" + n.Name}, &p); err != nil {
			return err.Error()
		}
		if s := p.Status.ContainerStatuses; len(s) == 1 && s[0].Ready && strings.HasSuffix(s[0].Image, ":"+version) {
			return ""
		}
		return asJSON(p.Status.ContainerStatuses)
	})
}
