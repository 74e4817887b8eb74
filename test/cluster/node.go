package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/containerd/containerd/v2/client"
)

// Node is a machine of a cluster, or a bare containerd.
type Node struct {
	Name string
	IP   string // "" for a bare containerd
	// Dir has everything that the node keeps. Of a cluster's node, run,
	// containerd, kubelet and tarlift in it are /run/containerd,
	// /var/lib/containerd, /var/lib/kubelet and /var/lib/tarlift on the node.
	Dir string
	// ContainerdAddress is the socket as tests see it; on a cluster's node it is
	// /run/containerd/containerd.sock. The same goes for ContainerdRoot.
	ContainerdAddress string
	ContainerdRoot    string

	Containerd *Daemon
	Kubelet    *Daemon // nil for a bare containerd

	number  int
	cgroup  string
	tools   string
	binds   []bind
	mu      sync.Mutex
	machine *machine // nil for a bare containerd, and when powered off
}

// CNIDir is where a node has the configuration of its pods' network, and the
// plugins of that.
const CNIDir = "/var/lib/cni"

// nodeDirs are the directories of its own that a node has, and where they are
// in its Dir.
var nodeDirs = map[string]string{
	"/run/containerd":     "run",
	"/var/lib/containerd": "containerd",
	"/var/lib/kubelet":    "kubelet",
	"/var/lib/tarlift":    "tarlift",
	CNIDir:                "etc/cni",
	"/var/log/pods":       "log/pods",
	"/var/log/containers": "log/containers",
}

// pidFile in a node's Dir has the ID of its first process.
const pidFile = "pid"

// newNode writes the node's files. number starts at 1.
func (c *Cluster) newNode(number int) (*Node, error) {
	name := "node-" + string(rune('a'+number-1))
	n := &Node{
		Name: name, IP: nodeIP(number), Dir: filepath.Join(c.Dir, name),
		number: number, cgroup: filepath.Join(filepath.Base(workDir), name), tools: c.tools,
	}
	for to, from := range nodeDirs {
		b := bind{filepath.Join(n.Dir, from), to}
		if err := os.MkdirAll(b.from, 0o755); err != nil {
			return nil, err
		}
		n.binds = append(n.binds, b)
	}
	n.ContainerdAddress = filepath.Join(n.Dir, "run", "containerd.sock")
	n.ContainerdRoot = filepath.Join(n.Dir, "containerd")
	p := containerdPaths{
		root: "/var/lib/containerd", state: "/run/containerd",
		config: filepath.Join(n.Dir, "etc"), cni: filepath.Join(n.Dir, "etc", "cni"), tools: c.tools,
	}
	if err := p.write(true, !c.options.Bare); err != nil {
		return nil, err
	}
	n.Containerd = containerdDaemon(n, p, true, c.logs, c.progress)
	var err error
	n.Kubelet, err = c.makeKubelet(n)
	return n, err
}

// boot starts the node's machine, without any daemon.
func (n *Node) boot() error {
	if err := makeCgroup(n.cgroup); err != nil {
		return err
	}
	m, err := bootMachine(n.Name, n.Dir, n.number, n.binds)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.machine = m
	return os.WriteFile(filepath.Join(n.Dir, pidFile), []byte(strconv.Itoa(m.first.Process.Pid)), 0o644)
}

// Start starts cmd on the node: with its files, network and processes. Whoever
// starts it must also Wait, or the node cannot be stopped.
func (n *Node) Start(cmd *exec.Cmd) error {
	if n.IP == "" {
		return cmd.Start()
	}
	n.mu.Lock()
	m := n.machine
	n.mu.Unlock()
	if m == nil {
		return fmt.Errorf("%s is powered off", n.Name)
	}
	return m.start(cmd)
}

// Run runs cmd on the node to its end; see [Node.Start].
func (n *Node) Run(cmd *exec.Cmd) error {
	if err := n.Start(cmd); err != nil {
		return err
	}
	return cmd.Wait()
}

// Client is a containerd client of the node. The default namespace is CRI's.
func (n *Node) Client() (*client.Client, error) {
	return client.New(n.ContainerdAddress, client.WithDefaultNamespace("k8s.io"))
}

// PowerOff kills everything on the node at once: daemons, pods, and commands
// from [Node.Start]. The files stay as they are.
func (n *Node) PowerOff() {
	n.mu.Lock()
	m := n.machine
	n.machine = nil
	n.mu.Unlock()
	if m != nil {
		m.powerOff()
	}
	for _, d := range []*Daemon{n.Kubelet, n.Containerd} {
		if d != nil {
			d.Kill() // they have ended; this waits until that is known
		}
	}
}

// PowerOn starts a node again after [Node.PowerOff], and waits for its daemons
// (but not for Ready, see [Cluster.WaitReady]).
func (n *Node) PowerOn(ctx context.Context) error {
	for _, b := range n.binds {
		if b.to != "/run/containerd" { // which is in memory on a real machine
			continue
		}
		if err := errors.Join(removeTree(b.from), os.Mkdir(b.from, 0o755)); err != nil {
			return err
		}
	}
	if err := errors.Join(removeCgroup(n.cgroup), n.boot()); err != nil {
		return err
	}
	if err := n.Containerd.Start(ctx); err != nil {
		return err
	}
	return n.Kubelet.Start(ctx)
}

// Stop ends everything on the node and removes its files. It may be called again.
func (n *Node) Stop() error {
	n.PowerOff()
	// Mounts of a bare containerd; those of a machine went with it.
	err := errors.Join(unmountBelow(n.Dir), removeTree(n.Dir))
	if n.cgroup != "" {
		err = errors.Join(err, removeCgroup(n.cgroup))
	}
	if err != nil {
		return fmt.Errorf("stop %s: %w", n.Name, err)
	}
	return nil
}
