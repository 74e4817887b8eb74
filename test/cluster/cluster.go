package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	logsEnv = "TARLIFT_LOGS"

	maxNodes = 26 // node-a to node-z
)

var errNotIsolated = errors.New("not in a namespace: TestMain must call cluster.Main, or main cluster.Isolate")

// Options of a cluster. The zero value is a control plane without nodes.
type Options struct {
	// Nodes is their number; they are named node-a, node-b, …
	Nodes int
	// Progress, when set, gets a line whenever something is waited for or ready.
	Progress io.Writer
	// Bare nodes have a containerd that is empty, without the image that every
	// pod needs (see [WritePause]) and without a network for pods (see
	// [CNIDir]), and no kubelet: to start that is the caller's.
	Bare bool
	// Bootstrap, when set, is called for every node when its containerd serves
	// and its kubelet has not been started: for images that must be there first.
	// It is called for several nodes at once.
	Bootstrap func(context.Context, *Node) error
	// Kubelet replaces members of every kubelet's KubeletConfiguration.
	Kubelet map[string]any
}

// Cluster is a running cluster. There is one at a time in a process.
type Cluster struct {
	Dir        string // everything that it keeps
	Kubeconfig string // path of a cluster administrator's kubeconfig
	Nodes      []*Node

	Etcd, APIServer, ControllerManager, Scheduler *Daemon

	options  Options
	tools    string
	logs     string
	pki      *pki
	config   *rest.Config
	progress *progress
	stop     sync.Once
	stopErr  error
}

var theOne = make(chan struct{}, 1)

// Start starts a cluster and waits until all its nodes are Ready. After an error
// nothing of it is left; the error's text has the end of the log that explains it.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	if workDir == "" {
		return nil, errNotIsolated
	}
	if o.Nodes < 0 || o.Nodes > maxNodes {
		return nil, fmt.Errorf("%d nodes: at most %d", o.Nodes, maxNodes)
	}
	tools, err := toolsDir("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler",
		"kubelet", "containerd", "containerd-shim-runc-v2", "runc")
	if err != nil {
		return nil, err
	}
	select {
	case theOne <- struct{}{}:
	default:
		return nil, errors.New("another cluster is running in this process")
	}
	c := &Cluster{Dir: filepath.Join(workDir, "cluster"), options: o, tools: tools, progress: newProgress(o.Progress)}
	if err := errors.Join(c.prepare(), ctx.Err()); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	if err := c.up(ctx); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("start a cluster: %w: %w", context.Cause(ctx), err)
		}
		return nil, errors.Join(err, c.Stop())
	}
	c.progress.say("the cluster is up")
	return c, nil
}

// prepare writes everything that the daemons read.
func (c *Cluster) prepare() error {
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return err
	}
	var err error
	if c.logs, err = logsDir(c.Dir); err != nil {
		return err
	}
	if c.pki, err = newPKI(filepath.Join(c.Dir, "pki")); err != nil {
		return err
	}
	if err := issueCertificates(c.pki); err != nil {
		return err
	}
	c.Kubeconfig = c.pki.path("admin.kubeconfig")
	if c.config, err = clientcmd.BuildConfigFromFlags("", c.Kubeconfig); err != nil {
		return err
	}
	c.config.QPS = -1 // tests poll
	for i := range c.options.Nodes {
		n, err := c.newNode(i + 1)
		if err != nil {
			return err
		}
		c.Nodes = append(c.Nodes, n)
	}
	if err := c.writeOn(); err != nil {
		return err
	}
	return c.makeControlPlane()
}

// writeOn writes a program for [Cluster.Env] that runs others on a node.
func (c *Cluster) writeOn() error {
	script := fmt.Sprintf(`#!/bin/sh
# usage: on NODE COMMAND [ARGUMENT]...
pid=$(cat '%s'/"$1"/%s) || exit 2
shift
exec nsenter --target "$pid" --mount --net --uts --pid -- "$@"
`, c.Dir, pidFile)
	bin := filepath.Join(c.Dir, "bin")
	return errors.Join(os.MkdirAll(bin, 0o755), os.WriteFile(filepath.Join(bin, "on"), []byte(script), 0o755))
}

// up starts everything, as far as possible at the same time.
func (c *Cluster) up(ctx context.Context) error {
	if err := ipBatch(startHere, "address add "+ControlPlaneIP+"/32 dev lo\n"); err != nil {
		return err
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil { // from node to node
		return err
	}
	apiUp := make(chan struct{})
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.startControlPlane(ctx, apiUp) })
	if len(c.Nodes) > 0 {
		g.Go(func() error { return c.startNodes(ctx, apiUp) })
	}
	return g.Wait()
}

