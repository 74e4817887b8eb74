package integration

import (
	"bytes"
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

	"github.com/containerd/containerd/v2/core/images"

	"github.com/tarlift/tarlift/test/cluster"
)

// diagnosis is what `agent doctor -o json` prints, by check.
type diagnosis struct {
	code   int
	checks map[string]check
}

type check struct{ Check, Verdict, Found, Remedy string }

// examine runs a doctor, which must change nothing.
func examine(t *testing.T, cmd *exec.Cmd) diagnosis {
	t.Helper()
	var o struct {
		OK     bool
		Checks []check
	}
	// Where the tests run there may be a way to some cluster.
	cmd.Env = append(os.Environ(), "KUBECONFIG=", "KUBERNETES_SERVICE_HOST=")
	code, errOut := run(t, cmd, &o)
	d := diagnosis{code, map[string]check{}}
	for _, c := range o.Checks {
		d.checks[c.Check] = c
		if (c.Remedy == "") == (c.Verdict == "warn" || c.Verdict == "fail") || c.Found == "" {
			t.Errorf("%+v", c)
		}
	}
	if o.OK != (code == 0) || (code == 0) != (errOut == "") {
		t.Errorf("exit code %d, ok %v: %s", code, o.OK, errOut)
	}
	return d
}

func (r *runtime) examine(t *testing.T, args ...string) diagnosis {
	t.Helper()
	before := r.state(t)
	defer func() { unchanged(t, before, r.state(t)) }()
	return examine(t, r.command(t, "doctor", args...))
}

// want checks one verdict, and what is said with it. Nothing else fails.
func (d diagnosis) want(t *testing.T, name, verdict, found string) {
	t.Helper()
	if c := d.checks[name]; c.Verdict != verdict || !strings.Contains(c.Found, found) {
		t.Errorf("%s: %+v, want %s, %q", name, c, verdict, found)
	}
	code := 0
	for n, c := range d.checks {
		if c.Verdict == "fail" {
			code = 1
			if n != name {
				t.Errorf("%+v", c)
			}
		}
	}
	if d.code != code {
		t.Errorf("exit code %d", d.code)
	}
}

