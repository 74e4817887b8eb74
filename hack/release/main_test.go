package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/google/go-cmp/cmp"
)

func TestVersion(t *testing.T) {
	tests := map[string]bool{
		"1.2.3":           true,
		"0.1.0":           true,
		"1.2.3-rc.1":      true,
		"1.2.3-0a":        true,
		"":                false,
		"v1.2.3":          false, // that is the tag
		"1.2":             false,
		"1.2.3.4":         false,
		"01.2.3":          false,
		"1.2.3-01":        false, // a number
		"1.2.3-":          false,
		"1.2.3+build":     false, // no tag of an image
		"7c451ca":         false, // what git describes when nobody says a version
		"v1.2.3-4-g7c451": false,
		"1.2.3\n":         false,
	}
	for version, good := range tests {
		if err := checkVersion(version); errors.Is(err, errVersion) == good {
			t.Errorf("version %q: %v", version, err)
		}
	}
}

func TestVersionIsRefusedFirst(t *testing.T) {
	output := filepath.Join(t.TempDir(), "dist")
	if err := run(t.Context(), []string{"-o", output}); !errors.Is(err, errVersion) {
		t.Errorf("without a version: %v", err)
	}
	if err := run(t.Context(), []string{"-version", "1.2.3", "x"}); err == nil {
		t.Error("an argument was accepted")
	}
}

func TestReleaseIsNotOverwritten(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1")
	if err := run(t.Context(), []string{"-version", "1.2.3", "-dirty", "-o", t.TempDir()}); !errors.Is(err, os.ErrExist) {
		t.Errorf("a directory that is there: %v", err)
	}
}

func TestSource(t *testing.T) {
	const committed = 1_700_000_000
	t.Chdir(t.TempDir())
	gitIn := func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "git", append([]string{"-c", "user.name=a", "-c", "user.email=a@example.com"}, args...)...)
		cmd.Env = append(os.Environ(), "GIT_COMMITTER_DATE=1700000000 +0200")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %q: %v\n%s", args, err, out)
		}
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	gitIn("init", "--quiet")
	write(".gitignore", "dist\n")
	write("main.go", "package main\n")
	gitIn("add", ".")
	gitIn("commit", "--quiet", "-m", "all")
	write("dist", "")
	if err := checkClean(t.Context()); err != nil {
		t.Errorf("a clean tree: %v", err)
	}
	if at, err := sourceTime(t.Context()); err != nil || at.Unix() != committed {
		t.Errorf("time of the commit: %v, %v", at, err)
	}

	write("main.go", "package main // changed\n")
	if err := checkClean(t.Context()); !errors.Is(err, errDirty) {
		t.Errorf("a changed file: %v", err)
	}
	gitIn("checkout", "--quiet", "main.go")
	write("new.go", "package main\n")
	if err := checkClean(t.Context()); !errors.Is(err, errDirty) {
		t.Errorf("a file that git does not know: %v", err)
	}

	t.Setenv("SOURCE_DATE_EPOCH", "1")
	if at, err := sourceTime(t.Context()); err != nil || at.Unix() != 1 {
		t.Errorf("time of the environment: %v, %v", at, err)
	}
	t.Setenv("SOURCE_DATE_EPOCH", "yesterday")
	if at, err := sourceTime(t.Context()); err == nil {
		t.Errorf("a time that is none: %v", at)
	}
}

