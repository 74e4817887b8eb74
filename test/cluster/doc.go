// Package cluster runs a real Kubernetes cluster for tests: etcd, the API
// server, controller manager and scheduler, and nodes of one containerd and one
// kubelet each. All of it lives in namespaces of its own, so that nothing is
// left of it afterwards, however it ends: see [Isolate]. It needs root, Linux
// with overlayfs, `ip` of iproute2, `go`, and the programs that `make tools`
// puts in bin/tools (TARLIFT_TOOLS names another directory).
//
// A package of tests hands its TestMain over, and then starts what it wants:
//
//	func TestMain(m *testing.M) { cluster.Main(m) }
//
//	func TestSomething(t *testing.T) {
//		c, err := cluster.Start(t.Context(), cluster.Options{Nodes: 3, Progress: t.Output()})
//		if err != nil {
//			t.Fatal(err)
//		}
//		t.Cleanup(func() { _ = c.Stop() })
//		…
//		c.Nodes[1].Containerd.Restart(ctx)
//	}
//
// Tests that need a container runtime only start a bare one, in 0.2 s:
//
//	n, err := cluster.StartContainerd(t.Context(), cluster.ContainerdOptions{})
//	t.Cleanup(func() { _ = n.Stop() })
//	client.New(n.ContainerdAddress)
//
// # Nodes
//
// A node of a cluster is a small machine: it has its own processes, network
// interface, host name, and its own /run/containerd, /var/lib/containerd,
// /var/lib/kubelet, /var/lib/tarlift, /var/log/pods and /var/log/containers.
// Whatever is deployed finds everything in its usual place, and pods on the
// host's network may listen on the same port on every node. From outside, these
// directories are below [Node.Dir]; [Node.Start] runs a program on the node.
//
// # Addresses
//
// Tests, and servers that tests start, run in the network of the control plane.
// Nodes reach it as [ControlPlaneIP]; the API server listens there on port 443,
// which is also what pods are told. Nodes have 10.77.1.11 and up. There is no
// way to any other network, and none for pods that are not on the host's.
//
// # For people
//
// `make cluster`, or go run ./test/cluster/cmd/cluster, gives a shell in which
// kubectl and helm work. TARLIFT_LOGS names a directory that keeps the logs.
package cluster