func TestDoctor(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{CRI: true})
	b, data := built(t, sample("doctor.example/app:1", 1))
	file := fileOf(t, data)
	if d := r.examine(t); d.code != 0 || d.checks["images"].Found != "0 names, all complete" {
		t.Errorf("before any import: %+v", d)
	}
	if _, err := r.importer(t).Import(t.Context(), open(t, file), request("1")); err != nil {
		t.Fatal(err)
	}
	if o := r.agentImport(t, nil, "--rename", "doctor.example/app:1=doctor.example/other:1", file); o.code != 0 {
		t.Fatal(o.errOut)
	}
	healthy := r.examine(t)
	for name, verdict := range map[string]string{
		"socket": "ok", "containerd": "ok", "namespace": "ok", "snapshotter": "ok", "platform": "ok", "disk": "ok", "cri": "ok", "images": "ok",
		"pins": "ok", "kubelet": "ok", "leftovers": "ok", "clock": "ok", "api server": "skip",
	} {
		if c := healthy.checks[name]; c.Verdict != verdict {
			t.Errorf("%s: %+v", name, c)
		}
	}
	if healthy.code != 0 || len(healthy.checks) != 13 || healthy.checks["kubelet"].Found != "finds all 5 names" {
		t.Errorf("healthy: %+v", healthy)
	}
	text, err := exec.Command(r.command(t, "doctor").Path, "doctor", "--address", r.ContainerdAddress, "--disk-reserve", littleReserve).CombinedOutput()
	if err != nil || !strings.Contains(string(text), "ok    snapshotter  overlayfs\n") || bytes.Contains(text, []byte("\x1b")) {
		t.Errorf("%v: %s", err, text)
	}
	t.Logf("\n%s", text)

	t.Run("low disk", func(t *testing.T) {
		r.examine(t, "--disk-reserve", "99.9999%").want(t, "disk", "fail", "below the reserve")
	})
	t.Run("no reserve", func(t *testing.T) { r.examine(t, "--disk-reserve", "0").want(t, "disk", "skip", "no reserve") })
	t.Run("unknown snapshotter", func(t *testing.T) {
		d := r.examine(t, "--snapshotter", "floppy")
		d.want(t, "snapshotter", "fail", "no snapshotter floppy")
		if !strings.Contains(d.checks["snapshotter"].Remedy, "native, overlayfs") {
			t.Errorf("%+v", d.checks["snapshotter"])
		}
	})
	t.Run("not CRI's snapshotter", func(t *testing.T) {
		r.examine(t, "--snapshotter", "native").want(t, "snapshotter", "warn", "CRI uses overlayfs")
	})
	t.Run("other platform", func(t *testing.T) {
		if d := r.examine(t, "--platform", "linux/s390x"); d.checks["platform"].Verdict != "warn" {
			t.Errorf("%+v", d.checks["platform"])
		}
	})
	t.Run("other namespace", func(t *testing.T) {
		d := r.examine(t, "--namespace", "other")
		d.want(t, "namespace", "warn", "which does not exist yet")
		d.want(t, "cri", "skip", "")
	})
	t.Run("impossible namespace", func(t *testing.T) { r.examine(t, "--namespace", "no/such").want(t, "namespace", "fail", "no/such") })
	t.Run("lost pin", func(t *testing.T) {
		r.relabel(t, "doctor.example/app:1", "io.cri-containerd.pinned", "")
		r.examine(t).want(t, "pins", "fail", "1 of 5 names have lost their pin, so the kubelet may remove them: doctor.example/app:1")
		r.relabel(t, "doctor.example/app:1", "io.cri-containerd.pinned", "pinned")
	})
	t.Run("lost layer", func(t *testing.T) {
		if err := r.ContentStore().Delete(r.ctx, b.Images[0].Platforms[0].Layers[0].Digest); err != nil {
			t.Fatal(err)
		}
		r.examine(t).want(t, "images", "fail", "lacks "+b.Images[0].Platforms[0].Layers[0].Digest.String())
		if o := r.agentImport(t, nil, "--rename", "doctor.example/app:1=doctor.example/other:1", file); o.code != 0 {
			t.Fatal(o.errOut)
		}
	})
	t.Run("lost name", func(t *testing.T) {
		if err := r.ImageService().Delete(r.ctx, "doctor.example/app:1"); err != nil {
			t.Fatal(err)
		}
		r.examine(t).want(t, "images", "fail", "1 names are gone")
	})
}

// relabel sets one label of an image.
func (r *runtime) relabel(t *testing.T, name, key, value string) {
	t.Helper()
	_, err := r.ImageService().Update(r.ctx, images.Image{Name: name, Labels: map[string]string{key: value}}, "labels."+key)
	if err != nil {
		t.Fatal(err)
	}
}

// The socket of a containerd that is not there, hangs, or is somebody else's.
func TestDoctorWithoutContainerd(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{CRI: true})
	doctor := r.command(t, "doctor").Path
	at := func(address string) *exec.Cmd {
		return exec.Command(doctor, "doctor", "-o", "json", "--address", address)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	examine(t, at(filepath.Join(dir, "none.sock"))).want(t, "socket", "fail", "does not exist")
	examine(t, at(file)).want(t, "socket", "fail", "is no socket")

	t.Run("no permission", func(t *testing.T) {
		nobody := at(r.ContainerdAddress)
		public, err := os.MkdirTemp("/tmp", "doctor")
		if err == nil {
			t.Cleanup(func() { os.RemoveAll(public) })
			err = os.Chmod(public, 0o755)
		}
		if err == nil {
			nobody.Path = filepath.Join(public, "agent")
			err = copyFile(nobody.Path, doctor)
		}
		if err != nil {
			t.Fatal(err)
		}
		nobody.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		examine(t, nobody).want(t, "socket", "fail", "permission denied (user id 65534)")
	})
	t.Run("hanging", func(t *testing.T) {
		if err := syscall.Kill(r.Containerd.PID(), syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		cmd := at(r.ContainerdAddress)
		cmd.Args = append(cmd.Args, "--timeout", "1s")
		d := examine(t, cmd)
		took := time.Since(began)
		if err := syscall.Kill(r.Containerd.PID(), syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		d.want(t, "containerd", "fail", "no answer within 1s")
		if took > 5*time.Second {
			t.Errorf("took %s", took)
		}
	})
	r.Containerd.Kill()
	examine(t, at(r.ContainerdAddress)).want(t, "socket", "fail", "no process listens")
}

func copyFile(to, from string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o755)
}

func TestDoctorWithoutCRI(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{})
	r.examine(t).want(t, "cri", "fail", "its plugin is disabled")

	broken := startRuntime(t, cluster.ContainerdOptions{CRI: true})
	file := filepath.Join(broken.Dir, "containerd.toml")
	text, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, bytes.ReplaceAll(text, []byte("snapshotter = 'overlayfs'"), []byte("snapshotter = 'zfs'")), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	broken.Containerd.Kill()
	go func() { _ = broken.Containerd.Start(t.Context()) }() // it waits for CRI, in vain
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if _, err := broken.Version(t.Context()); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	broken.examine(t).want(t, "cri", "fail", "zfs")
}

