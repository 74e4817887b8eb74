package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/internal/bundle"
	"github.com/tarlift/tarlift/internal/cli"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/internal/source"
	"github.com/tarlift/tarlift/test/userns"
)

// pair is an image of two platforms.
func pair(name string, seed uint64) builder.Archive {
	return builder.Archive{Images: []builder.Image{{Names: []string{name}, Platforms: []builder.PlatformImage{
		platform("linux/amd64", layer(seed, 5000)), platform("linux/arm64", layer(seed+1, 3000)),
	}}}}
}

// layoutDir unpacks an archive.
func layoutDir(t *testing.T, data []byte) string {
	t.Helper()
	dir := t.TempDir()
	tr := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return dir
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, h.Name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func gzipped(t *testing.T, data []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// filesIn a directory, hidden ones too.
func filesIn(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range list {
		out = append(out, e.Name())
	}
	return out
}

// An archive, a compressed one, a URL, a directory and standard input become one archive, the same bytes each time;
// beside it are its sum, as sha256sum reads it, and what was printed.
func TestBundle(t *testing.T) {
	first, second, third := build(t, pair("a.example/x:1", 1)), build(t, pair("a.example/y:1", 11)), build(t, pair("a.example/z:1", 21))
	docker := pair("d.example/docker:1", 31)
	docker.Format = builder.Docker
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Unix(1, 0), bytes.NewReader(third))
	}))
	defer srv.Close()
	inputs := []string{
		write(t, "a.tar", first), write(t, "b.tar.gz", gzipped(t, second)), srv.URL + "/c.tar",
		layoutDir(t, build(t, pair("a.example/w:1", 41))), "-",
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "out.tar")
	args := append([]string{"bundle", "-o", file, "--output", "json", "--rename", "d.example/=e.example/"}, inputs...)
	o := tarlift(t, bytes.NewReader(build(t, docker)), args...)
	if o.code != cli.ExitOK {
		t.Fatalf("exit code %d: %s", o.code, o.errOut)
	}
	got := decode[result](t, o)
	var names []string
	for _, img := range got.Images {
		names = append(names, img.Name)
	}
	want := []string{"a.example/w:1", "a.example/x:1", "a.example/y:1", "a.example/z:1", "e.example/docker:1"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	data, err := os.ReadFile(file)
	if err != nil || digest.FromBytes(data) != got.Digest || int64(len(data)) != got.Size {
		t.Errorf("%d bytes, %+v: %v", len(data), got, err)
	}
	check := exec.Command("sha256sum", "--check", "--strict", "out.tar.sha256")
	check.Dir = dir
	if text, err := check.CombinedOutput(); err != nil {
		t.Errorf("sha256sum: %v: %s", err, text)
	}
	record, err := os.ReadFile(file + ".json")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(got, decode[result](t, outcome{out: string(record)})); diff != "" {
		t.Errorf("out.tar.json:\n%s", diff)
	}
	if diff := cmp.Diff([]string{"out.tar", "out.tar.json", "out.tar.sha256"}, filesIn(t, dir)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	blob, err := source.OpenFile(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	a, err := importer.Open(t.Context(), blob)
	if err != nil || a.IndexDigest != got.IndexDigest || len(a.Manifests) != 5 {
		t.Errorf("the importer reads %+v, %v", a, err)
	}

	// To standard output, from a bundle and in another order.
	o = tarlift(t, nil, "bundle", "-o", "-", file, inputs[0])
	if o.code != cli.ExitOK || o.out != string(data) || !strings.Contains(o.errOut, got.Digest.String()) {
		t.Errorf("exit code %d, %d bytes on standard output: %s", o.code, len(o.out), o.errOut)
	}
}

// A name with characters that a line of sums could not bear is written as sha256sum does.
func TestBundleSumOfStrangeName(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "a\\b\nc.tar")
	if o := tarlift(t, nil, "bundle", "-o", file, write(t, "a.tar", build(t, pair("a.example/x:1", 1)))); o.code != cli.ExitOK {
		t.Fatal(o.errOut)
	}
	check := exec.Command("sh", "-c", "sha256sum --check --strict *.sha256")
	check.Dir = dir
	if text, err := check.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, text)
	}
}

