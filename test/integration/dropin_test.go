package integration

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/test/cluster"
	"github.com/tarlift/tarlift/test/node"
)

// dropInPatience bounds what takes two seconds and an import: the machine may be slow.
const dropInPatience = 10 * time.Second

// nodeAgent is a running `agent node` with a drop-in directory, and without an API server.
type nodeAgent struct {
	cmd             *exec.Cmd
	health, metrics string

	mu    sync.Mutex
	began map[string][]time.Time // imports, by archive
	lines []string
	read  chan struct{} // closed at the end of the log
}

// startNode starts the agent. kubeconfig is the file's path, which need not be there.
func (r *runtime) startNode(t *testing.T, dir, kubeconfig string) *nodeAgent {
	t.Helper()
	agent, err := node.Agent()
	if err != nil {
		t.Fatal(err)
	}
	a := &nodeAgent{health: freeAddress(t), metrics: freeAddress(t), began: map[string][]time.Time{}, read: make(chan struct{})}
	a.cmd = exec.Command(agent, "node", "--node-name", "n", "--address", r.ContainerdAddress, "--disk-reserve", littleReserve,
		"--archive-dir", dir, "--health-probe-bind-address", a.health, "--metrics-bind-address", a.metrics)
	a.cmd.Env = []string{"KUBECONFIG=" + kubeconfig, "PATH=" + os.Getenv("PATH")}
	log, err := a.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go a.follow(log)
	t.Cleanup(func() {
		if a.cmd.ProcessState == nil {
			_ = a.cmd.Process.Kill()
			<-a.read
			_ = a.cmd.Wait()
		}
		if t.Failed() {
			t.Logf("log:\n%s", strings.Join(a.lines, "\n"))
		}
	})
	return a
}

// follow reads the log, which tells when imports begin.
func (a *nodeAgent) follow(log io.Reader) {
	defer close(a.read)
	for lines := bufio.NewScanner(log); lines.Scan(); {
		var entry struct {
			Time         time.Time
			Msg, Archive string
		}
		a.mu.Lock()
		a.lines = append(a.lines, lines.Text())
		if json.Unmarshal(lines.Bytes(), &entry) == nil && entry.Msg == "Importing" {
			a.began[entry.Archive] = append(a.began[entry.Archive], entry.Time)
		}
		a.mu.Unlock()
	}
}

// imports are when imports of a file began.
func (a *nodeAgent) imports(name string) []time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.began["drop-in/"+name]
}

// end stops the agent as the kubelet does.
func (a *nodeAgent) end(t *testing.T) {
	t.Helper()
	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-a.read
	if err := a.cmd.Wait(); err != nil {
		t.Errorf("ended with %v", err)
	}
}

// page is what the agent serves, empty if it serves nothing or says no.
func page(t *testing.T, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return ""
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		return ""
	}
	return string(body)
}

// becomes waits for a name to be there and pinned, or not pinned, and returns when it was seen so.
func (r *runtime) becomes(t *testing.T, name string, pinned bool) time.Time {
	t.Helper()
	for deadline := time.Now().Add(dropInPatience); ; time.Sleep(20 * time.Millisecond) {
		if r.has(t, name) && r.pinnedLabel(t, name) == pinned {
			return time.Now()
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is not there with pinned=%v", name, pinned)
		}
	}
}

// bytesRead is how much the agent has taken from sources, once it has counted an import.
func (a *nodeAgent) bytesRead(t *testing.T) (n float64) {
	t.Helper()
	for deadline := time.Now().Add(dropInPatience); n == 0 && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		for line := range strings.Lines(page(t, "http://"+a.metrics+"/metrics")) {
			if _, err := fmt.Sscanf(line, "tarlift_read_bytes_total %g", &n); err == nil {
				break
			}
		}
	}
	return n
}

