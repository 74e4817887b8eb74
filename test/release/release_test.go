// Package release_test makes a release twice, as `make release` does, and looks at it as whoever downloads it would.
package release_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/google/go-cmp/cmp"
)

const (
	root    = "../.."
	version = "1.2.3-rc.1"
	// maxBinary is far from what the agent has: a dependency that doubles it shall not come unnoticed.
	maxBinary = 64 << 20
	// maxTool likewise for tarlift, which has neither controllers nor a client of the API server.
	maxTool = 32 << 20
	// committed is long ago: what takes the clock's time instead shows in the package of the chart.
	committed = "1700000000"
)

// tree copies the project's files, whether they are committed or not, to a new directory.
func tree(t *testing.T, dir string) string {
	t.Helper()
	names := output(t, root, nil, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	for name := range strings.SplitSeq(strings.TrimRight(names, "\x00"), "\x00") {
		from, to := filepath.Join(root, name), filepath.Join(dir, name)
		info, err := os.Lstat(from)
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted, but not yet for git
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, data, info.Mode().Perm()); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// run runs a program in a directory, and returns all that it prints.
func run(t *testing.T, dir string, env []string, name string, args ...string) (stdout, all string, err error) {
	t.Helper()
	var out, both bytes.Buffer
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	// Not as a part of the make that runs this test.
	cmd.Env = append(os.Environ(), append([]string{"MAKEFLAGS=", "MAKELEVEL="}, env...)...)
	cmd.Stdout, cmd.Stderr = io.MultiWriter(&out, &both), &both
	err = cmd.Run()
	return out.String(), both.String(), err
}

func output(t *testing.T, dir string, env []string, name string, args ...string) string {
	t.Helper()
	out, all, err := run(t, dir, env, name, args...)
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, all)
	}
	return out
}

// committedTree is a clone: a tree whose files are all committed.
func committedTree(t *testing.T) string {
	t.Helper()
	dir := tree(t, t.TempDir())
	env := []string{"GIT_COMMITTER_DATE=" + committed + " +0100"}
	output(t, dir, nil, "git", "init", "--quiet")
	output(t, dir, nil, "git", "add", ".")
	output(t, dir, env, "git", "-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "--quiet", "-m", "all")
	return dir
}

func TestRelease(t *testing.T) {
	clone := committedTree(t)
	output(t, clone, nil, "make", "release", "VERSION="+version)
	dist := filepath.Join(clone, "dist")

	t.Run("twice the same", func(t *testing.T) {
		// A source archive knows no commits; it may lie elsewhere, belong to somebody with other habits, and be of today.
		archive := tree(t, filepath.Join(t.TempDir(), "another", "place"))
		output(t, archive, []string{"SOURCE_DATE_EPOCH=" + committed, "TZ=Asia/Tokyo"},
			"sh", "-c", "umask 077 && make release DIRTY=1 VERSION="+version)
		if diff := cmp.Diff(files(t, dist), files(t, filepath.Join(archive, "dist"))); diff != "" {
			t.Errorf("modes and checksums (-once +again):\n%s", diff)
		}
	})
	t.Run("files", func(t *testing.T) { testFiles(t, dist) })
	t.Run("binaries", func(t *testing.T) { testBinaries(t, dist) })
	t.Run("chart and image", func(t *testing.T) { testChartAndImage(t, clone, dist) })
	t.Run("bill of materials", func(t *testing.T) { testBill(t, dist) })
	t.Run("changed tree", func(t *testing.T) {
		if err := os.WriteFile(filepath.Join(clone, "cmd/agent/more.go"), []byte("package main\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, all, err := run(t, clone, nil, "make", "release", "VERSION="+version)
		var exit *exec.ExitError
		if !errors.As(err, &exit) || !strings.Contains(all, "cmd/agent/more.go") {
			t.Errorf("make release: %v\n%s", err, all)
		}
	})
}

func TestVersionIsNeeded(t *testing.T) {
	for _, args := range [][]string{{"release"}, {"release", "VERSION=v1.2.3"}} {
		// The program refuses it before it looks for anything else; what make does before is to build helm.
		var exit *exec.ExitError
		if _, all, err := run(t, tree(t, t.TempDir()), nil, "make", args...); !errors.As(err, &exit) || !strings.Contains(all, "VERSION=1.2.3") {
			t.Errorf("make %q: %v\n%s", args, err, all)
		}
	}
}

// files are the modes and checksums of what a directory holds.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		all[e.Name()] = info.Mode().String() + " " + sum(t, filepath.Join(dir, e.Name()))
	}
	return all
}

func sum(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s := sha256.Sum256(data)
	return hex.EncodeToString(s[:])
}

func binary(arch string) string { return "tarlift-agent-" + version + "-linux-" + arch }

func tool(arch string) string { return "tarlift-" + version + "-linux-" + arch }

func testFiles(t *testing.T, dist string) {
	want := []string{
		"SHA256SUMS",
		tool("amd64"),
		tool("arm64"),
		"tarlift-" + version + ".cdx.json",
		"tarlift-" + version + ".tgz",
		binary("amd64"),
		binary("arm64"),
		"tarlift-agent-image-" + version + ".tar",
	}
	var got []string
	for name := range files(t, dist) {
		got = append(got, name)
	}
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	checked := output(t, dist, nil, "sha256sum", "--check", "--strict", "SHA256SUMS")
	if n := strings.Count(checked, ": OK\n"); n != len(want)-1 {
		t.Errorf("sha256sum checked %d files:\n%s", n, checked)
	}
}

func testBinaries(t *testing.T, dist string) {
	for _, arch := range []string{"amd64", "arm64"} {
		for name, most := range map[string]int64{binary(arch): maxBinary, tool(arch): maxTool} {
			info, err := os.Stat(filepath.Join(dist, name))
			if err != nil {
				t.Fatal(err)
			}
			if info.Size() > most {
				t.Errorf("%s has %d bytes, more than %d", name, info.Size(), most)
			}
		}
	}
	for _, name := range []func(string) string{binary, tool} {
		if got := output(t, dist, nil, native(t, dist, name), "version"); got != version+"\n" {
			t.Errorf("%s version: %q", name("…"), got)
		}
	}
}

// native is the path of the released binary that runs here.
func native(t *testing.T, dist string, name func(arch string) string) string {
	t.Helper()
	return filepath.Join(dist, name(strings.TrimSpace(output(t, root, nil, "go", "env", "GOARCH"))))
}

func testChartAndImage(t *testing.T, clone, dist string) {
	pkg, image := filepath.Join(dist, "tarlift-"+version+".tgz"), filepath.Join(dist, "tarlift-agent-image-"+version+".tar")
	var archive struct {
		Images []struct {
			Name      string
			Platforms []struct{ Platform string }
		}
	}
	text := output(t, dist, nil, native(t, dist, binary), "inspect", "--output", "json", image)
	if err := json.Unmarshal([]byte(text), &archive); err != nil {
		t.Fatal(err)
	}
	if len(archive.Images) != 1 || len(archive.Images[0].Platforms) != 2 {
		t.Fatalf("the archive has %+v", archive)
	}
	helm := filepath.Join(clone, "bin/tools/helm")
	pods := 0
	for line := range strings.Lines(output(t, dist, nil, helm, "template", "tarlift", pkg)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "image: "); ok {
			pods++
			if strings.Trim(name, `"`) != archive.Images[0].Name {
				t.Errorf("the chart's image is %s, the archive's %s", name, archive.Images[0].Name)
			}
		}
	}
	if pods != 3 {
		t.Errorf("the package has %d images, not those of agent, controller and test", pods)
	}
	if shown := output(t, dist, nil, helm, "show", "chart", pkg); !strings.Contains(shown, "\nversion: "+version+"\n") {
		t.Errorf("helm show chart:\n%s", shown)
	}
	want := []string{sum(t, filepath.Join(dist, binary("amd64"))), sum(t, filepath.Join(dist, binary("arm64")))}
	slices.Sort(want)
	if diff := cmp.Diff(want, agents(t, image)); diff != "" {
		t.Errorf("binaries in the image (-released +image):\n%s", diff)
	}
}

