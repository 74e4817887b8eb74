package cluster

import (
	"context"
	"maps"
	"os"
	"path/filepath"

	"sigs.k8s.io/yaml"
)

// makeKubelet writes what the node's kubelet reads.
func (c *Cluster) makeKubelet(n *Node) (*Daemon, error) {
	id := identity{name: n.Name, user: "system:node:" + n.Name, group: "system:nodes", server: []string{n.Name, n.IP}}
	if err := c.pki.issue(id); err != nil {
		return nil, err
	}
	if err := c.pki.kubeconfig(n.Name); err != nil {
		return nil, err
	}
	config := c.kubeletConfig(n)
	maps.Copy(config, c.options.Kubelet)
	text, err := yaml.Marshal(config)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(n.Dir, "etc", "kubelet.yaml")
	if err := os.WriteFile(file, text, 0o644); err != nil {
		return nil, err
	}
	url := "http://" + n.IP + ":10248/healthz"
	health := httpClient(nil)
	return &Daemon{
		Name: n.Name + " kubelet", Log: filepath.Join(c.logs, n.Name+"-kubelet.log"),
		path: filepath.Join(c.tools, "kubelet"),
		args: []string{
			"--config=" + file, "--kubeconfig=" + c.pki.path(n.Name+".kubeconfig"),
			"--hostname-override=" + n.Name, "--node-ip=" + n.IP,
		},
		env: c.daemonEnv(), start: n.Start,
		waitsFor: url, ready: func(ctx context.Context) error { return answers(ctx, health, url) },
		progress: c.progress,
	}, nil
}

// kubeletConfig is a KubeletConfiguration: no limits on what pods of the node
// may use together, no eviction and no garbage collection of images by itself.
func (c *Cluster) kubeletConfig(n *Node) map[string]any {
	type object = map[string]any
	return object{
		"apiVersion":         "kubelet.config.k8s.io/v1beta1",
		"kind":               "KubeletConfiguration",
		"address":            n.IP,
		"healthzBindAddress": n.IP,
		"tlsCertFile":        c.pki.path(n.Name + ".crt"),
		"tlsPrivateKeyFile":  c.pki.path(n.Name + ".key"),
		"authentication": object{
			"anonymous": object{"enabled": false},
			"webhook":   object{"enabled": true},
			"x509":      object{"clientCAFile": c.pki.path("ca.crt")},
		},
		"authorization": object{"mode": "Webhook"},

		"containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
		"cgroupDriver":             "cgroupfs",
		"cgroupRoot":               "/" + n.cgroup,
		"enforceNodeAllocatable":   []string{},
		"failCgroupV1":             false,
		"failSwapOn":               false,
		"makeIPTablesUtilChains":   false,
		"volumePluginDir":          "/var/lib/kubelet/volumeplugins",
		"resolvConf":               "",
		"serializeImagePulls":      false,
		"shutdownGracePeriod":      "0s",

		// What the kubelet needs to have figures of the disk at all.
		"localStorageCapacityIsolation": true,
		"imageGCHighThresholdPercent":   100,
		"imageMinimumGCAge":             "24h",
		"evictionHard": object{
			"memory.available": "1Mi", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
			"imagefs.available": "0%", "imagefs.inodesFree": "0%",
		},

		// Tests wait for these.
		"nodeStatusUpdateFrequency": "5s",
		"nodeStatusReportFrequency": "10s",
		"syncFrequency":             "10s",
	}
}
