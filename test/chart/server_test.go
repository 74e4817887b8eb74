package chart_test

import (
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// TestServerAccepts has a real API server look at what the chart makes: a field that is misspelt, or that another forbids,
// is an error there. The Prometheus operator's kinds it does not know; they are decoded strictly into their types elsewhere.
func TestServerAccepts(t *testing.T) {
	c, config := admin(t)
	for name, values := range valueSets {
		t.Run(name, func(t *testing.T) {
			unknown := 0
			for _, o := range render(t, values...) {
				err := c.Apply(t.Context(), client.ApplyConfigurationFromUnstructured(&o), client.FieldOwner("helm"), client.ForceOwnership, client.DryRunAll)
				switch {
				case meta.IsNoMatchError(err) && strings.HasPrefix(o.GetAPIVersion(), "monitoring.coreos.com/"):
					unknown++
				case err != nil:
					t.Errorf("%s %s: %v", o.GetKind(), o.GetName(), err)
				}
			}
			if want := map[string]int{"monitored": 3}[name]; unknown != want {
				t.Errorf("%d objects are of no known kind, want %d", unknown, want)
			}
		})
	}
	t.Run("replicas", func(t *testing.T) { checkReplicas(t, c, config) })
}

// checkReplicas is about controllers that could not share a node, on a cluster of two and then of one.
func checkReplicas(t *testing.T, c client.Client, config *rest.Config) {
	replicas := func(values ...string) int32 {
		// Another release, since what is there does not belong to one.
		args := []string{"template", "other", chart, "--namespace", namespace, "--dry-run=server", "--kubeconfig", kubeconfig(t, config), "--set", "crds.enabled=false"}
		for _, v := range values {
			args = append(args, "--set-json", v)
		}
		out, err := helm(t, args...)
		if err != nil {
			t.Fatal(err)
		}
		return *one[appsv1.Deployment](t, decodeAll(t, out), "Deployment").Spec.Replicas
	}
	const podNetwork = "controller.hostNetwork=false"
	if n := replicas("controller.replicas=3"); n != 2 {
		t.Errorf("%d controllers on the network of two hosts", n)
	}
	if n := replicas("controller.replicas=3", podNetwork); n != 3 {
		t.Errorf("%d controllers on the pod network", n)
	}
	if err := c.Delete(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-b"}}); err != nil {
		t.Fatal(err)
	}
	if n := replicas(); n != 1 {
		t.Errorf("%d controllers on the network of one host", n)
	}
	if n := replicas("controller.replicas=0"); n != 0 {
		t.Errorf("%d controllers, though none is wanted", n)
	}
}

// kubeconfig writes a file that gives these rights.
func kubeconfig(t *testing.T, c *rest.Config) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	err := clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"c": {Server: c.Host, CertificateAuthorityData: c.CAData}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{"u": {ClientCertificateData: c.CertData, ClientKeyData: c.KeyData}},
		Contexts:       map[string]*clientcmdapi.Context{"x": {Cluster: "c", AuthInfo: "u"}},
		CurrentContext: "x",
	}, file)
	if err != nil {
		t.Fatal(err)
	}
	return file
}
