package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/test/cluster"
	"github.com/tarlift/tarlift/test/node"
)

// output is what `agent import -o json` printed, and how it ended.
type output struct {
	node.Output

	code   int
	errOut string
}

// command is the agent with this containerd's address, and JSON as its output.
func (r *runtime) command(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	agent, err := node.Agent()
	if err != nil {
		t.Fatal(err)
	}
	return exec.Command(agent, append([]string{name, "--address", r.ContainerdAddress, "--disk-reserve", littleReserve, "-o", "json"}, args...)...)
}

// run runs the agent and decodes into v the one object that it must print.
func run(t *testing.T, cmd *exec.Cmd, v any) (code int, errOut string) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(&out)
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		t.Fatalf("standard output: %v; standard error: %s", err, errs.String())
	}
	if rest, _ := io.ReadAll(io.MultiReader(d.Buffered(), &out)); len(bytes.TrimSpace(rest)) > 0 {
		t.Errorf("standard output has more than one object: %q", rest)
	}
	return cmd.ProcessState.ExitCode(), errs.String()
}

// agentImport runs `agent import`, with in as its standard input.
func (r *runtime) agentImport(t *testing.T, in []byte, args ...string) output {
	t.Helper()
	cmd := r.command(t, "import", args...)
	cmd.Stdin = bytes.NewReader(in)
	var o output
	o.code, o.errOut = run(t, cmd, &o)
	return o
}

// fileServer serves data below any path, with or without ranges, and counts what it sent.
func fileServer(t *testing.T, ranges bool, data []byte) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !ranges {
			r.Header.Del("Range")
		}
		http.ServeContent(w, r, "", time.Unix(1, 0), bytes.NewReader(data))
	}))
	t.Cleanup(srv.Close)
	return srv.URL + "/a.tar"
}

// needed is the size of the blobs that the first platform of the first image needs.
func needed(b *builder.Built) int64 {
	img := b.Images[0]
	sum := img.Platforms[0].Manifest.Size + img.Platforms[0].Config.Size
	for _, d := range slices.Concat(img.Indexes, img.Platforms[0].Layers) {
		sum += d.Size
	}
	return sum
}

func built(t *testing.T, a builder.Archive) (*builder.Built, []byte) {
	t.Helper()
	b, err := a.Build()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	data, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return b, data
}

// sample is one image of about 300 kB for this platform and another one; the seed makes it a new one.
func sample(name string, seed uint64) builder.Archive {
	return builder.Archive{Images: []builder.Image{{Names: []string{name}, Platforms: []builder.PlatformImage{
		{Platform: builder.Platform("linux/amd64"), Layers: []builder.Layer{noise(seed, 200_000), noise(seed+1, 100_000)}},
		{Platform: builder.Platform("linux/arm64"), Layers: []builder.Layer{noise(seed+2, 500_000)}},
	}}}}
}

func noise(seed uint64, size int64) builder.Layer {
	return builder.Layer{Compression: builder.Gzip, Files: []builder.File{builder.Noise("file", seed, size)}}
}