// What the flags choose.
func TestBundleFlags(t *testing.T) {
	a := pair("a.example/team/app:1", 1)
	a.Images = append(a.Images, pair("a.example/team/test:1", 5).Images...)
	bare := pair("tool:2", 9)
	bare.Names = builder.BareTag
	dir := t.TempDir()
	file := filepath.Join(dir, "out.tar")
	o := tarlift(t, nil, "bundle", "-o", file, "--output", "json", "--platform", "linux/arm64", "--include", "**", "--exclude", "**/test:*",
		"--base-name", "b.example/tool", write(t, "a.tar", build(t, a)), write(t, "b.tar", build(t, bare)))
	if o.code != cli.ExitOK {
		t.Fatal(o.errOut)
	}
	got := decode[result](t, o)
	for i := range got.Images {
		got.Images[i].Digest = ""
	}
	want := []bundle.Image{
		{Name: "a.example/team/app:1", Platforms: []string{"linux/arm64"}, LeftOut: []string{"linux/amd64"}},
		{Name: "b.example/tool:2", Platforms: []string{"linux/arm64"}, LeftOut: []string{"linux/amd64"}},
	}
	if diff := cmp.Diff(want, got.Images); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm()&0o400 == 0 || info.Size() > 20_000 {
		t.Errorf("%+v, %v", info, err)
	}
}

// Whatever fails: the right reason, what was there before is there still, and nothing else is.
func TestBundleFailures(t *testing.T) {
	good := build(t, pair("a.example/x:1", 1))
	b, err := pair("a.example/x:1", 1).Build()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	path := builder.BlobPath(b.Images[0].Platforms[0].Layers[0].Digest)
	edited := func(e builder.Edit) string {
		a := pair("a.example/x:1", 1)
		a.Edits = []builder.Edit{e}
		return write(t, "in.tar", build(t, a))
	}
	in, page := write(t, "a.tar", good), []byte("<html>"+strings.Repeat("<p>Sign in.</p>\n", 1000))
	for name, tc := range map[string]struct {
		args   []string
		code   int
		reason string
	}{
		"nothing there":       {[]string{"/nonexistent.tar"}, cli.ExitFailed, "SourceNotFound"},
		"no layout directory": {[]string{t.TempDir()}, cli.ExitFailed, "ArchiveInvalid"},
		"an HTML page":        {[]string{write(t, "a.html", page)}, cli.ExitFailed, "ArchiveInvalid"},
		"cut":                 {[]string{in, write(t, "cut.tar", good[:len(good)/2])}, cli.ExitFailed, "Truncated"},
		"cut and compressed":  {[]string{write(t, "cut.tar.gz", gzipped(t, good)[:4000])}, cli.ExitFailed, "Truncated"},
		"a damaged layer":     {[]string{edited(builder.Corrupt(path))}, cli.ExitFailed, "DigestMismatch"},
		"a missing layer":     {[]string{"--platform", "linux/amd64", edited(builder.Omit(path))}, cli.ExitFailed, "ContentIncomplete"},
		"no such platform":    {[]string{"--platform", "linux/s390x", in}, cli.ExitFailed, "NoMatchingPlatform"},
		"nothing chosen":      {[]string{"--include", "b.example/**", in}, cli.ExitFailed, "InvalidName"},
		"no containerd":       {[]string{"--address", "/nonexistent.sock", "containerd:a.example/x:1"}, cli.ExitFailed, "RuntimeUnavailable"},
		"two standard inputs": {[]string{"-", "-"}, cli.ExitUsage, "Usage"},
		"no name":             {[]string{"containerd:"}, cli.ExitUsage, "Usage"},
		"a platform":          {[]string{"--platform", "a/b/c/d", in}, cli.ExitUsage, "Usage"},
		"credentials":         {[]string{"--username", "x", in}, cli.ExitUsage, "Usage"},
		"a rule":              {[]string{"--rename", "x", in}, cli.ExitUsage, "Usage"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "out.tar")
			if err := os.WriteFile(file, []byte("before"), 0o600); err != nil {
				t.Fatal(err)
			}
			wantFailure(t, tarlift(t, nil, append([]string{"bundle", "--output", "json", "-o", file}, tc.args...)...), tc.code, tc.reason)
			if text, err := os.ReadFile(file); err != nil || string(text) != "before" || len(filesIn(t, dir)) != 1 {
				t.Errorf("%q, %v; files %v", text, err, filesIn(t, dir))
			}
		})
	}
}

