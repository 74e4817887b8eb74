package chart_test

import (
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// valueSets are the ways of installing that every promise below must survive.
var valueSets = map[string][]string{
	"defaults":      nil,
	"kubeadm":       {`containerd.preset="kubeadm"`},
	"k3s":           {`containerd.preset="k3s"`},
	"rke2":          {`containerd.preset="rke2"`, `node.seLinuxOptions={"type":"spc_t"}`},
	"k0s":           {`containerd.preset="k0s"`},
	"microk8s":      {`containerd.preset="microk8s"`, `containerd.snapshotter="native"`},
	"no kube-proxy": {`apiServer.host="10.0.0.1"`, `apiServer.port=443`},
	"pod network":   {`node.hostNetwork=false`, `controller.hostNetwork=false`, `node.dnsPolicy="ClusterFirst"`},
	"secrets apart": {`secrets.namespace="` + secretNamespace + `"`},
	"monitored":     monitored,
	"policies":      {`networkPolicy.enabled=true`, `node.hostNetwork=false`, `controller.hostNetwork=false`, `networkPolicy.metricsFrom=[{"namespaceSelector":{}}]`},
	"bare":          {`crds.enabled=false`, `admissionPolicy.enabled=false`, `node.ports.metrics=0`},
	"many values": {
		`image.digest="sha256:` + strings.Repeat("a", 64) + `"`, `image.pullPolicy="Never"`, `imagePullSecrets=[{"name":"pull"}]`,
		`node.podLabels={"a":"b","app.kubernetes.io/component":"x"}`, `controller.podLabels={"app.kubernetes.io/name":"x"}`, `node.podAnnotations={"a":"b"}`, `node.seLinuxOptions={"type":"spc_t"}`,
		`controller.replicas=1`, `node.concurrency=1`, `controller.affinity={"nodeAffinity":{}}`, `node.serviceAccountAnnotations={"a":"b"}`,
		`node.allowSourceAddresses=["127.0.0.1/32","fe80::/10"]`, `node.sourceProxyFromEnvironment=true`,
		`node.diskReserve="10Gi"`, `node.checkInterval="1h30m"`, `containerd.rootDirectory="/var/lib/containerd/tmpmounts"`,
	},
}

// secretNamespace is a namespace that has nothing but Secrets of sources.
const secretNamespace = "tarlift-secrets"

// pods returns the chart's pod templates by the role they play.
func pods(t *testing.T, objects []unstructured.Unstructured) map[string]corev1.PodTemplateSpec {
	t.Helper()
	return map[string]corev1.PodTemplateSpec{
		"node":       one[appsv1.DaemonSet](t, objects, "DaemonSet").Spec.Template,
		"controller": one[appsv1.Deployment](t, objects, "Deployment").Spec.Template,
	}
}

func TestPodsAreConfined(t *testing.T) {
	for name, values := range valueSets {
		t.Run(name, func(t *testing.T) {
			objects := render(t, values...)
			for role, pod := range pods(t, objects) {
				t.Run(role, func(t *testing.T) { checkConfined(t, pod.Spec) })
			}
			t.Run("doctor", func(t *testing.T) { checkConfined(t, one[corev1.Pod](t, objects, "Pod").Spec) })
		})
	}
}

func checkConfined(t *testing.T, pod corev1.PodSpec) {
	t.Helper()
	if len(pod.Containers) != 1 || len(pod.InitContainers) != 0 {
		t.Fatalf("%d containers and %d init containers, want 1 and 0", len(pod.Containers), len(pod.InitContainers))
	}
	if pod.HostPID || pod.HostIPC {
		t.Error("shares the host's processes or IPC")
	}
	if p := pod.SecurityContext.SeccompProfile; p == nil || p.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Errorf("seccomp profile %v, want RuntimeDefault", p)
	}
	no, yes := false, true
	want := &corev1.SecurityContext{
		Privileged: &no, AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
		Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
	}
	if diff := cmp.Diff(want, pod.Containers[0].SecurityContext); diff != "" {
		t.Errorf("container's security context (-want +got):\n%s", diff)
	}
	for _, m := range pod.Containers[0].VolumeMounts {
		if !m.ReadOnly {
			t.Errorf("%s is mounted writable", m.MountPath)
		}
	}
}

func TestUsers(t *testing.T) {
	all := pods(t, render(t))
	if u := all["node"].Spec.SecurityContext.RunAsUser; u == nil || *u != 0 {
		t.Errorf("node runs as %v: only user 0 can open containerd's socket", u)
	}
	c := all["controller"].Spec.SecurityContext
	if c.RunAsNonRoot == nil || !*c.RunAsNonRoot || c.RunAsUser == nil || *c.RunAsUser == 0 {
		t.Errorf("controller runs as root: %v", c)
	}
}