// agents are the checksums of the agents in the layers of an archive.
func agents(t *testing.T, image string) (sums []string) {
	t.Helper()
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	members(t, f, func(_ string, blob io.Reader) {
		layer, err := gzip.NewReader(blob)
		if err != nil {
			return // a manifest
		}
		members(t, layer, func(name string, file io.Reader) {
			h := sha256.New()
			if _, err := io.Copy(h, file); err != nil {
				t.Fatal(err)
			}
			if name == "agent" {
				sums = append(sums, hex.EncodeToString(h.Sum(nil)))
			}
		})
	})
	slices.Sort(sums)
	return sums
}

func members(t *testing.T, archive io.Reader, visit func(name string, data io.Reader)) {
	t.Helper()
	for r := tar.NewReader(archive); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		visit(h.Name, r)
	}
}

func testBill(t *testing.T, dist string) {
	f, err := os.Open(filepath.Join(dist, "tarlift-"+version+".cdx.json"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var bill cdx.BOM
	if err := cdx.NewBOMDecoder(f, cdx.BOMFileFormatJSON).Decode(&bill); err != nil {
		t.Fatal(err)
	}
	if l := bill.Metadata.Component.Licenses; l == nil || len(*l) != 1 || (*l)[0].License.ID != "Apache-2.0" {
		t.Errorf("the license is %+v", l)
	}
	components := map[string]cdx.Component{}
	for _, c := range *bill.Components {
		components[c.Name] = c
	}
	const containerd = "github.com/containerd/containerd/v2"
	want := strings.TrimSpace(output(t, root, nil, "go", "list", "-m", "-f", "{{.Version}}", containerd))
	if got := components[containerd].Version; got != want {
		t.Errorf("the bill has containerd %q, go.mod %q", got, want)
	}
	for _, name := range []string{binary("amd64"), binary("arm64"), tool("amd64"), tool("arm64")} {
		c := components[name]
		if c.Hashes == nil || (*c.Hashes)[0].Value != sum(t, filepath.Join(dist, name)) {
			t.Errorf("%s: %+v is another file's", name, c.Hashes)
		}
		uses := slices.IndexFunc(*bill.Dependencies, func(d cdx.Dependency) bool {
			return d.Ref == c.BOMRef && slices.Contains(*d.Dependencies, components[containerd].BOMRef)
		})
		if uses < 0 {
			t.Errorf("%s does not depend on containerd", name)
		}
	}
}