// startNodes bootstraps all nodes, and when the API server answers starts their
// kubelets. It returns when they are Ready; bare ones, when their containerds serve.
func (c *Cluster) startNodes(ctx context.Context, apiUp <-chan struct{}) error {
	pause := make(chan []byte, len(c.Nodes))
	g, gctx := errgroup.WithContext(ctx)
	if !c.options.Bare {
		g.Go(func() error {
			archive, err := pauseArchive(gctx, c.Dir)
			for range c.Nodes {
				pause <- archive
			}
			return err
		})
	}
	for _, n := range c.Nodes {
		g.Go(func() error {
			if err := n.boot(); err != nil {
				return err
			}
			if err := n.Containerd.Start(gctx); err != nil {
				return err
			}
			if c.options.Bare {
				return nil
			}
			if archive := <-pause; archive == nil {
				return nil // the error is known
			} else if err := n.load(gctx, archive); err != nil {
				return err
			}
			if c.options.Bootstrap != nil {
				if err := c.options.Bootstrap(gctx, n); err != nil {
					return fmt.Errorf("bootstrap %s: %w", n.Name, err)
				}
			}
			select {
			case <-apiUp:
				return n.Kubelet.Start(gctx)
			case <-gctx.Done():
				return gctx.Err()
			}
		})
	}
	if err := g.Wait(); err != nil || c.options.Bare {
		return err
	}
	return c.WaitReady(ctx)
}

// WaitReady waits until these nodes are Ready, or all when none is named.
func (c *Cluster) WaitReady(ctx context.Context, names ...string) error {
	if len(names) == 0 {
		for _, n := range c.Nodes {
			names = append(names, n.Name)
		}
	}
	api, err := corev1client.NewForConfig(c.config)
	if err != nil {
		return err
	}
	c.progress.say("nodes: waiting for Ready")
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, fmt.Errorf("not ready within %s", readyTimeout))
	defer cancel()
	for {
		missing, err := notReady(ctx, api.Nodes(), names)
		if err == nil && len(missing) == 0 {
			c.progress.say("nodes: Ready: %s", strings.Join(names, ", "))
			return nil
		}
		select {
		case <-time.After(2 * readyPoll):
		case <-ctx.Done():
			return c.explain(fmt.Errorf("wait for Ready of %s: %w", strings.Join(missing, ", "), errors.Join(context.Cause(ctx), err)), missing)
		}
	}
}

// notReady gives those of the named nodes that are not Ready.
func notReady(ctx context.Context, api corev1client.NodeInterface, names []string) ([]string, error) {
	missing := slices.Clone(names)
	nodes, err := api.List(ctx, metav1.ListOptions{})
	if err != nil {
		return missing, err
	}
	for _, node := range nodes.Items {
		ready := slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
		})
		if ready {
			missing = slices.DeleteFunc(missing, func(name string) bool { return name == node.Name })
		}
	}
	return missing, nil
}

// explain adds the end of the logs of these nodes' kubelets.
func (c *Cluster) explain(err error, names []string) error {
	for _, n := range c.Nodes {
		if slices.Contains(names, n.Name) {
			err = fmt.Errorf("%w; the end of %s:\n%s", err, n.Kubelet.Log, tail(n.Kubelet.Log))
		}
	}
	return err
}

// Config is an administrator's client configuration, a copy.
func (c *Cluster) Config() *rest.Config { return rest.CopyConfig(c.config) }

// Env is what a program needs in its environment so that kubectl and helm are
// found, use this cluster, and leave nothing in the home directory. Found is
// also `on NODE COMMAND [ARGUMENT]...`, which runs a command on a node.
func (c *Cluster) Env() []string {
	in := func(name string) string { return filepath.Join(c.Dir, "home", name) }
	path := []string{filepath.Join(c.Dir, "bin"), c.tools, os.Getenv("PATH")}
	return []string{
		"KUBECONFIG=" + c.Kubeconfig,
		"PATH=" + strings.Join(path, string(filepath.ListSeparator)),
		"KUBECACHEDIR=" + in("kube"),
		"HELM_CACHE_HOME=" + in("helm/cache"), "HELM_CONFIG_HOME=" + in("helm/config"), "HELM_DATA_HOME=" + in("helm/data"),
	}
}

func (c *Cluster) daemonEnv() []string { return daemonEnv(c.tools) }

// daemonEnv is all the environment that a daemon has: nothing of the user's.
func daemonEnv(tools ...string) []string {
	return []string{
		"PATH=" + strings.Join(tools, ":") + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=" + workDir, "TMPDIR=" + os.TempDir(),
	}
}

// logsDir is where logs go: TARLIFT_LOGS, which stays, or a directory in dir.
func logsDir(dir string) (string, error) {
	logs := os.Getenv(logsEnv)
	if logs == "" {
		logs = filepath.Join(dir, "logs")
	}
	return logs, os.MkdirAll(logs, 0o755)
}

// Stop ends the cluster and removes everything of it. It is quick: nothing is
// asked to end by itself. It may be called again.
func (c *Cluster) Stop() error {
	c.stop.Do(func() {
		for _, d := range []*Daemon{c.Scheduler, c.ControllerManager, c.APIServer, c.Etcd} {
			if d != nil {
				d.Kill()
			}
		}
		var g errgroup.Group
		for _, n := range c.Nodes {
			g.Go(n.Stop)
		}
		c.stopErr = errors.Join(g.Wait(), removeTree(c.Dir), removeCgroup(filepath.Base(workDir)))
		_ = ipBatch(startHere, "address delete "+ControlPlaneIP+"/32 dev lo\n") // not there when preparing failed
		<-theOne
	})
	return c.stopErr
}