// Whatever the archive comes from, the images are there, and what is counted is what was moved.
func TestAgentImport(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{})
	for i, tc := range []struct {
		name   string
		random bool // only what is needed is read
		zip    builder.Compression
		arg    func(data []byte) string
	}{
		{"file", true, builder.None, func(data []byte) string { return fileOf(t, data) }},
		{"ranges", true, builder.None, func(data []byte) string { return fileServer(t, true, data) }},
		{"no ranges", false, builder.None, func(data []byte) string { return fileServer(t, false, data) }},
		{"standard input", false, builder.None, func([]byte) string { return "-" }},
		{"gzip file", false, builder.Gzip, func(data []byte) string { return fileOf(t, data) }},
		{"zstd pipe", false, builder.Zstd, func([]byte) string { return "-" }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			name := fmt.Sprintf("cli.example/app:%d", i)
			a := sample(name, uint64(10*i+1))
			a.Compression = tc.zip
			b, data := built(t, a)
			arg, need := tc.arg(data), needed(b)

			first := r.agentImport(t, data, arg)
			want := []importer.Image{{Name: name, Digest: b.Images[0].Target.Digest}}
			if first.code != 0 || !slices.Equal(first.Images, want) || first.DurationSeconds <= 0 || first.Error != nil {
				t.Fatalf("exit code %d: %+v: %s", first.code, first, first.errOut)
			}
			if first.Bytes.Skipped != 0 || tc.random && (first.Bytes.Written != need || first.Bytes.Read > need+200_000) ||
				!tc.random && (first.Bytes.Written < need || first.Bytes.Read < int64(len(data)) || first.Bytes.Read > int64(len(data))+firstPage) {
				t.Errorf("%d bytes needed of %d: %+v", need, len(data), first.Bytes)
			}
			for _, n := range names(name, want[0].Digest, b.Images[0].Platforms[0].Config.Digest) {
				if !r.has(t, n) {
					t.Errorf("no %s", n)
				}
			}
			before := r.state(t)
			again := r.agentImport(t, data, arg)
			if again.code != 0 || again.Bytes.Skipped != need || !slices.Equal(again.Images, want) {
				t.Errorf("again: %+v", again)
			}
			// A stream's blobs of other platforms were dropped and come again.
			if tc.random && (again.Bytes.Written != 0 || again.Bytes.Read > 150_000) {
				t.Errorf("again: %+v", again.Bytes)
			}
			unchanged(t, before, r.state(t))
		})
	}
}

// firstPage is read beside a stream of a file, to find out that it is compressed.
const firstPage = 4 << 10

// Whatever is wrong: exit code 1, the right reason, and containerd as it was.
func TestAgentImportFailures(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{})
	r.bystander(t)
	collect(t, r) // what the bystander's import left
	b, data := built(t, sample("cli.example/app:1", 1))
	layer := builder.BlobPath(b.Images[0].Platforms[0].Layers[0].Digest)
	edited := func(edits ...builder.Edit) []byte {
		a := sample("cli.example/app:1", 1)
		a.Edits = edits
		return tarOf(t, a)
	}
	foreign := sample("cli.example/app:1", 1)
	foreign.Images[0].Platforms = foreign.Images[0].Platforms[1:]
	nameless := sample("cli.example/app:1", 1)
	nameless.Names = builder.NoName
	badName := sample("cli.example/Not a Name:1", 1)
	badName.Names = builder.ImageName
	html := []byte("<html>" + strings.Repeat("<p>Sign in, please.</p>\n", 1000))
	wrong := digest.FromString("something else").String()

	for name, tc := range map[string]struct {
		data   []byte
		args   []string
		reason string
	}{
		"truncated in a blob":   {data[:len(data)/2], nil, "Truncated"},
		"truncated at the end":  {data[:len(data)-3000], nil, "Truncated"},
		"wrong blob digest":     {edited(builder.Corrupt(layer)), nil, "DigestMismatch"},
		"missing blob":          {edited(builder.Omit(layer)), nil, "ContentIncomplete"},
		"other platform only":   {tarOf(t, foreign), nil, "NoMatchingPlatform"},
		"HTML page":             {html, nil, "ArchiveInvalid"},
		"empty tar":             {make([]byte, 10240), nil, "ArchiveInvalid"},
		"wrong digest":          {data, []string{"--digest", wrong}, "DigestMismatch"},
		"wrong index digest":    {data, []string{"--index-digest", wrong}, "DigestMismatch"},
		"bad name":              {tarOf(t, badName), nil, "InvalidName"},
		"no name":               {tarOf(t, nameless), nil, "InvalidName"},
		"nothing selected":      {data, []string{"--include", "other.example/**"}, "InvalidName"},
		"somebody else's name":  {data, []string{"--rename", "cli.example/app:1=bystander.example/x:1"}, "NameConflict"},
		"platform not there":    {data, []string{"--platform", "linux/riscv64"}, "NoMatchingPlatform"},
		"namespace not allowed": {data, []string{"--namespace", "no/such"}, "ImportFailed"},
	} {
		t.Run(name, func(t *testing.T) {
			// As a file, from a server without ranges (a stream), and compressed from standard input.
			for _, arg := range []string{fileOf(t, tc.data), fileServer(t, false, tc.data), "-"} {
				before := r.state(t)
				o := r.agentImport(t, tc.data, append(tc.args, arg)...)
				if o.code != 1 || o.Error == nil || o.Error.Reason != tc.reason || o.Images != nil {
					t.Errorf("%s: exit code %d, %+v, want %s: %s", arg, o.code, o.Error, tc.reason, o.errOut)
				}
				unchanged(t, before, r.state(t))
			}
		})
	}
	t.Run("404", func(t *testing.T) {
		srv := httptest.NewServer(http.NotFoundHandler())
		defer srv.Close()
		before := r.state(t)
		if o := r.agentImport(t, nil, srv.URL+"/a.tar"); o.code != 1 || o.Error == nil || o.Error.Reason != "SourceNotFound" {
			t.Errorf("exit code %d, %+v", o.code, o.Error)
		}
		unchanged(t, before, r.state(t))
	})
}