func (r *runtime) pinnedLabel(t *testing.T, name string) bool {
	t.Helper()
	img, err := r.ImageService().Get(r.ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	return img.Labels["io.cri-containerd.pinned"] == "pinned"
}

// drop moves an archive into the directory, and returns when it was complete.
func drop(t *testing.T, dir, name string, data []byte) time.Time {
	t.Helper()
	part := filepath.Join(dir, "drop-in", "."+name)
	if err := errors.Join(os.WriteFile(part, data, 0o600), os.Rename(part, filepath.Join(dir, "drop-in", name))); err != nil {
		t.Fatal(err)
	}
	return time.Now()
}

// closedServer is a kubeconfig that leads to where nothing listens.
func closedServer(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"x","clusters":[{"name":"c","cluster":{"server":"https://%s"}}],`+
		`"users":[{"name":"u","user":{}}],"contexts":[{"name":"x","context":{"cluster":"c","user":"u"}}]}`, freeAddress(t))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// A file that is moved, or slowly copied, into the drop-in directory is imported once, without any API server; what it
// brought is unpinned when it is removed, except what an ImageArchive wants, too.
func TestDropIn(t *testing.T) {
	const renamed, slow, third = "registry.example/renamed:1", "registry.example/slow:1", "registry.example/third:1"
	for name, kubeconfig := range map[string]string{"closed": closedServer(t), "none": filepath.Join(t.TempDir(), "none")} {
		t.Run(name, func(t *testing.T) {
			r := startRuntime(t, cluster.ContainerdOptions{})
			dir := t.TempDir()
			if err := os.Mkdir(filepath.Join(dir, "drop-in"), 0o700); err != nil {
				t.Fatal(err)
			}
			both := tarOf(t, builder.Archive{Images: []builder.Image{image(renamed, gzipLayer("renamed", 1<<20)), image(app, gzipLayer("app", 1<<20))}})
			one := tarOf(t, builder.Archive{Images: []builder.Image{image(app, gzipLayer("app", 1<<20))}})
			r.bring(t, fileOf(t, one), under("1", importer.DeletionDelete))

			a := r.startNode(t, dir, kubeconfig)
			complete := drop(t, dir, "renamed.tar", both)
			seen := r.becomes(t, renamed, true)
			t.Logf("renamed: began %s after it was complete, and was there after %s", a.imports("renamed.tar")[0].Sub(complete), seen.Sub(complete))

			data := tarOf(t, builder.Archive{Images: []builder.Image{image(slow, gzipLayer("slow", 4<<20))}})
			complete, gap := copySlowly(t, filepath.Join(dir, "drop-in", "slow.tar"), data, 3*time.Second)
			seen = r.becomes(t, slow, true)
			began := a.imports("slow.tar")
			// A machine that is busy may stop the copy for so long that half of it looks complete.
			if gap < 800*time.Millisecond && (len(began) != 1 || began[0].Before(complete)) {
				t.Errorf("imports of the slowly copied file began at %v; it was complete at %s", began, complete)
			}
			t.Logf("slowly copied, with gaps of up to %s: began %s after it was complete, and was there after %s",
				gap, began[len(began)-1].Sub(complete), seen.Sub(complete))
			if page(t, "http://"+a.health+"/healthz") == "" || page(t, "http://"+a.health+"/readyz") != "" {
				t.Error("the agent is not live, or is ready without an API server")
			}
			a.end(t)

			a = r.startNode(t, dir, kubeconfig)
			data = tarOf(t, builder.Archive{Images: []builder.Image{image(third, gzipLayer("third", 1000))}})
			drop(t, dir, "third.tar", data)
			r.becomes(t, third, true)
			if n := len(a.imports("renamed.tar")) + len(a.imports("slow.tar")); n != 0 {
				t.Errorf("%d imports of what was there before the restart", n)
			}
			read := a.bytesRead(t)
			if read == 0 || int(read) > len(data)+slack {
				t.Errorf("read %g bytes after the restart; the new archive has %d", read, len(data))
			}

			if err := os.Remove(filepath.Join(dir, "drop-in", "renamed.tar")); err != nil {
				t.Fatal(err)
			}
			r.becomes(t, renamed, false)
			for _, name := range []string{app, slow, third} {
				if !r.pinnedLabel(t, name) {
					t.Errorf("%s is unpinned", name)
				}
			}
			a.end(t)
		})
	}
}

// copySlowly writes a file in pieces over a while, and returns when it was complete, and the longest time between two pieces.
func copySlowly(t *testing.T, path string, data []byte, over time.Duration) (complete time.Time, gap time.Duration) {
	t.Helper()
	const pieces = 10
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i := range pieces {
		last := time.Now()
		time.Sleep(over / pieces)
		if _, err := f.Write(data[i*len(data)/pieces : (i+1)*len(data)/pieces]); err != nil {
			t.Fatal(err)
		}
		gap = max(gap, time.Since(last))
	}
	return time.Now(), gap
}
