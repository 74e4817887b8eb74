package main

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/tarlift/tarlift/controllers/node"
	"github.com/tarlift/tarlift/internal/cli"
	"github.com/tarlift/tarlift/internal/importer"
)

// nodeFlags are the flags of `agent node`.
type nodeFlags struct {
	listen          listenFlags
	containerd      importer.Options
	nodeName        string
	secretNamespace string
	archiveDir      string
	allowAddresses  prefixes
	proxy           bool
	checkInterval   time.Duration
	releaseDelay    time.Duration
}

func (f *nodeFlags) add(flags *pflag.FlagSet) {
	addNodeName(flags, &f.nodeName)
	addContainerd(flags, &f.containerd)
	addConcurrency(flags, &f.containerd)
	flags.StringVar(&f.archiveDir, "archive-dir", "",
		"`directory` of spec.source.file; archives in its subdirectory drop-in are imported without an API server (default: none)")
	addSecretNamespace(flags, &f.secretNamespace)
	flags.Var(&f.allowAddresses, "allow-source-addresses",
		"`prefix` such as 127.0.0.1/32 of loopback, link-local, multicast or metadata service addresses that http sources may use "+
			"(repeatable; default: none)")
	flags.BoolVar(&f.proxy, "source-proxy-from-environment", false,
		"use the proxies of HTTP_PROXY, HTTPS_PROXY and NO_PROXY for http sources; the proxies then resolve host names")
	flags.DurationVar(&f.checkInterval, "check-interval", node.DefaultCheckInterval,
		"`time` between two checks of all images, plus or minus a fifth; containerd's events are handled at once")
	flags.DurationVar(&f.releaseDelay, "release-delay", node.DefaultReleaseDelay,
		"`time` for which images stay when the node's labels changed or its Node is gone; a deleted ImageArchive or a changed "+
			"spec.nodeSelector acts at once")
	f.listen.add(flags, ":9461", ":9462")
}

// sources are the sources that the agent may read archives from.
func (f nodeFlags) sources(secrets client.Reader) node.Sources {
	s := node.Sources{
		Secrets:        secrets,
		Namespace:      f.secretNamespace,
		ArchiveDir:     f.archiveDir,
		AllowAddresses: f.allowAddresses,
	}
	if f.proxy {
		s.Proxy = http.ProxyFromEnvironment
	}
	return s
}

// minCheckInterval keeps an agent from only checking: a check of many images takes a second on a slow disk.
const minCheckInterval = time.Second

func newNodeCommand() *cobra.Command {
	var f nodeFlags
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Import the ImageArchives that select this node, and report them in its NodeImageState",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.nodeName == "" {
				return cli.Usagef("--node-name is missing, and NODE_NAME is not set")
			}
			if f.checkInterval < minCheckInterval {
				return cli.Usagef("--check-interval must be at least %s", minCheckInterval)
			}
			return runNode(cmd.Context(), f)
		},
	}
	f.add(cmd.Flags())
	return cmd
}

func runNode(ctx context.Context, f nodeFlags) error {
	boundMemory()
	setLogger()
	server, err := clientConfig()
	switch {
	case err != nil && f.archiveDir == "":
		return err
	case err != nil:
		ctrl.Log.Info("No API server is configured yet; drop-ins are imported without it", "error", err.Error())
		server = (&lateServer{find: quietConfig}).config()
	}
	containerd, err := importer.New(f.containerd)
	if err != nil {
		return err
	}
	defer containerd.Close()
	mgr, err := newNodeManager(server, f)
	if err != nil {
		return err
	}
	r := &node.Reconciler{
		Client:   mgr.GetClient(),
		Importer: containerd,
		Sources:  f.sources(mgr.GetAPIReader()),
		NodeName: f.nodeName,
		Version:  version,
		Metrics:  metrics.Registry,

		CheckInterval: f.checkInterval,
		ReleaseDelay:  f.releaseDelay,
		DropIns:       f.archiveDir != "",
	}
	if err := r.SetupWithManager(mgr); err != nil {
		return err
	}
	ctrl.Log.Info("Starting", "node", f.nodeName, "version", version, "containerd", f.containerd.Address, "namespace", f.containerd.Namespace,
		"archiveDir", f.archiveDir, "secretNamespace", f.secretNamespace, "checkInterval", f.checkInterval.String(),
		"releaseDelay", f.releaseDelay.String())
	registerBuildInfo()
	return runManager(ctx, mgr)
}

func newNodeManager(server *rest.Config, f nodeFlags) (ctrl.Manager, error) {
	mgr, err := ctrl.NewManager(server, ctrl.Options{
		Scheme:                  newScheme(),
		Metrics:                 f.listen.metrics(),
		HealthProbeBindAddress:  f.listen.health,
		GracefulShutdownTimeout: ptr.To(shutdownTimeout),
		Controller:              config.Controller{CacheSyncTimeout: syncTimeout},
		Cache:                   node.Cache(f.nodeName),
		MapperProvider:          node.Kinds,
	})
	if err != nil {
		return nil, fmt.Errorf("create manager: %w", err)
	}
	return mgr, addProbes(mgr)
}

// addProbes makes a process live while it answers, and ready once its caches have the API server's objects. Neither probe
// asks containerd: restarting the agent would not repair containerd.
func addProbes(mgr ctrl.Manager) error {
	if err := mgr.AddHealthzCheck("ping", func(*http.Request) error { return nil }); err != nil {
		return fmt.Errorf("add liveness probe: %w", err)
	}
	err := mgr.AddReadyzCheck("caches", func(req *http.Request) error {
		ctx, cancel := context.WithTimeout(req.Context(), time.Second)
		defer cancel()
		if !mgr.GetCache().WaitForCacheSync(ctx) {
			return fmt.Errorf("the caches are not filled yet")
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("add readiness probe: %w", err)
	}
	return nil
}
