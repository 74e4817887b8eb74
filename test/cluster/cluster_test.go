package cluster

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
)

func TestMain(m *testing.M) { Main(m) }

func TestContainerd(t *testing.T) {
	for _, cri := range []bool{false, true} {
		t.Run(map[bool]string{false: "bare", true: "CRI"}[cri], func(t *testing.T) {
			before := surroundings(t)
			ignore := goleak.IgnoreCurrent()
			began := time.Now()
			n, err := StartContainerd(t.Context(), ContainerdOptions{CRI: cri, Progress: t.Output()})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("ready after %.2f s", time.Since(began).Seconds())
			loadPause(t, n)
			if err := n.Containerd.Restart(t.Context()); err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff([]string{pauseImage}, imageNames(t, n)); diff != "" {
				t.Errorf("images after a restart (-want +got):\n%s", diff)
			}
			if err := n.Stop(); err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(before, surroundings(t)); diff != "" {
				t.Errorf("not as before (-before +after):\n%s", diff)
			}
			goleak.VerifyNone(t, ignore)
		})
	}
}

func TestContainerdRootElsewhere(t *testing.T) {
	root := t.TempDir()
	n, err := StartContainerd(t.Context(), ContainerdOptions{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	loadPause(t, n)
	if err := n.Stop(); err != nil {
		t.Error(err)
	}
	if blobs, _ := filepath.Glob(filepath.Join(root, "io.containerd.content.v1.content/blobs/sha256/*")); len(blobs) == 0 {
		t.Error("the root directory of somebody else was emptied, or not used")
	}
}

// loadPause makes containerd work, down to a mounted snapshot.
func loadPause(t *testing.T, n *Node) {
	t.Helper()
	archive, err := pauseArchive(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := n.load(t.Context(), archive); err != nil {
		t.Fatal(err)
	}
}

// imageNames are those of containerd, without the records that CRI makes.
func imageNames(t *testing.T, n *Node) []string {
	t.Helper()
	c, err := n.Client()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	list, err := c.ImageService().List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, image := range list {
		if !strings.HasPrefix(image.Name, "sha256:") {
			names = append(names, image.Name)
		}
	}
	return names
}

// One cluster for all that can be seen of one: starting takes longest.
func TestCluster(t *testing.T) {
	before := surroundings(t)
	ignore := goleak.IgnoreCurrent()
	var mu sync.Mutex
	var bootstrapped []string
	began := time.Now()
	c, err := Start(t.Context(), Options{Nodes: 2, Progress: t.Output(), Bootstrap: func(_ context.Context, n *Node) error {
		mu.Lock()
		defer mu.Unlock()
		bootstrapped = append(bootstrapped, n.Name)
		if n.Kubelet.PID() != 0 {
			t.Errorf("%s: its kubelet is running already", n.Name)
		}
		if !slices.Contains(imageNames(t, n), pauseImage) {
			t.Errorf("%s: no pause image yet", n.Name)
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Stop() })
	t.Logf("ready after %.1f s", time.Since(began).Seconds())
	slices.Sort(bootstrapped)
	if diff := cmp.Diff([]string{"node-a", "node-b"}, bootstrapped); diff != "" {
		t.Errorf("bootstrapped (-want +got):\n%s", diff)
	}

	t.Run("one at a time", func(t *testing.T) {
		if _, err := Start(t.Context(), Options{}); err == nil {
			t.Error("a second cluster has started")
		}
	})
	t.Run("nodes are machines", func(t *testing.T) { testNodesAreMachines(t, c) })
	t.Run("pods", func(t *testing.T) { testPods(t, c) })
	t.Run("restarts", func(t *testing.T) { testRestarts(t, c) })
	t.Run("power", func(t *testing.T) { testPower(t, c) })

	began = time.Now()
	if err := c.Stop(); err != nil {
		t.Error(err)
	}
	t.Logf("stopped after %.1f s", time.Since(began).Seconds())
	if diff := cmp.Diff(before, surroundings(t)); diff != "" {
		t.Errorf("not as before (-before +after):\n%s", diff)
	}
	goleak.VerifyNone(t, ignore)
}

func testNodesAreMachines(t *testing.T, c *Cluster) {
	for _, n := range c.Nodes {
		if got := output(t, n, "hostname"); got != n.Name {
			t.Errorf("host name %q, want %q", got, n.Name)
		}
		if got := output(t, n, "cat", "/proc/sys/kernel/panic_on_oops", "/proc/1/comm"); !strings.HasPrefix(got, "1\n") {
			t.Errorf("kernel settings and first process: %q", got)
		}
		mine := filepath.Join(n.Dir, "tarlift", "archive.tar")
		if err := os.WriteFile(mine, []byte(n.Name), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := output(t, n, "cat", "/var/lib/tarlift/archive.tar"); got != n.Name {
			t.Errorf("file on %s: %q", n.Name, got)
		}
	}
	on := exec.Command("sh", "-c", "on node-b hostname")
	on.Env = append(os.Environ(), c.Env()...)
	if got, err := on.CombinedOutput(); err != nil || string(got) != "node-b\n" {
		t.Errorf("on: %q, %v", got, err)
	}
}

// output of a command that runs on the node.
func output(t *testing.T, n *Node, name string, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := n.Run(cmd); err != nil {
		t.Errorf("%s on %s: %v: %s", name, n.Name, err, &out)
	}
	return strings.TrimSpace(out.String())
}

func podsOf(t *testing.T, c *Cluster) corev1client.PodInterface {
	t.Helper()
	api, err := corev1client.NewForConfig(c.Config())
	if err != nil {
		t.Fatal(err)
	}
	return api.Pods(metav1.NamespaceSystem)
}

// A pod on every node with what the agent's has: the host's network, a port,
// containerd's socket, and a token.
func testPods(t *testing.T, c *Cluster) {
	pods := podsOf(t, c)
	propagation := corev1.MountPropagationHostToContainer
	for _, n := range c.Nodes {
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: n.Name, Namespace: metav1.NamespaceSystem},
			Spec: corev1.PodSpec{
				NodeName: n.Name, HostNetwork: true, PriorityClassName: "system-node-critical",
				SecurityContext: &corev1.PodSecurityContext{SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
				Containers: []corev1.Container{{
					Name: "pause", Image: pauseImage, ImagePullPolicy: corev1.PullNever,
					Ports:        []corev1.ContainerPort{{ContainerPort: 9461}},
					VolumeMounts: []corev1.VolumeMount{{Name: "run", MountPath: "/run/containerd", MountPropagation: &propagation}},
				}},
				Volumes: []corev1.Volume{{Name: "run", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/run/containerd"}}}},
			},
		}
		create := func() error {
			_, err := pods.Create(t.Context(), pod, metav1.CreateOptions{})
			return err
		}
		if err := eventually(create); err != nil { // the service account is made at its time
			t.Fatal(err)
		}
	}
	awaitPods(t, c)
}

// awaitPods waits until the pods of testPods are Ready as the kubelets running now see them.
func awaitPods(t *testing.T, c *Cluster) {
	t.Helper()
	pods := podsOf(t, c)
	err := eventually(func() error {
		for _, n := range c.Nodes {
			pod, err := pods.Get(t.Context(), n.Name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			ready := slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
				return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
			})
			if !ready {
				return errors.New(n.Name + ": not ready: " + pod.Status.String())
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func testRestarts(t *testing.T, c *Cluster) {
	a := c.Nodes[0]
	for _, d := range []*Daemon{a.Containerd, a.Kubelet, c.Scheduler, c.ControllerManager, c.APIServer, c.Etcd} {
		t.Run(d.Name, func(t *testing.T) {
			before := d.PID()
			began := time.Now()
			if err := d.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
			if d.PID() != 0 {
				t.Error("still running")
			}
			stopped := time.Now()
			if err := d.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			if d.PID() == before {
				t.Error("the same process")
			}
			t.Logf("stopped in %.1f s, started in %.1f s", stopped.Sub(began).Seconds(), time.Since(stopped).Seconds())
			if err := d.Start(t.Context()); err == nil {
				t.Error("started twice")
			}
		})
	}
	if err := c.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	awaitPods(t, c)
}

func testPower(t *testing.T, c *Cluster) {
	b := c.Nodes[1]
	containers := func() int {
		listed, _ := os.ReadDir(filepath.Join(b.Dir, "run", "io.containerd.runtime.v2.task", "k8s.io")) // made with the first
		return len(listed)
	}
	if containers() == 0 {
		t.Error("no containers are running before")
	}
	stray := exec.Command("sleep", "infinity")
	if err := b.Start(stray); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- stray.Wait() }()
	b.PowerOff()
	if err := <-ended; err == nil {
		t.Error("a command on the node has ended by itself")
	}
	if b.Containerd.PID() != 0 || b.Kubelet.PID() != 0 {
		t.Error("a daemon still runs")
	}
	if err := b.Start(exec.Command("true")); err == nil {
		t.Error("a program has started on a node without power")
	}
	if err := b.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := imageNames(t, b); !slices.Contains(got, pauseImage) {
		t.Errorf("images after power was back: %q", got)
	}
	if err := c.WaitReady(t.Context(), b.Name); err != nil {
		t.Fatal(err)
	}
	if err := eventually(func() error {
		if containers() == 0 {
			return errors.New("no container has been started again")
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

func TestStartCancelled(t *testing.T) {
	before := surroundings(t)
	ignore := goleak.IgnoreCurrent()
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("changed my mind")
	_, err := Start(ctx, Options{Nodes: 1, Progress: t.Output(), Bootstrap: func(context.Context, *Node) error {
		cancel(why)
		return nil
	}})
	if !errors.Is(err, why) {
		t.Errorf("error %v, want the cause", err)
	}
	if diff := cmp.Diff(before, surroundings(t)); diff != "" {
		t.Errorf("not as before (-before +after):\n%s", diff)
	}
	goleak.VerifyNone(t, ignore)
}

func TestBootstrapFails(t *testing.T) {
	broken := errors.New("no images on this stick")
	_, err := Start(t.Context(), Options{Nodes: 1, Bootstrap: func(context.Context, *Node) error { return broken }})
	if !errors.Is(err, broken) {
		t.Errorf("error %v, want the hook's", err)
	}
}

// surroundings are all processes and mounts of this namespace, its addresses,
// and the work directory and cgroups: the tests run in it alone.
func surroundings(t *testing.T) map[string]any {
	t.Helper()
	addresses, err := exec.Command("ip", "-oneline", "address").Output()
	if err != nil {
		t.Fatal(err)
	}
	var processes []string
	cmdlines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range cmdlines {
		if text, err := os.ReadFile(file); err == nil && len(text) > 0 { // kernel threads and zombies have none
			processes = append(processes, string(bytes.ReplaceAll(text, []byte{0}, []byte(" "))))
		}
	}
	slices.Sort(processes)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(workDir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	cgroups, err := filepath.Glob(filepath.Join(cgroupFS, "*", filepath.Base(workDir)))
	if err != nil {
		t.Fatal(err)
	}
	return map[string]any{
		"addresses": string(addresses), "processes": processes, "mounts": string(mounts), "files": files, "cgroups": cgroups,
	}
}
