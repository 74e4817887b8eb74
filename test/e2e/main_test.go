// Package e2e tests the whole on a real cluster of three nodes, set up as an operator would: the demonstration's
// steps as assertions, and what happens when parts of it die.
package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/go-logr/logr"
	"google.golang.org/grpc"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/test/cluster"
	"github.com/tarlift/tarlift/test/stage"
)

func TestMain(m *testing.M) {
	log.SetLogger(logr.Discard())
	cluster.Main(m)
}

const (
	mib = 1 << 20
	// patience bounds every wait. It is long because the machine may be slow, and is never used up otherwise.
	patience = 3 * time.Minute
)

// env is a stage with a typed client.
type env struct {
	*stage.Stage
	kube client.Client
}

// archive reads an ImageArchive.
func (e *env) archive(t *testing.T, name string) *v1alpha1.ImageArchive {
	t.Helper()
	a := &v1alpha1.ImageArchive{}
	if err := e.kube.Get(t.Context(), client.ObjectKey{Name: name}, a); err != nil {
		t.Fatal(err)
	}
	return a
}

// newEnv starts a cluster of three nodes. kubelet replaces members of the kubelets' configuration.
func newEnv(t *testing.T, kubelet map[string]any) *env {
	t.Helper()
	return newEnvOf(t, cluster.Options{Nodes: 3, Kubelet: kubelet})
}

func newEnvOf(t *testing.T, o cluster.Options) *env {
	t.Helper()
	o.Progress = t.Output()
	s, err := stage.Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Down(); err != nil {
			t.Error(err)
		}
	})
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	c, err := client.New(s.Config(), client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	return &env{s, c}
}

// eventually waits until done returns nothing; what it returns says what is still missing.
func eventually(t *testing.T, done func(context.Context) (missing string)) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		missing := done(t.Context())
		if missing == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %s: %s", patience, missing)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// apply applies an ImageArchive for one of the server's files.
func (e *env) apply(t *testing.T, name, file string, spec ...string) {
	t.Helper()
	if err := e.Apply(t.Context(), e.Archive(name, file, spec...)); err != nil {
		t.Fatal(err)
	}
}

// ready waits until an archive's current generation is Ready on all three nodes.
func (e *env) ready(t *testing.T, name string) *v1alpha1.ImageArchive {
	t.Helper()
	var a *v1alpha1.ImageArchive
	eventually(t, func(context.Context) string {
		a = e.archive(t, name)
		if a.Status.ObservedGeneration == a.Generation && a.Status.Nodes != nil && a.Status.Nodes.Ready == 3 &&
			meta.IsStatusConditionTrue(a.Status.Conditions, v1alpha1.ConditionReady) {
			return ""
		}
		return fmt.Sprintf("%s is not Ready: %s", name, asJSON(a.Status))
	})
	return a
}

func asJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// on returns what a node reports of an archive, nil for nothing.
func (e *env) on(ctx context.Context, n *cluster.Node, name string) *v1alpha1.ArchiveState {
	var s v1alpha1.NodeImageState
	if err := e.kube.Get(ctx, client.ObjectKey{Name: n.Name}, &s); err != nil {
		return nil
	}
	for k := range s.Status.Archives {
		if s.Status.Archives[k].Name == name {
			return &s.Status.Archives[k]
		}
	}
	return nil
}

// missing is what a node would have to read of a file, by the plan of the agent itself.
func (e *env) missing(t *testing.T, n *cluster.Node, file string) int64 {
	t.Helper()
	cmd := exec.Command("bin/agent", "inspect", "--plan", "-o", "json", filepath.Join(e.Files, file))
	cmd.Dir = moduleRoot(t)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, t.Output()
	if err := n.Run(cmd); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	var inspected struct {
		Plan struct{ Bytes struct{ Total, Move int64 } }
	}
	if err := json.Unmarshal([]byte(out.String()), &inspected); err != nil {
		t.Fatal(err)
	}
	if inspected.Plan.Bytes.Total == 0 {
		t.Fatalf("no plan in %s", out.String())
	}
	return inspected.Plan.Bytes.Move
}

func moduleRoot(t *testing.T) string {
	t.Helper()
	root, err := cluster.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// sentAtMost asserts what a node has read from the server.
func (e *env) sentAtMost(t *testing.T, n *cluster.Node, limit int64) {
	t.Helper()
	sent := e.Server.Sent(n.IP)
	t.Logf("%s read %d bytes, at most %d", n.Name, sent, limit)
	if sent > limit {
		t.Errorf("%s read %d bytes, more than %d", n.Name, sent, limit)
	}
}

// criImage is an image as the kubelet sees it, nil if it does not.
func criImage(t *testing.T, n *cluster.Node, name string) *runtimeapi.Image {
	t.Helper()
	c := nodeClient(t, n)
	conn, ok := c.Conn().(grpc.ClientConnInterface)
	if !ok {
		t.Fatalf("a connection of type %T", c.Conn())
	}
	r, err := runtimeapi.NewImageServiceClient(conn).ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}})
	if err != nil {
		t.Fatal(err)
	}
	return r.Image
}

func nodeClient(t *testing.T, n *cluster.Node) *containerd.Client {
	t.Helper()
	c, err := n.Client()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// names are the images of a node with their digests, sorted.
func names(t *testing.T, n *cluster.Node) []string {
	t.Helper()
	images, err := nodeClient(t, n).ImageService().List(namespaces.WithNamespace(t.Context(), "k8s.io"))
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, i := range images {
		all = append(all, i.Name+" "+i.Target.Digest.String())
	}
	slices.Sort(all)
	return all
}

// killAgent ends the agent's container on a node the hard way. The kubelet starts another.
func killAgent(t *testing.T, n *cluster.Node) {
	t.Helper()
	ctx := namespaces.WithNamespace(t.Context(), "k8s.io")
	containers, err := nodeClient(t, n).Containers(ctx, `labels."io.kubernetes.container.name"==agent`)
	if err != nil {
		t.Fatal(err)
	}
	killed := 0
	for _, c := range containers {
		info, err := c.Info(ctx)
		if err != nil || !strings.HasPrefix(info.Labels["io.kubernetes.pod.name"], "tarlift-node-") {
			continue
		}
		task, err := c.Task(ctx, nil)
		if err != nil {
			continue // a container that has ended already
		}
		if err := task.Kill(ctx, syscall.SIGKILL); err == nil {
			killed++
		}
	}
	if killed != 1 {
		t.Fatalf("killed %d agents on %s", killed, n.Name)
	}
}

// write puts an archive of incompressible layers of 8 MiB each onto the server.
func (e *env) write(t *testing.T, file, name string, layers ...string) {
	t.Helper()
	p := builder.PlatformImage{Platform: builder.Platform("linux/amd64")}
	for k, l := range layers {
		p.Layers = append(p.Layers, builder.Layer{Files: []builder.File{builder.Noise(l, seed(l)+uint64(k), 8*mib)}})
	}
	f, err := os.Create(filepath.Join(e.Files, file))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := (builder.Archive{Images: []builder.Image{{Names: []string{name}, Platforms: []builder.PlatformImage{p}}}}).WriteTo(f); err != nil {
		t.Fatal(err)
	}
}

func seed(s string) (n uint64) {
	for _, c := range s {
		n = n*31 + uint64(c)
	}
	return n << 8
}