// The flags do what they say.
func TestAgentImportFlags(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{})
	a := builder.Archive{Images: []builder.Image{
		image("cli.example/team/app:1", noise(1, 1000)), image("cli.example/team/db:1", noise(2, 1000)),
		image("cli.example/team/test:1", noise(3, 1000)), image("other.example/x:1", noise(4, 1000)),
	}}
	b, data := built(t, a)
	file := fileOf(t, data)
	o := r.agentImport(t, nil, "--include", "cli.example/**", "--exclude", "**/test:*", "--rename", "cli.example/team/app:1=docker.io/library/app:2",
		"--rename", "cli.example/=mirror.example/", "--no-digest-refs", "--no-pin", "--no-unpack", "--namespace", "other",
		"--digest", digest.FromBytes(data).String(), "--index-digest", b.IndexDigest.String(), "--platform", "linux/arm64", file)
	want := []importer.Image{
		{Name: "docker.io/library/app:2", Digest: b.Images[0].Target.Digest},
		{Name: "mirror.example/team/db:1", Digest: b.Images[1].Target.Digest},
	}
	if o.code != 0 || !slices.Equal(o.Images, want) {
		t.Fatalf("exit code %d, images %v: %s", o.code, o.Images, o.errOut)
	}
	// For arm64 the two have one config, and so one id.
	all := []string{want[0].Name, want[1].Name, b.Images[0].Platforms[1].Config.Digest.String()}
	if diff := cmp.Diff(all, r.allNames(t, "other")); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	other := namespaces.WithNamespace(t.Context(), "other")
	for _, name := range all {
		if img, err := r.ImageService().Get(other, name); err != nil || img.Labels["io.cri-containerd.pinned"] != "" {
			t.Errorf("%s: labels %v, %v", name, img.Labels, err)
		}
	}
	if s := r.state(t); len(s["images"])+len(s["snapshots"]) != 0 {
		t.Errorf("in CRI's namespace: %v", s)
	}

	r.bystander(t)
	rename := []string{"--include", "other.example/x:1", "--rename", "other.example/x:1=bystander.example/x:1"}
	if o := r.agentImport(t, nil, append(rename, "--conflict", "replace", file)...); o.code != 0 {
		t.Errorf("replace: exit code %d: %s", o.code, o.errOut)
	}
	if img, err := r.ImageService().Get(r.ctx, "bystander.example/x:1"); err != nil || img.Target.Digest != b.Images[3].Target.Digest {
		t.Errorf("replaced: %v, %v", img.Target.Digest, err)
	}

	a.Names = builder.BareTag
	a.Images = a.Images[:1]
	bare := fileOf(t, tarOf(t, a))
	if o := r.agentImport(t, nil, "--base-name", "base.example/app", bare); o.code != 0 || o.Images[0].Name != "base.example/app:1" {
		t.Errorf("base name: exit code %d, %v: %s", o.code, o.Images, o.errOut)
	}
}

