package integration

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/test/cluster"
	"github.com/tarlift/tarlift/test/node"
)

// writes runs `tarlift bundle` or `tarlift export`, which must succeed, and returns the archive's path.
func (r *runtime) writes(t *testing.T, command string, args ...string) string {
	t.Helper()
	tarlift, err := node.Tarlift()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), command+".tar")
	out, err := exec.Command(tarlift, append([]string{command, "--address", r.ContainerdAddress, "-o", file}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("tarlift %s %q: %v: %s", command, args, err, out)
	}
	return file
}

// ctrImages runs `ctr images` in a namespace of the same containerd.
func (r *runtime) ctrImages(t *testing.T, namespace string, args ...string) string {
	t.Helper()
	cmd := exec.Command("../../bin/tools/ctr", append([]string{"-a", r.ContainerdAddress, "-n", namespace, "images"}, args...)...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("ctr images %q: %v: %s", args, err, errs.String())
	}
	return string(out)
}

// targets are the digests of all names but references by digest and CRI's ids.
func (r *runtime) targets(t *testing.T, namespace string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for line := range strings.Lines(r.ctrImages(t, namespace, "list")) {
		if f := strings.Fields(line); len(f) > 2 && f[0] != "REF" && !strings.Contains(f[0], "@") && !strings.HasPrefix(f[0], "sha256:") {
			out[f[0]] = f[2]
		}
	}
	return out
}

// What is in containerd goes into an archive and comes back, by the agent and by ctr, as it was; and reading it
// leaves no trace.
func TestBundleOfContainerd(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{})
	a := builder.Archive{Images: []builder.Image{
		image("bundle.example/team/app:1", noise(1, 100_000), noise(2, 50_000)),
		image("bundle.example/team/child:1", noise(1, 100_000), noise(2, 50_000), noise(3, 70_000)),
		image("docker.io/library/tool:2", noise(4, 1000)),
	}}
	b, data := built(t, a)
	if o := r.agentImport(t, data, "-"); o.code != 0 {
		t.Fatal(o.errOut)
	}
	want := map[string]string{}
	for _, img := range b.Images {
		want[img.Names[0]] = img.Target.Digest.String()
	}

	before := r.state(t)
	file := r.writes(t, "bundle", "containerd:**")
	same := r.writes(t, "export", "tool:2", "bundle.example/**")
	unchanged(t, before, r.state(t))
	one, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	two, err := os.ReadFile(same)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one, two) {
		t.Error("the same images in another order gave other bytes")
	}
	// The archive that they came from, for this platform, too: nothing of containerd is in it.
	three, err := os.ReadFile(r.writes(t, "bundle", "--platform", "linux/amd64", fileOf(t, data)))
	if err != nil || !bytes.Equal(one, three) {
		t.Errorf("made of the archive it is another: %v", err)
	}

	// By ctr, also under its own strict platform, and by the agent as a file and as a stream.
	r.ctrImages(t, "by-ctr", "import", "--local", "--platform", "linux/amd64", "--no-unpack", file)
	r.ctrImages(t, "by-ctr-transfer", "import", "--platform", "linux/amd64", "--no-unpack", file)
	for namespace, arg := range map[string]string{"by-agent": file, "by-stream": "-"} {
		if o := r.agentImport(t, one, "--namespace", namespace, "--no-unpack", arg); o.code != 0 {
			t.Errorf("%s: %s", namespace, o.errOut)
		}
	}
	for _, namespace := range []string{"by-ctr", "by-ctr-transfer", "by-agent", "by-stream"} {
		if diff := cmp.Diff(want, r.targets(t, namespace)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", namespace, diff)
		}
	}

	// What ctr exports of it is another tar of the same images, of which the same bundle is made.
	exported := filepath.Join(t.TempDir(), "ctr.tar")
	r.ctrImages(t, "k8s.io", append([]string{"export", "--local", "--platform", "linux/amd64", exported}, "bundle.example/team/app:1", "bundle.example/team/child:1", "docker.io/library/tool:2")...)
	four, err := os.ReadFile(r.writes(t, "bundle", exported))
	if err != nil || !bytes.Equal(one, four) {
		t.Errorf("made of ctr's export it is another: %v", err)
	}
}

// What cannot be written says why, and nothing is written.
func TestBundleOfContainerdFailures(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{})
	b, data := built(t, sample("bundle.example/app:1", 1))
	if o := r.agentImport(t, data, "-"); o.code != 0 {
		t.Fatal(o.errOut)
	}
	layer := b.Images[0].Platforms[0].Layers[0].Digest
	for _, tc := range []struct {
		name   string
		args   []string
		reason string
		before func() error
	}{
		{"no such image", []string{"bundle.example/app:2"}, "SourceNotFound", nil},
		{"no such glob", []string{"other.example/**"}, "SourceNotFound", nil},
		{"another platform", []string{"--platform", "linux/arm64", "bundle.example/app:1"}, "ContentIncomplete", nil},
		{"a platform that the index lacks", []string{"--platform", "linux/s390x", "bundle.example/app:1"}, "NoMatchingPlatform", nil},
		{"a layer that containerd discarded", []string{"bundle.example/app:1"}, "ContentIncomplete", func() error { return r.ContentStore().Delete(r.ctx, layer) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.before != nil {
				if err := tc.before(); err != nil {
					t.Fatal(err)
				}
			}
			tarlift, err := node.Tarlift()
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			cmd := exec.Command(tarlift, append([]string{"export", "--address", r.ContainerdAddress, "--output", "json", "-o", filepath.Join(dir, "x.tar")}, tc.args...)...)
			var o struct {
				Error struct{ Reason, Message string }
			}
			if code, errOut := run(t, cmd, &o); code != 1 || o.Error.Reason != tc.reason {
				t.Errorf("exit code %d, %+v, want %s: %s", code, o.Error, tc.reason, errOut)
			}
			if list, err := os.ReadDir(dir); err != nil || len(list) > 0 {
				t.Errorf("left: %v, %v", list, err)
			}
		})
	}
}

// crane, which reads docker archives and unpacked layouts, finds in them what was written.
func TestBundleByCrane(t *testing.T) {
	_, data := built(t, builder.Archive{Images: []builder.Image{{Names: []string{"bundle.example/app:1"}, Platforms: []builder.PlatformImage{
		{Platform: builder.Platform("linux/amd64"), Layers: []builder.Layer{noise(1, 10_000), noise(2, 5000)}},
	}}}})
	r := startRuntime(t, cluster.ContainerdOptions{})
	file := r.writes(t, "bundle", fileOf(t, data))
	out, err := exec.Command("../../bin/tools/crane", "validate", "--tarball", file).CombinedOutput()
	if err != nil {
		t.Errorf("crane validate: %v: %s", err, out)
	}
	dir := t.TempDir()
	if out, err := exec.Command("tar", "-C", dir, "-xf", file).CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	again, err := os.ReadFile(r.writes(t, "bundle", dir))
	if err != nil {
		t.Fatal(err)
	}
	if whole, err := os.ReadFile(file); err != nil || !slices.Equal(whole, again) {
		t.Errorf("of the unpacked bundle another one is made: %v", err)
	}
}
