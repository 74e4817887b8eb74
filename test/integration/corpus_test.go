package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unicode"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	"github.com/google/go-cmp/cmp"

	"github.com/tarlift/tarlift/internal/archive/corpus"
	"github.com/tarlift/tarlift/test/cluster"
	"github.com/tarlift/tarlift/test/node"
)

const (
	// mostMemory in bytes is half of what the chart lets the agent have.
	mostMemory = 128 << 20
	// mostTime is how long anybody has to wait to be told that an archive is wrong.
	mostTime = 10 * time.Second
)

// TestCorpus imports every archive of the corpus with the agent's binary: by random access and in one pass. Either exactly
// what is to be published is, or nothing has changed and the message says why. Neither takes much memory or time.
func TestCorpus(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{})
	imported, err := r.Import(r.ctx, corpus.Bystander().Reader())
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range imported {
		if err := client.NewImage(r.Client, i).Unpack(r.ctx, "overlayfs"); err != nil {
			t.Fatal(err)
		}
	}
	collect(t, r)
	before := r.state(t)
	// A file of each would fill the disk: archives of gigabytes come from a server that makes them.
	var served atomic.Pointer[corpus.Data]
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("ETag", `"1"`)
		http.ServeContent(w, req, "", time.Time{}, served.Load().Reader())
	}))
	defer srv.Close()
	for _, c := range corpus.Cases() {
		for _, stream := range []bool{false, true} {
			t.Run(c.Name+map[bool]string{false: "/random", true: "/stream"}[stream], func(t *testing.T) {
				served.Store(c.Open())
				r.testCase(t, c, srv.URL+"/archive.tar", stream, before)
			})
		}
	}
}

func (r *runtime) testCase(t *testing.T, c corpus.Case, url string, stream bool, before node.State) {
	t.Helper()
	args, in := []string{}, io.Reader(nil)
	for flag, d := range map[string]string{"--digest": c.Options.Digest.String(), "--index-digest": c.Options.IndexDigest.String()} {
		if d != "" {
			args = append(args, flag, d)
		}
	}
	d := c.Open()
	switch {
	case stream:
		args, in = append(args, "-"), d.Reader()
	case d.Size() <= corpus.MaxSmall:
		var b bytes.Buffer
		if _, err := b.ReadFrom(d.Reader()); err != nil {
			t.Fatal(err)
		}
		args = append(args, fileOf(t, b.Bytes()))
	default:
		args = append(args, url)
	}
	t.Cleanup(func() {
		if t.Failed() {
			r.forget(t, before) // else all that follow would fail
		}
	})
	o, peak, took := r.measured(t, in, args...)
	t.Logf("%d MiB, %v", peak>>20, took)
	if peak > mostMemory || took > mostTime {
		t.Errorf("%d MiB, %v", peak>>20, took)
	}
	if !c.AcceptedBy(stream || c.Options.Digest != "", true) {
		if o.code != 1 || o.Error == nil || o.Error.Reason != string(c.Verdict) || o.Images != nil {
			t.Errorf("exit code %d, %+v, want %s: %s", o.code, o.Error, c.Verdict, o.errOut)
		}
		if o.Error != nil {
			checkMessage(t, o.Error.Message, c.Says)
		}
		unchanged(t, before, r.state(t))
		return
	}
	if o.code != 0 || o.Error != nil {
		t.Fatalf("exit code %d, %+v: %s", o.code, o.Error, o.errOut)
	}
	r.checkPublished(t, c.Published, before)
	r.forget(t, before)
}

// checkMessage looks for parts in a message, which is one line that a terminal can show.
func checkMessage(t *testing.T, text string, parts []string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("the message does not say %q: %.1000s", part, text)
		}
	}
	if len(text) > 4096 || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		t.Errorf("not to be shown: %.1000q", text)
	}
}

