package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/containerd/containerd/v2/client"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pauseImage holds the namespaces of each pod.
const pauseImage = "tarlift.test/pause:1"

// containerdPaths are where a containerd has its things, as it sees them itself.
// tools has the programs of all releases, release names the one that runs, as
// [ContainerdOptions] do.
type containerdPaths struct{ root, state, config, cni, tools, release string }

// containerdTool is a program of a release, below the directory of tools.
func containerdTool(release, name string) string {
	if release == "" {
		return name
	}
	return filepath.Join("containerd-"+release, name)
}

func (p containerdPaths) address() string { return filepath.Join(p.state, "containerd.sock") }

// pluginsUnused need kernel modules or devices, or are not for tests.
var pluginsUnused = []string{
	"io.containerd.nri.v1.nri", "io.containerd.tracing.processor.v1.otlp",
	"io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
	"io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.zfs",
}

var pluginsCRI = []string{"io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"}

// conflist is the configuration of the pods' network. It needs no plugin's
// binary, and is enough for pods on the host's network.
const conflist = `{"cniVersion":"1.0.0","name":"lo","plugins":[{"type":"loopback"}]}`

// write makes the directories and the configuration, and that of the pods'
// network where it is wanted.
func (p containerdPaths) write(cri, network bool) error {
	for _, dir := range []string{p.root, p.state, p.cni, filepath.Join(p.config, "opt")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if network {
		if err := os.WriteFile(filepath.Join(p.cni, "10-lo.conflist"), []byte(conflist), 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(p.configFile(), []byte(p.toml(cri)), 0o644)
}

func (p containerdPaths) configFile() string { return filepath.Join(p.config, "containerd.toml") }

func (p containerdPaths) toml(cri bool) string {
	disabled := pluginsUnused
	if !cri {
		disabled = append(disabled[:len(disabled):len(disabled)], pluginsCRI...)
	}
	version, plugins := 3, p.criPlugins()
	if strings.HasPrefix(p.release, "1.") {
		version, plugins = 2, p.criPlugin()
	}
	return fmt.Sprintf(`version = %[1]d
root = '%[2]s'
state = '%[3]s'
imports = []
disabled_plugins = ['%[4]s']
[grpc]
  address = '%[5]s'
[ttrpc]
  address = '%[5]s.ttrpc'
[plugins.'io.containerd.internal.v1.opt']
  path = '%[6]s/opt'
[plugins.'io.containerd.grpc.v1.cri']
  stream_server_address = '127.0.0.1'
  stream_server_port = '0'
`, version, p.root, p.state, strings.Join(disabled, "', '"), p.address(), p.config) + plugins
}

// criPlugins is the configuration of CRI's plugins since containerd 2.0.
func (p containerdPaths) criPlugins() string {
	return fmt.Sprintf(`[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'overlayfs'
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = '%[1]s'
[plugins.'io.containerd.cri.v1.runtime']
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ['%[2]s']
    conf_dir = '%[2]s'
    use_internal_loopback = true
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = 'io.containerd.runc.v2'
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      BinaryName = '%[3]s/runc'
      Root = '%[4]s/runc'
      SystemdCgroup = false
`, pauseImage, p.cni, p.tools, p.state)
}

// criPlugin is the same for 1.7, where all of CRI is one plugin.
func (p containerdPaths) criPlugin() string {
	return fmt.Sprintf(`  sandbox_image = '%[1]s'
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins.'io.containerd.grpc.v1.cri'.cni]
    bin_dir = '%[2]s'
    conf_dir = '%[2]s'
  [plugins.'io.containerd.grpc.v1.cri'.containerd]
    snapshotter = 'overlayfs'
    [plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]
      runtime_type = 'io.containerd.runc.v2'
      [plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc.options]
        BinaryName = '%[3]s/runc'
        Root = '%[4]s/runc'
        SystemdCgroup = false
`, pauseImage, p.cni, p.tools, p.state)
}

// ContainerdOptions of a bare containerd. The zero value is without CRI.
type ContainerdOptions struct {
	CRI bool
	// Release is an older one, such as "1.7", of those that `make tools` puts
	// into bin/tools/containerd-RELEASE; empty for the present one.
	Release string
	// Root is containerd's root directory instead of one in the work directory:
	// for a file system that is small, or fails. It is not removed.
	Root string
	// Env is added to containerd's environment.
	Env []string
	// Progress, when set, gets lines about what is waited for.
	Progress io.Writer
}

var bareNodes atomic.Int32

// StartContainerd starts a containerd that is no node of a cluster: root, state
// and socket are its own, and it sees the same files as the test. [Node.Stop]
// purges it.
func StartContainerd(ctx context.Context, o ContainerdOptions) (*Node, error) {
	if workDir == "" {
		return nil, errNotIsolated
	}
	tools, err := toolsDir(containerdTool(o.Release, "containerd"), containerdTool(o.Release, "containerd-shim-runc-v2"), "runc")
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("containerd-%d", bareNodes.Add(1))
	n := &Node{Name: name, Dir: filepath.Join(workDir, name)}
	p := containerdPaths{
		root: filepath.Join(n.Dir, "root"), state: filepath.Join(n.Dir, "run"),
		config: n.Dir, cni: filepath.Join(n.Dir, "cni"), tools: tools, release: o.Release,
	}
	if o.Root != "" {
		p.root = o.Root
	}
	n.ContainerdAddress, n.ContainerdRoot = p.address(), p.root
	if err := p.write(o.CRI, true); err != nil {
		return nil, errors.Join(err, n.Stop())
	}
	logs, err := logsDir(n.Dir)
	if err != nil {
		return nil, errors.Join(err, n.Stop())
	}
	n.Containerd = containerdDaemon(n, p, o.CRI, logs, newProgress(o.Progress))
	n.Containerd.env = append(n.Containerd.env, o.Env...)
	if err := n.Containerd.Start(ctx); err != nil {
		return nil, errors.Join(err, n.Stop())
	}
	return n, nil
}

func containerdDaemon(n *Node, p containerdPaths, cri bool, logs string, progress *progress) *Daemon {
	program := filepath.Join(p.tools, containerdTool(p.release, "containerd"))
	return &Daemon{
		Name: n.Name + " containerd", Log: filepath.Join(logs, n.Name+"-containerd.log"),
		path: program, args: []string{"--config", p.configFile()},
		env: daemonEnv(filepath.Dir(program), p.tools), start: n.Start, // its own shim is found first
		waitsFor: n.ContainerdAddress,
		ready:    func(ctx context.Context) error { return containerdServes(ctx, n.ContainerdAddress, cri) },
		progress: progress,
	}
}

// containerdServes returns nil when containerd answers, and CRI too where it is wanted.
func containerdServes(ctx context.Context, address string, cri bool) error {
	socket, err := net.Dial("unix", address) // fails at once where the client would back off
	if err != nil {
		return err
	}
	socket.Close()
	c, err := client.New(address)
	if err != nil {
		return err
	}
	defer c.Close()
	if !cri {
		_, err = c.Version(ctx)
		return err
	}
	conn, ok := c.Conn().(grpc.ClientConnInterface)
	if !ok {
		return fmt.Errorf("containerd's client has a connection of type %T", c.Conn())
	}
	_, err = runtimeapi.NewRuntimeServiceClient(conn).Version(ctx, &runtimeapi.VersionRequest{})
	return err
}
