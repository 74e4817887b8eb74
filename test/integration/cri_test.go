package integration

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/test/cluster"
)

// reconfigure replaces text of containerd's configuration and restarts it.
func (r *runtime) reconfigure(t *testing.T, old, now string) {
	t.Helper()
	file := filepath.Join(r.Dir, "containerd.toml")
	text, err := os.ReadFile(file)
	if err == nil && !strings.Contains(string(text), old) {
		err = errors.New("the configuration has no such text")
	}
	if err == nil {
		err = os.WriteFile(file, []byte(strings.ReplaceAll(string(text), old, now)), 0o600)
	}
	if err == nil {
		err = r.Containerd.Restart(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// After an import the kubelet finds each name, or the import says which it does not find, or why that is not known.
func TestImportSaysWhatTheKubeletFinds(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{CRI: true})
	b, data := built(t, sample("cri.example/app:1", 1))
	file := fileOf(t, data)
	for _, when := range []string{"at first", "again"} {
		if o := r.agentImport(t, nil, file); o.code != 0 || o.NotVisible != nil || o.CRI != "" || strings.Contains(o.errOut, "warning") {
			t.Errorf("%s: exit code %d, not visible %q, unknown %q: %s", when, o.code, o.NotVisible, o.CRI, o.errOut)
		}
	}
	// CRI looks for this machine's platform.
	foreign := r.agentImport(t, nil, "--platform", "linux/arm64", "--no-unpack", "--rename", "cri.example/=foreign.example/", file)
	want := names("foreign.example/app:1", b.Images[0].Target.Digest, b.Images[0].Platforms[1].Config.Digest)
	_, other := built(t, sample("cri.example/other:1", 7))
	if foreign.code != 0 || foreign.CRI != "" || !strings.Contains(foreign.errOut, "the kubelet does not find") || !slices.Equal(foreign.NotVisible, want) {
		t.Errorf("foreign platform: exit code %d, not visible %q, unknown %q: %s", foreign.code, foreign.NotVisible, foreign.CRI, foreign.errOut)
	}
	// The check of what an ImageArchive has imported finds the same.
	i := r.importerWith(t, importer.Options{Platform: "linux/arm64"})
	req := importer.Request{
		Owner:     importer.Owner{Name: "foreign", UID: "foreign", SpecHash: "1"},
		Selection: archive.Selection{Rename: []archive.Rename{{From: "cri.example/", To: "checked.example/"}}},
	}
	if _, err := i.Import(t.Context(), open(t, file), req); err != nil {
		t.Fatal(err)
	}
	checked, loss, ok, err := i.Imported(t.Context(), req.Owner)
	if err != nil || !ok || loss != "" || checked.CRI != "" || !slices.Equal(checked.NotVisible, []string{"checked.example/app:1"}) {
		t.Errorf("the check: loss %q, %v, not visible %q, unknown %q, %v", loss, ok, checked.NotVisible, checked.CRI, err)
	}
	// Whoever imports into another namespace means it.
	if o := r.agentImport(t, other, "--namespace", "other", "-"); o.code != 0 || o.NotVisible != nil || o.CRI != "" || o.errOut != "" {
		t.Errorf("other namespace: exit code %d, not visible %q, unknown %q: %s", o.code, o.NotVisible, o.CRI, o.errOut)
	}
}

func TestImportWithoutCRI(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{})
	_, data := built(t, sample("cri.example/app:1", 1))
	if o := r.agentImport(t, data, "-"); o.code != 0 || o.NotVisible != nil || !strings.Contains(o.CRI, "does not serve CRI") || !strings.Contains(o.errOut, "warning") {
		t.Errorf("exit code %d, not visible %q, unknown %q: %s", o.code, o.NotVisible, o.CRI, o.errOut)
	}
}

// Layers go where CRI looks for them, unless a snapshotter is asked for.
func TestSnapshotterIsCRIs(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{CRI: true})
	_, data := built(t, sample("cri.example/app:1", 1))
	if got := r.snapshotter(t, importer.Options{}); got != "overlayfs" {
		t.Errorf("by default %q", got)
	}
	r.reconfigure(t, "snapshotter = 'overlayfs'", "snapshotter = 'native'")
	if got := r.snapshotter(t, importer.Options{}); got != "native" {
		t.Errorf("CRI uses native, the importer %q", got)
	}
	if got := r.snapshotter(t, importer.Options{Snapshotter: "overlayfs"}); got != "overlayfs" {
		t.Errorf("overlayfs was asked for, %q is used", got)
	}
	if got := r.snapshotter(t, importer.Options{Namespace: "other"}); got != "overlayfs" {
		t.Errorf("in another namespace: %q", got)
	}
	if o := r.agentImport(t, data, "-"); o.code != 0 {
		t.Fatalf("exit code %d: %s", o.code, o.errOut)
	}
	found := 0
	err := r.SnapshotService("native").Walk(r.ctx, func(context.Context, snapshots.Info) error { found++; return nil })
	if err != nil || found != 2 {
		t.Errorf("%d snapshots, %v", found, err)
	}
}