// measured runs `agent import` and tells its largest resident set in bytes.
func (r *runtime) measured(t *testing.T, in io.Reader, args ...string) (o output, peak int64, took time.Duration) {
	t.Helper()
	cmd := r.command(t, "import", args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	fed := feed(t, cmd, in)
	started := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	fed.start()
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // the exit code tells
		close(ended)
	}()
	// The kernel forgets it at the end, and a child's rusage has its parent's too: so it is looked at all the time.
	for tick := time.NewTicker(2 * time.Millisecond); ; {
		peak = max(peak, residentPeak(cmd.Process.Pid))
		select {
		case <-ended:
			tick.Stop()
			took = time.Since(started)
			fed.wait(t)
			if err := json.Unmarshal(out.Bytes(), &o.Output); err != nil {
				t.Fatalf("standard output %q: %v: %s", out.String(), err, errs.String())
			}
			o.code, o.errOut = cmd.ProcessState.ExitCode(), errs.String()
			return o, peak, took
		case <-tick.C:
		}
	}
}

// residentPeak is VmHWM in bytes, 0 when the process is gone.
func residentPeak(pid int) int64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	line, _, _ := strings.Cut(rest, "kB")
	kib, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
	if err != nil {
		return 0
	}
	return kib << 10
}

// feeding writes a command's standard input until the command has had enough.
type feeding struct {
	in   io.Reader
	r, w *os.File
	done chan error
}

func feed(t *testing.T, cmd *exec.Cmd, in io.Reader) *feeding {
	t.Helper()
	f := &feeding{in: in, done: make(chan error, 1)}
	if in == nil {
		f.done <- nil
		return f
	}
	var err error
	if f.r, f.w, err = os.Pipe(); err != nil {
		t.Fatal(err)
	}
	cmd.Stdin = f.r
	return f
}

// start closes the end that the command has now.
func (f *feeding) start() {
	if f.in == nil {
		return
	}
	f.r.Close()
	go func() {
		_, err := io.Copy(f.w, f.in)
		f.w.Close()
		if errors.Is(err, syscall.EPIPE) {
			err = nil
		}
		f.done <- err
	}()
}

func (f *feeding) wait(t *testing.T) {
	t.Helper()
	if err := <-f.done; err != nil {
		t.Error(err)
	}
}

// checkPublished compares what is there with what was, and the images that are to be there, whole and unpacked.
func (r *runtime) checkPublished(t *testing.T, published []corpus.Image, before node.State) {
	t.Helper()
	after := r.state(t)
	var want []string
	blobs := slices.Clone(before["content"])
	for _, img := range published {
		want = append(want, r.namesOf(t, img.Name)...)
		for _, d := range img.Blobs {
			blobs = append(blobs, d.String())
		}
		r.checkImage(t, img)
	}
	var got []string
	for _, line := range after["images"] {
		if !slices.Contains(before["images"], line) {
			got = append(got, strings.Fields(line)[0])
		}
	}
	for _, l := range []*[]string{&want, &blobs} {
		slices.Sort(*l)
		*l = slices.Compact(*l)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(blobs, after["content"]); diff != "" {
		t.Errorf("blobs (-want +got):\n%s", diff)
	}
	if len(after["leases"])+len(after["ingests"]) > 0 {
		t.Errorf("left behind: %v %v", after["leases"], after["ingests"])
	}
}

func (r *runtime) checkImage(t *testing.T, want corpus.Image) {
	t.Helper()
	img, err := r.GetImage(r.ctx, want.Name)
	if err != nil {
		t.Error(err)
		return
	}
	amd64 := platforms.Only(platforms.MustParse("linux/amd64"))
	_, _, _, missing, err := images.Check(r.ctx, r.ContentStore(), img.Target(), amd64)
	if img.Target().Digest != want.Digest || err != nil || len(missing) > 0 {
		t.Errorf("%s is %s, lacks %v (%v)", want.Name, img.Target().Digest, missing, err)
	}
	if unpacked, err := img.IsUnpacked(r.ctx, "overlayfs"); err != nil || !unpacked {
		t.Errorf("%s: unpacked %v (%v)", want.Name, unpacked, err)
	}
}

// forget removes what was published, so that the next archive finds the node as it was.
func (r *runtime) forget(t *testing.T, before node.State) {
	t.Helper()
	list, err := r.ImageService().List(r.ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range list {
		if img.Name != corpus.BystanderName {
			if err := r.ImageService().Delete(r.ctx, img.Name); err != nil {
				t.Fatal(err)
			}
		}
	}
	collect(t, r)
	unchanged(t, before, r.state(t))
}
