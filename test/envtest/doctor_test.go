package envtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlenvtest "sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/tarlift/tarlift/test/cluster"
)

// practice is the agent's binary.
type practice string

func TestDoctor(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "agent")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "../../cmd/agent").CombinedOutput(); err != nil {
		t.Fatalf("build the agent: %v: %s", err, out)
	}
	p := practice(binary)
	t.Run("of a node", p.testNode)
	t.Run("of a node that fails", p.testFailingNode)
	t.Run("of a bare cluster", p.testBareCluster)
}

// doctor runs `agent doctor` where there is no containerd, and gives what it says of the cluster: by check, verdict and
// finding.
func (p practice) doctor(t *testing.T, c *rest.Config, args ...string) map[string]string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), string(p), append([]string{
		"doctor", "-o", "json", "--address", filepath.Join(t.TempDir(), "none.sock"), "--kubeconfig", kubeconfig(t, c)}, args...)...)
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Fatalf("%v: %s", err, out)
	}
	var o struct {
		Checks []struct{ Check, Verdict, Found, Remedy string }
	}
	if err := json.Unmarshal(out, &o); err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, c := range o.Checks {
		found[c.Check] = c.Verdict + ": " + c.Found
	}
	return found
}

// wantFound compares the beginnings of what was found, and looks for words in it.
func wantFound(t *testing.T, got, want map[string]string) {
	t.Helper()
	for check, w := range want {
		verdict, words, _ := strings.Cut(w, " ")
		if !strings.HasPrefix(got[check], verdict+":") || !strings.Contains(got[check], words) {
			t.Errorf("%s: %q, want %q", check, got[check], w)
		}
	}
}

func (p practice) testNode(t *testing.T) {
	n := newFakeNode(t, "doctor-node")
	in := []string{"--node-name", n.name, "--secret-namespace", systemNamespace}
	wantFound(t, p.doctor(t, onNode(n.name), in...), map[string]string{
		"api server": "ok v1.", "cluster clock": "ok", "crds": "ok tarlift.dev/v1alpha1", "rights": "ok tarlift-node has all", "node": "ok " + n.name,
		"own state": "warn has not reported yet", "policy": "ok",
	})
	n.put(t, "a.tar")
	n.start(t)
	n.newArchive(t, "doctor")
	n.waitFor(t, "doctor", ready)
	wantFound(t, p.doctor(t, onNode(n.name), in...), map[string]string{"own state": "ok 1 archives, all ready"})
	// What one doctor tries of the policy leaves nothing.
	var list unstructured.UnstructuredList
	list.SetAPIVersion("tarlift.dev/v1alpha1")
	list.SetKind("NodeImageStateList")
	if err := admin.List(t.Context(), &list, client.MatchingFields{"metadata.name": "tarlift-doctor-no-such-node"}); err != nil || len(list.Items) != 0 {
		t.Errorf("%d left, %v", len(list.Items), err)
	}
	wantFound(t, p.doctor(t, onNode(n.name), "--node-name", "nowhere"), map[string]string{"node": "fail there is no Node nowhere", "own state": "warn no NodeImageState nowhere"})
	wantFound(t, p.doctor(t, adminConfig), map[string]string{"rights": "skip is not the agent", "policy": "ok an admission policy matches", "node": "skip", "own state": "skip"})
	wantFound(t, p.doctor(t, as("nobody")), map[string]string{"rights": "fail may not list imagearchives", "policy": "skip may not list policies", "crds": "ok"})
}

func (p practice) testFailingNode(t *testing.T) {
	n := newFakeNode(t, "doctor-fails")
	n.fail = errors.New("it is made to fail")
	n.put(t, "a.tar")
	n.start(t)
	n.newArchive(t, "doctor-fails")
	eventually(t, "the failure to be reported", func() (bool, string) {
		got := p.doctor(t, onNode(n.name), "--node-name", n.name)["own state"]
		return strings.HasPrefix(got, "warn: 1 of 1 archives are not ready: doctor-fails: "), got
	})
}

// Where nothing of ours is installed, or what is too old.
func (p practice) testBareCluster(t *testing.T) {
	assets, err := cluster.ToolsDir()
	if err != nil {
		t.Fatal(err)
	}
	env := &ctrlenvtest.Environment{BinaryAssetsDirectory: assets}
	bare, err := env.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := env.Stop(); err != nil {
			t.Error(err)
		}
	})
	agent := rest.CopyConfig(bare)
	agent.Impersonate = onNode("n").Impersonate
	wantFound(t, p.doctor(t, agent), map[string]string{"api server": "ok", "crds": "fail is not served (status 404)", "rights": "skip", "policy": "skip"})

	c, err := client.New(bare, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: systemNamespace}}); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"../../config/crd/tarlift.dev_imagearchives.yaml", "../../config/crd/tarlift.dev_nodeimagestates.yaml"} {
		for _, o := range objects(t, file) {
			schema, _, err := unstructured.NestedSlice(o.Object, "spec", "versions")
			if err != nil {
				t.Fatal(err)
			}
			unstructured.RemoveNestedField(schema[0].(map[string]any), "schema", "openAPIV3Schema", "properties", "spec", "properties", "rollout")
			if err := unstructured.SetNestedSlice(o.Object, schema, "spec", "versions"); err != nil {
				t.Fatal(err)
			}
			if err := c.Create(t.Context(), o); err != nil {
				t.Fatal(err)
			}
		}
	}
	eventually(t, "the old CRDs to be found out", func() (bool, string) {
		got := p.doctor(t, agent)["crds"]
		return strings.HasPrefix(got, "fail: older than this agent: ImageArchive.spec.rollout"), got
	})
	wantFound(t, p.doctor(t, agent, "--secret-namespace", systemNamespace, "--node-name", "n"), map[string]string{
		"rights": "fail get secrets in " + systemNamespace, "policy": "skip may not write for any node", "node": "skip may not list nodes",
	})
	for _, o := range objects(t, "../../config/rbac/node.yaml") {
		if err := c.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the roles to count", func() (bool, string) {
		got := p.doctor(t, agent, "--secret-namespace", systemNamespace)
		return strings.HasPrefix(got["rights"], "ok: ") && got["policy"] == "warn: the agent may write for other nodes", got["rights"] + got["policy"]
	})
	wantFound(t, p.doctor(t, bare), map[string]string{"policy": "warn no admission policy"})

	gone := rest.CopyConfig(bare)
	gone.Host = "https://127.0.0.1:1"
	wantFound(t, p.doctor(t, gone), map[string]string{"api server": "fail refused", "crds": "skip", "policy": "skip"})
}

// objects reads all objects of a YAML file.
func objects(t *testing.T, file string) (all []*unstructured.Unstructured) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	docs := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(data), 4096)
	for {
		o := &unstructured.Unstructured{}
		if err := docs.Decode(o); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, o)
	}
}