// The plan before an import is what the import then does, and after it nothing is left to do.
func TestAgentInspectPlan(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{})
	b, data := built(t, sample("cli.example/app:1", 1))
	need := needed(b)
	file := fileOf(t, data)
	for _, arg := range []string{file, fileServer(t, true, data), fileServer(t, false, data)} {
		before := r.state(t)
		p := r.plan(t, arg)
		if p.Plan.Bytes.Move != need || p.Plan.Bytes.Present != 0 || len(p.Plan.Images) != 1 || p.IndexDigest != b.IndexDigest {
			t.Errorf("%s: plan %+v, %d bytes are needed", arg, p.Plan, need)
		}
		unchanged(t, before, r.state(t))
	}
	if o := r.agentImport(t, nil, file); o.code != 0 || o.Bytes.Written != need {
		t.Fatalf("exit code %d: %+v: %s", o.code, o.Bytes, o.errOut)
	}
	if p := r.plan(t, file); p.Plan.Bytes.Move != 0 || p.Plan.Bytes.Present != need {
		t.Errorf("afterwards: %+v", p.Plan)
	}
	cmd := r.command(t, "inspect", "--plan", file)
	cmd.Args = append(cmd.Args, "-o", "text")
	text, err := cmd.Output()
	if err != nil || !strings.Contains(string(text), "would transfer 0 of 5 blobs") || !strings.Contains(string(text), "present") {
		t.Errorf("%v: %s", err, text)
	}
}

type inspected struct {
	IndexDigest digest.Digest
	Plan        *struct {
		Bytes  importer.PlannedBytes
		Images []importer.PlannedImage
		Blobs  []struct {
			ocispec.Descriptor
			Present bool
		}
	}
}

func (r *runtime) plan(t *testing.T, arg string) inspected {
	t.Helper()
	var p inspected
	out, err := r.command(t, "inspect", "--plan", arg).Output()
	if err == nil {
		err = json.Unmarshal(out, &p)
	}
	if err != nil || p.Plan == nil {
		t.Fatalf("%v: %s", err, out)
	}
	return p
}

// A signal in mid-transfer: exit code 130, and nothing is left, wherever the bytes come from.
func TestAgentImportInterrupted(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{})
	r.bystander(t)
	collect(t, r) // what the bystander's import left
	_, data := built(t, sample("cli.example/app:1", 1))
	before := r.state(t)
	for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run("server/"+sig.String(), func(t *testing.T) {
			reached := make(chan struct{}, 100)
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				w.Header().Set("ETag", `"1"`)
				// Each answer stops 1000 bytes before its end.
				http.ServeContent(&stalling{w, req.Context(), reached, 1000}, req, "", time.Time{}, bytes.NewReader(data))
			}))
			defer srv.Close()
			r.interrupt(t, r.command(t, "import", srv.URL), reached, sig)
			unchanged(t, before, r.state(t))
		})
		t.Run("pipe/"+sig.String(), func(t *testing.T) {
			cmd := r.command(t, "import", "-")
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			reached := make(chan struct{}, 1)
			go func() {
				// More than a pipe holds: when it is written, most of it is read.
				_, _ = in.Write(data[:len(data)-10_000])
				reached <- struct{}{}
			}()
			r.interrupt(t, cmd, reached, sig)
			unchanged(t, before, r.state(t))
		})
	}
}

// interrupt sends a signal to an import once it is under way.
func (r *runtime) interrupt(t *testing.T, cmd *exec.Cmd, reached <-chan struct{}, sig os.Signal) {
	t.Helper()
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-reached
	if err := cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // the exit code tells
	var o output
	if err := json.Unmarshal(out.Bytes(), &o); err != nil || o.Error == nil || o.Error.Reason != "Interrupted" {
		t.Errorf("output %q, %v", out.String(), err)
	}
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("exit code %d: %s", code, out.String())
	}
}

// stalling holds back what comes after the first bytes of an answer until the client is gone.
type stalling struct {
	http.ResponseWriter
	ctx     context.Context
	reached chan<- struct{}
	left    int
}

func (w *stalling) Write(p []byte) (int, error) {
	if len(p) < w.left {
		w.left -= len(p)
		return w.ResponseWriter.Write(p)
	}
	w.ResponseWriter.Write(p[:w.left])
	_ = http.NewResponseController(w.ResponseWriter).Flush()
	w.reached <- struct{}{}
	<-w.ctx.Done()
	panic(http.ErrAbortHandler)
}