func TestMounts(t *testing.T) {
	tests := map[string]struct {
		values []string
		want   map[string]corev1.HostPathType
	}{
		"defaults": {nil, map[string]corev1.HostPathType{
			"/run/containerd": corev1.HostPathDirectory, "/var/lib/tarlift/archives": corev1.HostPathDirectoryOrCreate,
		}},
		"elsewhere": {
			[]string{`containerd.address="/run/k3s/containerd/containerd.sock"`, `archives.directory="/mnt/stick"`},
			map[string]corev1.HostPathType{
				"/run/k3s/containerd": corev1.HostPathDirectory, "/mnt/stick": corev1.HostPathDirectoryOrCreate,
			},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			all := pods(t, render(t, tt.values...))
			if v := all["controller"].Spec.Volumes; len(v) != 0 {
				t.Errorf("controller has volumes: %v", v)
			}
			pod := all["node"].Spec
			paths := map[string]string{}
			for _, m := range pod.Containers[0].VolumeMounts {
				if m.MountPropagation == nil || *m.MountPropagation != corev1.MountPropagationHostToContainer {
					t.Errorf("%s is mounted with propagation %v, want HostToContainer", m.MountPath, m.MountPropagation)
				}
				paths[m.Name] = m.MountPath
			}
			got := map[string]corev1.HostPathType{}
			for _, v := range pod.Volumes {
				got[v.HostPath.Path] = *v.HostPath.Type
				if paths[v.Name] != v.HostPath.Path {
					t.Errorf("%s is mounted at %q: the agent is told the host's path", v.HostPath.Path, paths[v.Name])
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("host paths (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPlacement(t *testing.T) {
	all := pods(t, render(t))
	node, controller := all["node"].Spec, all["controller"].Spec
	if diff := cmp.Diff([]corev1.Toleration{{Operator: corev1.TolerationOpExists}}, node.Tolerations); diff != "" {
		t.Errorf("node's tolerations (-want +got):\n%s", diff)
	}
	if node.PriorityClassName != "system-node-critical" {
		t.Errorf("node's priority class is %q", node.PriorityClassName)
	}
	for _, key := range []string{"node-role.kubernetes.io/control-plane", "node.kubernetes.io/not-ready"} {
		if !slices.ContainsFunc(controller.Tolerations, func(tol corev1.Toleration) bool {
			return tol.Key == key && tol.Operator == corev1.TolerationOpExists && tol.Effect == "" && tol.TolerationSeconds == nil
		}) {
			t.Errorf("controller does not tolerate %s", key)
		}
	}
	for role, pod := range all {
		if !pod.Spec.HostNetwork {
			t.Errorf("%s waits for a pod network", role)
		}
	}
}

// Both may run on one node, in its network.
func TestPortsAreDistinct(t *testing.T) {
	seen := map[int32]string{}
	for role, pod := range pods(t, render(t)) {
		for _, p := range pod.Spec.Containers[0].Ports {
			if other, taken := seen[p.ContainerPort]; taken {
				t.Errorf("port %d belongs to %s and %s", p.ContainerPort, other, role)
			}
			seen[p.ContainerPort] = role
		}
	}
	if len(seen) != 4 {
		t.Errorf("%d ports, want metrics and health of two roles", len(seen))
	}
}

func TestImage(t *testing.T) {
	digest := "sha256:" + strings.Repeat("0", 64)
	tests := map[string]struct {
		values []string
		want   string
	}{
		"chart's own version": {nil, "ghcr.io/tarlift/agent:0.1.0"},
		"tag":                 {[]string{`image.tag="v9"`}, "ghcr.io/tarlift/agent:v9"},
		"digest beats tag":    {[]string{`image.tag="v9"`, `image.digest="` + digest + `"`}, "ghcr.io/tarlift/agent@" + digest},
		"repository":          {[]string{`image.repository="reg:5000/a"`, `image.tag="1"`}, "reg:5000/a:1"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for role, pod := range pods(t, render(t, append(tt.values, `image.pullPolicy="Never"`)...)) {
				c := pod.Spec.Containers[0]
				if c.Image != tt.want || c.ImagePullPolicy != corev1.PullNever {
					t.Errorf("%s runs %q with %s, want %q with Never", role, c.Image, c.ImagePullPolicy, tt.want)
				}
			}
		})
	}
}

func TestAPIServerAddress(t *testing.T) {
	tests := map[string]struct {
		values []string
		want   map[string]string
	}{
		"the cluster's own": {nil, map[string]string{}},
		"set": {[]string{`apiServer.host="fd00::1"`, `apiServer.port=443`}, map[string]string{
			"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443",
		}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for role, pod := range pods(t, render(t, tt.values...)) {
				got := map[string]string{}
				for _, e := range pod.Spec.Containers[0].Env {
					if strings.HasPrefix(e.Name, "KUBERNETES_") {
						got[e.Name] = e.Value
					}
				}
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", role, diff)
				}
			}
		})
	}
}

// What an http source may reach is decided by whoever installs the chart; by default it is nothing of the node.
func TestSourceAddresses(t *testing.T) {
	tests := map[string]struct{ values, want []string }{
		"defaults": {nil, nil},
		"set": {
			[]string{`node.allowSourceAddresses=["127.0.0.1/32","fe80::/10"]`, `node.sourceProxyFromEnvironment=true`},
			[]string{"--allow-source-addresses=127.0.0.1/32", "--allow-source-addresses=fe80::/10", "--source-proxy-from-environment"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for role, pod := range pods(t, render(t, tt.values...)) {
				var got []string
				for _, arg := range pod.Spec.Containers[0].Args {
					if strings.Contains(arg, "source-") {
						got = append(got, arg)
					}
				}
				want := tt.want
				if role == "controller" {
					want = nil // it opens no sources
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s's arguments (-want +got):\n%s", role, diff)
				}
			}
		})
	}
}

func TestCheckInterval(t *testing.T) {
	for want, values := range map[string][]string{"10m": nil, "1h30m": {`node.checkInterval="1h30m"`}} {
		args := pods(t, render(t, values...))["node"].Spec.Containers[0].Args
		if !slices.Contains(args, "--check-interval="+want) {
			t.Errorf("the node's arguments lack an interval of %s: %q", want, args)
		}
	}
}

// TestPresets checks where the agent is told containerd to be, and what is mounted for that. Explicit values win.
func TestPresets(t *testing.T) {
	const native = `containerd.snapshotter="native"`
	type want struct{ address, namespace, root string }
	tests := map[string]struct {
		values []string
		want   want
	}{
		"default":   {nil, want{"/run/containerd/containerd.sock", "k8s.io", ""}},
		"kubeadm":   {[]string{`containerd.preset="kubeadm"`, native}, want{"/run/containerd/containerd.sock", "k8s.io", "/var/lib/containerd/tmpmounts"}},
		"k3s":       {[]string{`containerd.preset="k3s"`, native}, want{"/run/k3s/containerd/containerd.sock", "k8s.io", "/var/lib/rancher/k3s/agent/containerd/tmpmounts"}},
		"rke2":      {[]string{`containerd.preset="rke2"`, native}, want{"/run/k3s/containerd/containerd.sock", "k8s.io", "/var/lib/rancher/rke2/agent/containerd/tmpmounts"}},
		"k0s":       {[]string{`containerd.preset="k0s"`, native}, want{"/run/k0s/containerd.sock", "k8s.io", "/var/lib/k0s/containerd/tmpmounts"}},
		"microk8s":  {[]string{`containerd.preset="microk8s"`, native}, want{"/var/snap/microk8s/common/run/containerd.sock", "k8s.io", "/var/snap/microk8s/common/var/lib/containerd/tmpmounts"}},
		"overlayfs": {[]string{`containerd.preset="k3s"`, `containerd.snapshotter="overlayfs"`}, want{"/run/k3s/containerd/containerd.sock", "k8s.io", ""}},
		"explicit": {
			[]string{`containerd.preset="k3s"`, native, `containerd.address="/run/mine/c.sock"`, `containerd.namespace="mine"`, `containerd.rootDirectory="/data/tmp"`},
			want{"/run/mine/c.sock", "mine", "/data/tmp"},
		},
		// Where its root is, is not known then.
		"an address only": {[]string{`containerd.preset="k3s"`, native, `containerd.address="/run/mine/c.sock"`}, want{"/run/mine/c.sock", "k8s.io", ""}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			pod := pods(t, render(t, tt.values...))["node"].Spec
			var got want
			for _, arg := range pod.Containers[0].Args {
				switch flag, value, _ := strings.Cut(arg, "="); flag {
				case "--address":
					got.address = value
				case "--namespace":
					got.namespace = value
				}
			}
			mounted := map[string]string{}
			for _, v := range pod.Volumes {
				mounted[v.Name] = v.HostPath.Path
			}
			got.root = mounted["containerd-root"]
			if got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
			if dir := path.Dir(got.address); mounted["containerd"] != dir {
				t.Errorf("%s is mounted, want %s", mounted["containerd"], dir)
			}
		})
	}
}

// What the agent looks at to see how much space is left is what the chart mounts.
func TestDiskReserve(t *testing.T) {
	for name, tt := range map[string]struct {
		values, args, mounted []string
	}{
		"defaults": {nil, []string{"--disk-reserve=15%"}, nil},
		"none":     {[]string{`node.diskReserve="0"`}, []string{"--disk-reserve=0"}, nil},
		"a root":   {[]string{`containerd.rootDirectory="/data/c/tmp"`}, []string{"--disk-reserve=15%", "--containerd-root=/containerd-root"}, []string{"/data/c/tmp"}},
	} {
		t.Run(name, func(t *testing.T) {
			pod := pods(t, render(t, tt.values...))["node"].Spec
			var args, mounted []string
			for _, arg := range pod.Containers[0].Args {
				if strings.HasPrefix(arg, "--disk") || strings.HasPrefix(arg, "--containerd") {
					args = append(args, arg)
				}
			}
			for _, m := range pod.Containers[0].VolumeMounts {
				for _, v := range pod.Volumes {
					if m.MountPath == "/containerd-root" && v.Name == m.Name && m.ReadOnly {
						mounted = append(mounted, v.HostPath.Path)
					}
				}
			}
			if diff := cmp.Diff([][]string{tt.args, tt.mounted}, [][]string{args, mounted}); diff != "" {
				t.Errorf("arguments and mounts (-want +got):\n%s", diff)
			}
		})
	}
}