func (r *runtime) snapshotter(t *testing.T, o importer.Options) string {
	t.Helper()
	got, err := r.importerWith(t, o).Runtime(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return got.Snapshotter
}

// A dry run changes nothing, and ends as the import then does.
func TestAgentDryRun(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{})
	r.bystander(t)
	b, data := built(t, sample("cli.example/app:1", 1))
	file, need := fileOf(t, data), needed(b)
	taken := []string{"--rename", "cli.example/app:1=bystander.example/x:1"}
	for name, tc := range map[string]struct {
		args   []string
		code   int
		change importer.NameChange
		reason string
	}{
		"new":                 {nil, 0, importer.NameNew, ""},
		"conflict":            {taken, 1, importer.NameConflict, "NameConflict"},
		"replaced":            {append(taken, "--conflict", "replace"), 0, importer.NameMoved, ""},
		"no room":             {[]string{"--disk-reserve", "99.9999%"}, 1, importer.NameNew, "InsufficientDisk"},
		"no such platform":    {[]string{"--platform", "linux/riscv64"}, 1, "", "NoMatchingPlatform"},
		"unknown snapshotter": {[]string{"--snapshotter", "floppy"}, 1, "", "ImportFailed"},
	} {
		t.Run(name, func(t *testing.T) {
			before := r.state(t)
			var o struct {
				importer.DryRun
				Error *struct{ Reason, Message string } `json:"error"`
			}
			code, errOut := run(t, r.command(t, "import", append([]string{"--dry-run", file}, tc.args...)...), &o)
			if code != tc.code || (o.Error == nil) != (tc.reason == "") || o.Error != nil && o.Error.Reason != tc.reason {
				t.Errorf("exit code %d, error %+v: %s", code, o.Error, errOut)
			}
			if tc.change != "" && (o.Plan == nil || o.Plan.Bytes.Move != need || len(o.Names) != 3 || o.Names[0].Change != tc.change || len(o.Disks) == 0) {
				t.Errorf("%+v", o.DryRun)
			}
			unchanged(t, before, r.state(t))
		})
	}
	cmd := r.command(t, "import", append(taken, "--dry-run", "-o", "text", file)...)
	text, err := cmd.Output()
	for _, want := range []string{"IMAGE", "TO TRANSFER", "bystander.example/x:1", "linux/amd64", "conflict: now sha256:", "would transfer 5 of 5 blobs"} {
		if err == nil || !strings.Contains(string(text), want) {
			t.Errorf("%v, %q is missing: %s", err, want, text)
		}
	}
	t.Logf("%s", text)
	if o := r.agentImport(t, nil, file); o.code != 0 || o.Bytes.Written != need {
		t.Errorf("the import: exit code %d, %+v", o.code, o.Bytes)
	}
}