// A command line that makes no sense is told so before anything is written.
func TestBundleUsage(t *testing.T) {
	in := write(t, "a.tar", build(t, pair("a.example/x:1", 1)))
	for name, args := range map[string][]string{
		"no file":             {in},
		"no input":            {"-o", "x.tar"},
		"a format for a file": {"-o", "json", in},
		"both on one output":  {"-o", "-", "--output", "json", in},
		"a directory":         {"-o", t.TempDir(), in},
		"a device":            {"-o", "/dev/null", in},
		"a trailing slash":    {"-o", t.TempDir() + "/x/", in},
	} {
		for _, command := range []string{"bundle", "export"} {
			if o := tarlift(t, nil, append([]string{command}, args...)...); o.code != cli.ExitUsage || o.out != "" && name != "both on one output" {
				t.Errorf("%s %s: exit code %d, output %q, error %q", command, name, o.code, o.out, o.errOut)
			}
		}
	}
	o := tarlift(t, nil, "bundle", "-o", filepath.Join(t.TempDir(), "no", "x.tar"), "--output", "json", in)
	wantFailure(t, o, cli.ExitFailed, reasonOutput)
	wantFailure(t, tarlift(t, nil, "bundle", "--output", "json", "--bogus", "-o", "x.tar", in), cli.ExitUsage, cli.ReasonUsage)
}

// A disk that is full leaves nothing, whether that shows before anything is copied or while a stream is kept.
func TestBundleOnFullDisk(t *testing.T) {
	if !userns.Inside(t) {
		return
	}
	data := build(t, pair("a.example/x:1", 1))
	for name, size := range map[string]string{"of two pages": "8k", "of all but the end": fmt.Sprint(len(data) - 6000)} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := unix.Unmount(dir, 0); err != nil {
					t.Error(err)
				}
			}()
			file := filepath.Join(dir, "out.tar")
			wantFailure(t, tarlift(t, nil, "bundle", "--output", "json", "-o", file, write(t, "a.tar", data)), cli.ExitFailed, "InsufficientDisk")
			wantFailure(t, tarlift(t, bytes.NewReader(data), "bundle", "--output", "json", "-o", file, "-"), cli.ExitFailed, "InsufficientDisk")
			if list := filesIn(t, dir); len(list) > 0 {
				t.Errorf("left: %v", list)
			}
		})
	}
}

// A signal leaves nothing either.
func TestBundleInterrupted(t *testing.T) {
	url, reached := silent(t)
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-reached; cancel() }()
	o := tarliftWith(ctx, nil, "bundle", "--output", "json", "-o", filepath.Join(dir, "out.tar"), url)
	wantFailure(t, o, cli.ExitInterrupted, cli.ReasonInterrupted)
	if list := filesIn(t, dir); len(list) > 0 {
		t.Errorf("left: %v", list)
	}
}

// What a link leads to is replaced, and the link stays.
func TestBundleThroughLink(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	file, link := filepath.Join(other, "out.tar"), filepath.Join(dir, "link.tar")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Symlink(file, link)); err != nil {
		t.Fatal(err)
	}
	if o := tarlift(t, nil, "bundle", "-o", link, write(t, "a.tar", build(t, pair("a.example/x:1", 1)))); o.code != cli.ExitOK {
		t.Fatal(o.errOut)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("%v, %v", info, err)
	}
	if info, err := os.Stat(file); err != nil || info.Size() == 0 {
		t.Errorf("%v, %v", info, err)
	}
}

// A directory is read where it lies: what is missing, damaged or a link in it is found.
func TestBundleOfDirectory(t *testing.T) {
	b, err := pair("a.example/x:1", 1).Build()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	blob := builder.BlobPath(b.Images[0].Platforms[0].Layers[0].Digest)
	manifest := builder.BlobPath(b.Images[0].Target.Digest)
	link := func(path string) error {
		return errors.Join(os.Rename(path, path+".old"), os.Symlink(filepath.Base(path)+".old", path))
	}
	damage := func(path string) error { return os.WriteFile(path, []byte("{}"), 0o600) }
	pipe := func(path string) error { return errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o600)) }
	for name, tc := range map[string]struct {
		file   string
		change func(path string) error
		reason string
	}{
		"no oci-layout":      {"oci-layout", os.Remove, "ArchiveInvalid"},
		"no index.json":      {"index.json", os.Remove, "ArchiveInvalid"},
		"an old layout":      {"oci-layout", damage, "ArchiveInvalid"},
		"no manifest":        {manifest, os.Remove, "ContentIncomplete"},
		"no layer":           {blob, os.Remove, "ContentIncomplete"},
		"a damaged manifest": {manifest, damage, "DigestMismatch"},
		"a damaged layer":    {blob, damage, "ArchiveInvalid"},
		"a link":             {blob, link, "ArchiveInvalid"},
		"a pipe":             {blob, pipe, "ArchiveInvalid"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "out.tar")
			dir := layoutDir(t, build(t, pair("a.example/x:1", 1)))
			if err := tc.change(filepath.Join(dir, tc.file)); err != nil {
				t.Fatal(err)
			}
			o := tarlift(t, nil, "bundle", "--platform", "linux/amd64", "--output", "json", "-o", file, dir)
			wantFailure(t, o, cli.ExitFailed, tc.reason)
		})
	}
}
