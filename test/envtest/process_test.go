package envtest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/api/v1alpha1"
)

// kubeconfig writes a file that gives these rights.
func kubeconfig(t *testing.T, c *rest.Config) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	err := clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters: map[string]*clientcmdapi.Cluster{"c": {Server: c.Host, CertificateAuthorityData: c.CAData}},
		AuthInfos: map[string]*clientcmdapi.AuthInfo{"u": {
			ClientCertificateData: c.CertData, ClientKeyData: c.KeyData,
			Impersonate: c.Impersonate.UserName, ImpersonateGroups: c.Impersonate.Groups, ImpersonateUserExtra: c.Impersonate.Extra,
		}},
		Contexts:       map[string]*clientcmdapi.Context{"x": {Cluster: "c", AuthInfo: "u"}},
		CurrentContext: "x",
	}, file)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// program is a running agent binary.
type program struct {
	cmd    *exec.Cmd
	stderr bytes.Buffer
	done   chan struct{} // closed when stderr has been read to its end
}

func launch(t *testing.T, binary string, rights *rest.Config, args ...string) *program {
	t.Helper()
	p := &program{cmd: exec.CommandContext(t.Context(), binary, args...), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig(t, rights))
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		_, _ = io.Copy(&p.stderr, stderr)
	}()
	return p
}

// end stops the program as the kubelet does. It must end well, having logged nothing but JSON, and no error but that there is
// no containerd.
func (p *program) end(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-p.done
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("ended with %v\n%s", err, p.stderr.Bytes())
	}
	lines := bufio.NewScanner(&p.stderr)
	for lines.Scan() {
		var entry struct{ Level, Msg string }
		err := json.Unmarshal(lines.Bytes(), &entry)
		if err != nil || entry.Level == "ERROR" && !strings.Contains(lines.Text(), "containerd is unavailable") {
			t.Errorf("logged %s", lines.Bytes())
		}
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// get returns the status code of a page, or why there is none.
func get(t *testing.T, url string) (string, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		return err.Error(), nil
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return err.Error(), nil
	}
	return r.Status, body
}

func waitForPage(t *testing.T, url string) []byte {
	t.Helper()
	var body []byte
	eventually(t, url, func() (bool, string) {
		var status string
		status, body = get(t, url)
		return status == "200 OK", status
	})
	return body
}

// The programs as they are shipped, with the rights of their roles: both live, get ready without any containerd,
// do their work, and stop when told to.
func TestPrograms(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "agent")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "../../cmd/agent").CombinedOutput(); err != nil {
		t.Fatalf("build the agent: %v\n%s", err, out)
	}
	create(t, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "program"}})
	create(t, archiveWith(t, "program", fileSource))
	healthA, metricsA, healthB := freePort(t), freePort(t), freePort(t)
	node := launch(t, binary, onNode("program"), "node", "--node-name=program", "--address="+filepath.Join(t.TempDir(), "none.sock"),
		fmt.Sprintf("--health-probe-bind-address=[127.0.0.1]:%d", healthA), fmt.Sprintf("--metrics-bind-address=[127.0.0.1]:%d", metricsA))
	controller := launch(t, binary, as("tarlift-controller"), "controller", "--leader-elect", "--leader-election-namespace="+systemNamespace,
		fmt.Sprintf("--health-probe-bind-address=[127.0.0.1]:%d", healthB), "--metrics-bind-address=0")
	for _, port := range []int{healthA, healthB} {
		waitForPage(t, fmt.Sprintf("http://127.0.0.1:%d/healthz", port))
		waitForPage(t, fmt.Sprintf("http://127.0.0.1:%d/readyz", port))
	}
	got := waitForArchive(t, "program", "Ready=False/RuntimeUnavailable Reconciling=True/Importing", "0/1")
	if f := got.Status.Failures; len(f) != 1 || f[0].Node != "program" {
		t.Errorf("failures %+v", f)
	}
	if page := waitForPage(t, fmt.Sprintf("http://127.0.0.1:%d/metrics", metricsA)); !bytes.Contains(page, []byte("tarlift_imports_in_progress 0")) {
		t.Errorf("metrics:\n%s", page)
	}
	var lease coordinationv1.Lease
	if err := admin.Get(t.Context(), client.ObjectKey{Namespace: systemNamespace, Name: "controller.tarlift.dev"}, &lease); err != nil {
		t.Error(err)
	}
	node.end(t)
	controller.end(t)
	if err := admin.Delete(t.Context(), &v1alpha1.NodeImageState{ObjectMeta: metav1.ObjectMeta{Name: "program"}}); err != nil {
		t.Error(err)
	}
}