// archived packs members as helm does: at a time, by a user.
func archived(t *testing.T, at time.Time, headers ...tar.Header) []byte {
	t.Helper()
	var out bytes.Buffer
	zip := gzip.NewWriter(&out)
	zip.ModTime, zip.Comment = at, "Helm"
	w := tar.NewWriter(zip)
	for _, h := range headers {
		h.ModTime, h.Size = at, int64(len(h.Name))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, h.Name); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), zip.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestPackageOfChart(t *testing.T) {
	at := time.Unix(1_700_000_000, 0)
	normalized := func(data []byte) string {
		t.Helper()
		var out bytes.Buffer
		if err := normalize(&out, bytes.NewReader(data), at); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	once := normalized(archived(t, time.Unix(1, 0), tar.Header{Name: "tarlift/Chart.yaml", Mode: 0o600}, tar.Header{Name: "tarlift/a"}))
	again := normalized(archived(t, time.Unix(2, 5), tar.Header{Name: "tarlift/Chart.yaml", Mode: 0o664, Uid: 7, Uname: "me"}, tar.Header{Name: "tarlift/a"}))
	if once != again {
		t.Error("the package depends on when and by whom it was made")
	}
	zip, err := gzip.NewReader(strings.NewReader(once))
	if err != nil {
		t.Fatal(err)
	}
	var members []string
	for r := tar.NewReader(zip); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil || string(data) != h.Name || !h.ModTime.Equal(at) || h.Mode != 0o644 {
			t.Errorf("member: %+v, %q, %v", h, data, err)
		}
		members = append(members, h.Name)
	}
	if diff := cmp.Diff([]string{"tarlift/Chart.yaml", "tarlift/a"}, members); diff != "" {
		t.Errorf("members (-want +got):\n%s", diff)
	}

	whole := archived(t, at, tar.Header{Name: "tarlift/Chart.yaml"})
	for reason, data := range map[string][]byte{
		"no gzip":   []byte("chart"),
		"truncated": whole[:len(whole)/2],
		"a link":    archived(t, at, tar.Header{Name: "", Linkname: "tarlift/a", Typeflag: tar.TypeSymlink}),
	} {
		if err := normalize(io.Discard, bytes.NewReader(data), at); err == nil {
			t.Errorf("%s: no error", reason)
		}
	}
}

// The bill of this very test binary: the module under test is in it, with go.sum's checksum.
func TestBillOfMaterials(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	image := filepath.Join(dir, "image.tar")
	if err := os.WriteFile(image, []byte("image"), 0o600); err != nil {
		t.Fatal(err)
	}
	bom := func(name string) (document cdx.BOM, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		r := release{version: "1.2.3", time: time.Unix(0, 0).UTC()}
		if err := r.writeSBOM(t.Context(), path, []string{self}, nil, image); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := cdx.NewBOMDecoder(bytes.NewReader(data), cdx.BOMFileFormatJSON).Decode(&document); err != nil {
			t.Fatal(err)
		}
		return document, string(data)
	}
	document, once := bom("once")
	if _, again := bom("again"); once != again {
		t.Error("two bills of the same differ")
	}
	components := map[string]cdx.Component{}
	for _, c := range *document.Components {
		components[c.Name] = c
	}
	want, err := requiredModule(t.Context(), "github.com/CycloneDX/cyclonedx-go")
	if err != nil {
		t.Fatal(err)
	}
	library := components[want.Path]
	if library.Version != want.Version || library.Hashes == nil || "h1:"+base64Of(t, (*library.Hashes)[0].Value) != want.Sum {
		t.Errorf("component %+v, go.mod and go.sum have %+v", library, want)
	}
	for _, name := range []string{"stdlib", rootsModule, filepath.Base(self), "image.tar"} {
		if components[name].Version == "" {
			t.Errorf("no component %s", name)
		}
	}
	known := map[string]bool{}
	for _, d := range *document.Dependencies {
		known[d.Ref] = true
	}
	for _, d := range *document.Dependencies {
		if d.Dependencies == nil {
			continue
		}
		if i := slices.IndexFunc(*d.Dependencies, func(ref string) bool { return !known[ref] }); i >= 0 {
			t.Errorf("%s depends on the unknown %s", d.Ref, (*d.Dependencies)[i])
		}
	}
}

func base64Of(t *testing.T, digits string) string {
	t.Helper()
	data, err := hex.DecodeString(digits)
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(data)
}

func TestPackageURL(t *testing.T) {
	if got := purl("github.com/Microsoft/hcsshim", "v1.0.0+incompatible"); got != "pkg:golang/github.com/microsoft/hcsshim@v1.0.0%2Bincompatible" {
		t.Error(got)
	}
}

// A replaced module is the one that is linked.
func TestReplacedModule(t *testing.T) {
	b := bill{libraries: map[string]cdx.Component{}}
	refs := b.modules(&debug.BuildInfo{GoVersion: "go1.26.6 X:jsonv2", Deps: []*debug.Module{
		{Path: "example.com/a", Version: "v1.0.0", Replace: &debug.Module{Path: "example.com/fork", Version: "v1.0.1"}},
	}})
	if diff := cmp.Diff([]string{"pkg:golang/stdlib@1.26.6", "pkg:golang/example.com/fork@v1.0.1"}, refs); diff != "" {
		t.Errorf("modules (-want +got):\n%s", diff)
	}
}
