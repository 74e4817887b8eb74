package main

import (
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/test/cluster"
)

var slow = flag.Bool("slow", false, "run what takes minutes, too")

// maxIdle is the anonymous memory of an agent that has nothing to do. The pages of its own program, some 35 MiB, can go
// whenever somebody else wants the room.
const maxIdle = 24 << 20

// TestIdleAgent looks at the program as it is shipped, on a real containerd, some time after it has imported 20 archives.
func TestIdleAgent(t *testing.T) {
	if !*slow {
		t.Skip("waits for three minutes; `make test-slow` runs it")
	}
	n, err := cluster.StartContainerd(t.Context(), cluster.ContainerdOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Stop(); err != nil {
			t.Error(err)
		}
	})
	plane, err := startControlPlane(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := plane.stop(); err != nil {
			t.Error(err)
		}
	})
	specs, err := plane.makeNodes(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	dir, kubeconfig := t.TempDir(), filepath.Join(t.TempDir(), "kubeconfig")
	if err := plane.writeKubeconfig(kubeconfig, specs[0].Token); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		name := fmt.Sprintf("archive-%02d", i)
		writeImages(t, filepath.Join(dir, name+".tar"), name)
		a := &v1alpha1.ImageArchive{ObjectMeta: metav1.ObjectMeta{Name: name}}
		a.Spec.Source.File = &v1alpha1.FileSource{Path: name + ".tar"}
		if err := plane.client.Create(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(buildAgent(t), "node", "--node-name="+specs[0].Node, "--address="+n.ContainerdAddress, "--archive-dir="+dir,
		"--disk-reserve=0", "--metrics-bind-address=0", "--health-probe-bind-address=0")
	cmd.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig)
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	waitImported(t, plane, specs[0].Node, "20/20")

	agent := process(cmd.Process.Pid)
	anonymous := func() int64 {
		size, err := agent.memory("RssAnon")
		if err != nil {
			t.Fatal(err)
		}
		return size
	}
	before, err := agent.cpu()
	if err != nil {
		t.Fatal(err)
	}
	begin, after := time.Now(), anonymous()
	// What imports used goes back when the runtime collects garbage, at the latest every two minutes.
	for time.Since(begin) < 3*time.Minute && (time.Since(begin) < 20*time.Second || anonymous() > maxIdle) {
		time.Sleep(time.Second)
	}
	used, err := agent.cpu()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("anonymous memory: %s after the imports, %s when idle for %s; %.2f %% of a core", mib(float64(after)), mib(float64(anonymous())),
		time.Since(begin).Round(time.Second), 100*(used-before).Seconds()/time.Since(begin).Seconds())
	if got := anonymous(); got > maxIdle {
		t.Errorf("anonymous memory of an idle agent: %s, at most %s", mib(float64(got)), mib(maxIdle))
	}
}

// writeImages writes an archive of five images with 8 MiB of their own.
func writeImages(t *testing.T, path, name string) {
	t.Helper()
	var a builder.Archive
	for i := range 5 {
		noise := make([]byte, 8<<20/5)
		_, _ = rand.Read(noise) // never fails
		a.Images = append(a.Images, builder.Image{
			Names: []string{fmt.Sprintf("docker.io/library/%s-%d:1", name, i)},
			Platforms: []builder.PlatformImage{{
				Platform: builder.Platform("linux/" + runtime.GOARCH),
				Layers:   []builder.Layer{{Compression: builder.Gzip, Level: 1, Files: []builder.File{{Name: "noise", Data: noise}}}},
			}},
		})
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := a.WriteTo(f); err != nil {
		t.Fatal(err)
	}
}

func waitImported(t *testing.T, plane *controlPlane, node, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var state v1alpha1.NodeImageState
	for state.Status.Summary != want {
		if err := plane.client.Get(ctx, client.ObjectKey{Name: node}, &state); client.IgnoreNotFound(err) != nil {
			t.Fatalf("wait until the node has %s archives; it has %q: %v", want, state.Status.Summary, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}