// Images for another machine are there, but CRI has no use for them.
func TestDoctorOfAnotherPlatform(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{CRI: true})
	_, data := built(t, sample("doctor.example/app:1", 1))
	if o := r.agentImport(t, data, "--platform", "linux/arm64", "--no-unpack", "-"); o.code != 0 {
		t.Fatal(o.errOut)
	}
	d := r.examine(t, "--platform", "linux/arm64")
	d.want(t, "kubelet", "fail", "does not find 3 of 3 names: doctor.example/app:1")
	if d.checks["platform"].Verdict != "warn" {
		t.Errorf("%+v", d.checks["platform"])
	}
}

// What imports that run or were killed have is below their leases, and is not disturbed. Only what is below none is a fault.
func TestDoctorLeftovers(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{CRI: true})
	_, data := built(t, sample("doctor.example/app:1", 1))
	// More than what metadata is read in: an import pauses in the middle of a layer.
	reached, resume := make(chan struct{}, 100), make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("ETag", `"1"`)
		http.ServeContent(&pausing{w, req, reached, resume, 100_000}, req, "", time.Time{}, bytes.NewReader(data))
	}))
	defer srv.Close()
	begin := func() *exec.Cmd {
		cmd := r.command(t, "import", srv.URL)
		cmd.Stdout = io.Discard
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		<-reached
		return cmd
	}
	leases := func(n int) string { return fmt.Sprintf("%d leases of imports that run or were interrupted", n) }
	killed := begin()
	examine(t, r.command(t, "doctor")).want(t, "leftovers", "ok", leases(1))
	if err := killed.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = killed.Wait()
	time.Sleep(200 * time.Millisecond) // the daemon notices
	r.examine(t).want(t, "leftovers", "ok", leases(1))
	for len(reached) > 0 {
		<-reached
	}
	living := begin() // it adopts what the one before has left, whose lease stays until it is old
	examine(t, r.command(t, "doctor")).want(t, "leftovers", "ok", leases(2))
	close(resume)
	if err := living.Wait(); err != nil {
		t.Errorf("the import that was looked at: %v", err)
	}
	d := r.examine(t)
	d.want(t, "leftovers", "ok", leases(1)+", ")
	if d.checks["kubelet"].Found != "finds all 3 names" {
		t.Errorf("%+v", d.checks["kubelet"])
	}
}

// pausing holds back what comes after the first bytes of an answer.
type pausing struct {
	http.ResponseWriter
	req     *http.Request
	reached chan<- struct{}
	resume  <-chan struct{}
	left    int
}

func (w *pausing) Write(p []byte) (int, error) {
	first := min(len(p), w.left)
	n, err := w.ResponseWriter.Write(p[:first])
	if w.left -= n; err != nil || n == len(p) {
		return n, err
	}
	_ = http.NewResponseController(w.ResponseWriter).Flush()
	w.reached <- struct{}{}
	select {
	case <-w.resume:
	case <-w.req.Context().Done():
	}
	w.left = 1 << 62
	m, err := w.ResponseWriter.Write(p[n:])
	return n + m, err
}
