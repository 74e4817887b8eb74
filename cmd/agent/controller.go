package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/uuid"
	coordinationv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/fleet"
	"github.com/tarlift/tarlift/internal/cli"
)

const (
	// leaseName is the Lease of the controllers' leader election; the role allows no other.
	leaseName = "controller.tarlift.dev"
	// shutdownTimeout is how long a stopping process waits for a running import to end and for Events to be sent:
	// less than the 30 s that the kubelet gives a pod.
	shutdownTimeout = 20 * time.Second
	// syncTimeout is how long a process waits for an API server that does not answer, or lacks the CRDs. If the process
	// ended earlier, the kubelet's backoff would only delay it.
	syncTimeout = 24 * time.Hour
	// leaseDuration and renewDeadline leave a leader its Lease while the API server of a large fleet is busy.
	leaseDuration, renewDeadline = 30 * time.Second, 20 * time.Second
)

// controllerFlags are the flags of `agent controller`.
type controllerFlags struct {
	listen                  listenFlags
	leaderElect             bool
	leaderElectionNamespace string
}

func newControllerCommand() *cobra.Command {
	var f controllerFlags
	cmd := &cobra.Command{
		Use:   "controller",
		Short: "Aggregate the nodes' reports in the status of ImageArchives, and admit nodes as rollouts allow",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.leaderElect && f.leaderElectionNamespace == "" {
				return cli.Usagef("--leader-election-namespace is missing, and POD_NAMESPACE is not set")
			}
			return runController(cmd.Context(), f)
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.leaderElect, "leader-elect", false, "elect a leader by a Lease, so that several controllers can run")
	flags.StringVar(&f.leaderElectionNamespace, "leader-election-namespace", os.Getenv("POD_NAMESPACE"),
		"`namespace` of the Lease (default: $POD_NAMESPACE)")
	f.listen.add(flags, ":9463", ":9464")
	return cmd
}

func runController(ctx context.Context, f controllerFlags) error {
	setLogger()
	server, err := clientConfig()
	if err != nil {
		return err
	}
	mgr, err := newControllerManager(server, f)
	if err != nil {
		return err
	}
	r := &fleet.Reconciler{
		Client: mgr.GetClient(), Recorder: mgr.GetEventRecorder("tarlift-controller"), Metrics: metrics.Registry,
	}
	if err := r.SetupWithManager(mgr); err != nil {
		return err
	}
	ctrl.Log.Info("Starting", "version", version, "leaderElect", f.leaderElect, "leaderElectionNamespace", f.leaderElectionNamespace)
	registerBuildInfo()
	return runManager(ctx, mgr)
}

// registerBuildInfo tells the program's version beside its metrics.
func registerBuildInfo() {
	info := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Namespace: "tarlift", Name: "build_info", Help: "Always 1; the label has the version.",
	}, []string{"version"})
	metrics.Registry.MustRegister(info)
	info.WithLabelValues(version).Set(1)
}

func newControllerManager(server *rest.Config, f controllerFlags) (ctrl.Manager, error) {
	options := ctrl.Options{
		Scheme:                        newScheme(),
		Metrics:                       f.listen.metrics(),
		HealthProbeBindAddress:        f.listen.health,
		LeaderElection:                f.leaderElect,
		LeaderElectionReleaseOnCancel: true,
		LeaseDuration:                 ptr.To(leaseDuration),
		RenewDeadline:                 ptr.To(renewDeadline),
		GracefulShutdownTimeout:       ptr.To(shutdownTimeout),
		Controller:                    config.Controller{CacheSyncTimeout: syncTimeout},
		Cache:                         fleet.Cache(),
	}
	if f.leaderElect {
		lock, err := newLeaderLock(server, f.leaderElectionNamespace)
		if err != nil {
			return nil, err
		}
		options.LeaderElectionResourceLockInterface = lock
	}
	mgr, err := ctrl.NewManager(server, options)
	if err != nil {
		return nil, fmt.Errorf("create manager: %w", err)
	}
	return mgr, addProbes(mgr)
}

// newLeaderLock returns a lock that emits no Events: those of the manager's own lock need a right to the old Event API.
func newLeaderLock(config *rest.Config, namespace string) (resourcelock.Interface, error) {
	client, err := coordinationv1.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("create client for leader election: %w", err)
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("leader election: %w", err)
	}
	return &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Name: leaseName, Namespace: namespace},
		Client:     client,
		LockConfig: resourcelock.ResourceLockConfig{Identity: host + "_" + string(uuid.NewUUID())},
	}, nil
}

// listenFlags say where a process serves metrics and probes.
type listenFlags struct {
	metricsAddress, health string
}

func (f *listenFlags) add(flags *pflag.FlagSet, metrics, health string) {
	flags.StringVar(&f.metricsAddress, "metrics-bind-address", metrics, "`address` of metrics; 0 for none")
	flags.StringVar(&f.health, "health-probe-bind-address", health, "`address` of /healthz and /readyz; 0 for none")
}

func (f *listenFlags) metrics() metricsserver.Options {
	return metricsserver.Options{BindAddress: f.metricsAddress}
}

func newScheme() *runtime.Scheme {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, eventsv1.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			panic(err) // only a wrong build registers two types under one name
		}
	}
	return scheme
}

// clientConfig finds the API server: a pod's service account, or $KUBECONFIG.
func clientConfig() (*rest.Config, error) {
	config, err := ctrl.GetConfig()
	if err != nil {
		return nil, fmt.Errorf("find the API server: %w", err)
	}
	config.UserAgent = rest.DefaultKubernetesUserAgent()
	if _, err := rest.TransportFor(config); err != nil { // a certificate file that does not exist, for example
		return nil, fmt.Errorf("find the API server: %w", err)
	}
	return config, nil
}

// setLogger sends all logs to standard error, one JSON object a line.
func setLogger() {
	log := newLogger(os.Stderr)
	ctrl.SetLogger(log)
	klog.SetLogger(log)
}

func newLogger(w io.Writer) logr.Logger {
	return logr.FromSlogHandler(unlessBenign{slog.NewJSONHandler(w, nil)})
}

// runManager runs until ctx ends, which is the regular end.
func runManager(ctx context.Context, mgr ctrl.Manager) error {
	err := mgr.Start(ctx)
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("run: %w", err)
	}
	return nil
}
