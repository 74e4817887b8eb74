package e2e

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/test/cluster"
	"github.com/tarlift/tarlift/test/stage"
)

// TestBootstrap goes from nodes that have a containerd without a single image to a cluster in which pods run, with one
// archive that is carried to each node, and a second that the running agents fetch. There is no registry, no DNS, no
// kube-proxy, and at first no network for pods.
func TestBootstrap(t *testing.T) {
	e := newEnvOf(t, cluster.Options{Nodes: 3, Bare: true, Kubelet: map[string]any{"staticPodPath": "/var/lib/kubelet/manifests"}})
	bundle := e.bundle(t)
	if err := stage.WriteNetwork(t.Context(), filepath.Join(e.Files, "network.tar")); err != nil {
		t.Fatal(err)
	}
	if err := stage.WriteArchive(t.Context(), filepath.Join(e.Files, "demo.tar"), "1.0"); err != nil {
		t.Fatal(err)
	}
	for _, n := range e.Nodes {
		if all := names(t, n); len(all) > 0 {
			t.Fatalf("%s is not bare: %q", n.Name, all)
		}
		carry(t, n, bundle)
	}

	began := time.Now()
	said := func(format string, args ...any) {
		t.Logf("%5.1f s: %s", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
	needed := e.missing(t, e.Nodes[0], bundle)
	e.importByUnit(t, needed)
	said("the archive is imported on all nodes")
	var g errgroup.Group
	for _, n := range e.Nodes {
		g.Go(func() error { return n.Kubelet.Start(t.Context()) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	// The chart waits for its pods, which run before any node is Ready.
	if err := e.Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	said("the agents run")
	for _, n := range e.Nodes {
		var node corev1.Node
		if err := e.kube.Get(t.Context(), client.ObjectKey{Name: n.Name}, &node); err != nil {
			t.Fatal(err)
		}
		for _, c := range node.Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
				t.Fatalf("%s is Ready without a network for pods", n.Name)
			}
		}
	}
	e.apply(t, "network", "network.tar")
	e.apply(t, "workloads", "demo.tar")
	for _, manifest := range []string{networkAddOn, strings.ReplaceAll(stage.DaemonSet("greeter", stage.Greeter+":1.0"), "hostNetwork: true", "hostNetwork: false")} {
		if err := e.Apply(t.Context(), manifest); err != nil {
			t.Fatal(err)
		}
	}
	e.ready(t, "network")
	e.ready(t, "workloads")
	said("the archives of the network and the workloads are on nodes that are not Ready")
	for _, key := range []client.ObjectKey{{Namespace: "kube-system", Name: "network"}, {Namespace: "default", Name: "greeter"}} {
		eventually(t, func(ctx context.Context) string {
			var ds appsv1.DaemonSet
			if err := e.kube.Get(ctx, key, &ds); err != nil {
				return err.Error()
			}
			if ds.Status.NumberReady == 3 {
				return ""
			}
			return fmt.Sprintf("%s: %s", key, asJSON(ds.Status))
		})
	}
	if err := e.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	said("all nodes are Ready, and all pods run")

	e.adopted(t)
	t.Run("the agent is upgraded", func(t *testing.T) { e.agentUpgraded(t) })
	t.Run("a component is upgraded", func(t *testing.T) { e.componentUpgraded(t) })
}

// adopted shows that an ImageArchive takes over what was imported before there was a cluster.
func (e *env) adopted(t *testing.T) {
	t.Helper()
	err := e.Apply(t.Context(), `apiVersion: tarlift.dev/v1alpha1
kind: ImageArchive
metadata:
  name: bootstrap
spec:
  source:
    file: {path: bootstrap.tar}
`)
	if err != nil {
		t.Fatal(err)
	}
	e.ready(t, "bootstrap")
	for _, n := range e.Nodes {
		eventually(t, func(ctx context.Context) string {
			events, err := e.Run(ctx, "kubectl", "get", "events", "-A", "--field-selector", "involvedObject.name="+n.Name,
				"-o", "jsonpath={range .items[*]}{.reason} {.message}{\"\\n\"}{end}")
			if err == nil && strings.Contains(events, "bootstrap: ") && strings.Contains(events, "nothing written") {
				return ""
			}
			return fmt.Sprintf("%s tells of no import that wrote nothing: %v %s", n.Name, err, events)
		})
	}
}

// bundle makes the archive that is carried to the nodes: 100 MiB of the pause image, the agent's, and others'.
func (e *env) bundle(t *testing.T) string {
	t.Helper()
	pause, filler := filepath.Join(e.Dir, "pause.tar"), filepath.Join(e.Dir, "filler.tar")
	if err := cluster.WritePause(t.Context(), pause); err != nil {
		t.Fatal(err)
	}
	noise := filepath.Join(e.Dir, "noise")
	f, err := os.Create(noise)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(f, rand.Reader, 80*mib); err != nil {
		t.Fatal(errors.Join(err, f.Close()))
	}
	image := builder.Image{Names: []string{"e2e.tarlift.dev/filler:1"}, Platforms: []builder.PlatformImage{{
		Platform: builder.Platform("linux/amd64"), Layers: []builder.Layer{{Files: []builder.File{{Name: "noise", Path: noise}}}},
	}}}
	out, err := os.Create(filler)
	if err != nil {
		t.Fatal(errors.Join(err, f.Close()))
	}
	_, err = builder.Archive{Images: []builder.Image{image}}.WriteTo(out)
	if err := errors.Join(err, f.Close(), out.Close()); err != nil {
		t.Fatal(err)
	}
	bundle := filepath.Join(e.Files, "bootstrap.tar")
	root := moduleRoot(t)
	cmd := exec.CommandContext(t.Context(), filepath.Join(root, "bin/tarlift"), "bundle", "-o", bundle,
		pause, filepath.Join(root, "bin/test/agent-image.tar"), filler)
	if output, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	return "bootstrap.tar"
}

// carry copies a file of the server to where the unit looks for it, as an operator with a stick does.
func carry(t *testing.T, n *cluster.Node, file string) {
	t.Helper()
	dir := filepath.Join(n.Dir, "tarlift", "archives")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	from := filepath.Join(filepath.Dir(n.Dir), "files", file)
	if output, err := exec.CommandContext(t.Context(), "cp", from, filepath.Join(dir, "bootstrap.tar")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
}

// importByUnit runs on all nodes what the systemd unit runs there.
func (e *env) importByUnit(t *testing.T, needed int64) {
	t.Helper()
	command := execStart(t, "tarlift-import.service")
	if len(command) < 3 || command[0] != "/usr/local/bin/tarlift-agent" || command[1] != "import" {
		t.Fatalf("the unit runs %q", command)
	}
	var g errgroup.Group
	var mu sync.Mutex
	for _, n := range e.Nodes {
		g.Go(func() error {
			imported, err := e.Import(t.Context(), n, command[2:]...)
			if err != nil {
				return err
			}
			if imported.Bytes.Written != needed || imported.Bytes.Skipped != 0 {
				t.Errorf("%s: %+v; want %d bytes written", n.Name, imported.Bytes, needed)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, i := range imported.Images {
				if strings.Contains(i.Name, "tarlift/agent") {
					e.AgentImage = i.Name
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}

// execStart is the command of a unit in config/systemd.
func execStart(t *testing.T, unit string) []string {
	t.Helper()
	f, err := os.Open(filepath.Join(moduleRoot(t), "config", "systemd", unit))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if command, ok := strings.CutPrefix(lines.Text(), "ExecStart="); ok {
			return strings.Fields(command)
		}
	}
	t.Fatalf("%s runs nothing", unit)
	return nil
}

// networkAddOn runs on nodes that are not Ready, and makes them so.
var networkAddOn = fmt.Sprintf(`apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: network
  namespace: kube-system
spec:
  selector: {matchLabels: {app: network}}
  template:
    metadata: {labels: {app: network}}
    spec:
      hostNetwork: true
      terminationGracePeriodSeconds: 1
      tolerations: [{operator: Exists}]
      containers:
        - name: main
          image: %s:1.0
          imagePullPolicy: Never
          args: [/cni]
          volumeMounts: [{name: cni, mountPath: /cni}]
      volumes:
        - name: cni
          hostPath: {path: %s, type: Directory}
`, stage.Network, cluster.CNIDir)
