package main

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/tarlift/tarlift/controllers/node"
)

// agentSpec is one simulated agent, as its worker is told.
type agentSpec struct{ Node, Token string }

// agent is `agent node` without its containerd: manager, cache and reconciler are those of the real one, with a
// token of its own and, unless connections are shared, a connection of its own.
type agent struct {
	mgr  ctrl.Manager
	sent counters
}

func newAgent(server *rest.Config, spec agentSpec, order workerOrder) (*agent, error) {
	a := &agent{}
	conf := rest.CopyConfig(server)
	conf.BearerToken = spec.Token
	if !order.ShareConnections {
		// Transports of one process are shared by configuration; a dialer is a difference.
		conf.Dial = (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	}
	conf.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			a.sent.count(r, time.Now())
			return next.RoundTrip(r)
		})
	})
	var err error
	a.mgr, err = ctrl.NewManager(conf, ctrl.Options{
		Scheme:                 scheme.Scheme,
		Metrics:                metricsserver.Options{BindAddress: "0"},
		HealthProbeBindAddress: "0",
		Cache:                  node.Cache(spec.Node),
		MapperProvider:         node.Kinds,
		Controller:             config.Controller{SkipNameValidation: ptr.To(true), CacheSyncTimeout: time.Hour},
	})
	if err != nil {
		return nil, err
	}
	r := &node.Reconciler{
		Client:   a.mgr.GetClient(),
		Importer: newFakeImporter(),
		Sources: node.Sources{
			Secrets: a.mgr.GetAPIReader(), Namespace: systemNamespace, ArchiveDir: order.ArchiveDir,
			AllowAddresses: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")},
		},
		NodeName: spec.Node,
		Metrics:  prometheus.NewRegistry(),
	}
	return a, r.SetupWithManager(a.mgr)
}

// run returns when ctx has ended, or with why the agent has.
func (a *agent) run(ctx context.Context) error { return a.mgr.Start(ctx) }

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// The kinds of writes.
const (
	writeCreate = "create" // of a NodeImageState
	writeStatus = "status" // of a NodeImageState
	writeEvent  = "event"
	writeOther  = "other"
	writeAny    = "any"
)

// counters are the writes that one agent has sent, whatever became of them.
type counters struct {
	mu      sync.Mutex
	kinds   map[string]int // since begin
	news    map[string]int // since take
	seconds map[int64]int  // since take, by Unix time
}

func (c *counters) count(r *http.Request, now time.Time) {
	if r.Method == http.MethodGet {
		return
	}
	kind := writeOther
	switch path := r.URL.Path; {
	case strings.HasSuffix(path, "/nodeimagestates"):
		kind = writeCreate
	case strings.Contains(path, "/nodeimagestates/") && strings.HasSuffix(path, "/status"):
		kind = writeStatus
	case strings.Contains(path, "/events"):
		kind = writeEvent
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kinds == nil {
		c.kinds = map[string]int{}
	}
	if c.news == nil {
		c.news, c.seconds = map[string]int{}, map[int64]int{}
	}
	c.kinds[kind]++
	c.news[kind]++
	c.seconds[now.Unix()]++
}

// begin forgets what was counted.
func (c *counters) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kinds, c.news, c.seconds = nil, nil, nil
}

// takeInto adds to a report what it does not have yet.
func (c *counters) takeInto(r *workerReport) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for kind, n := range c.news {
		r.Sent[kind] += n
	}
	for s, n := range c.seconds {
		r.Seconds[s] += n
	}
	c.news, c.seconds = nil, nil
	all := 0
	for kind, n := range c.kinds {
		r.Most[kind] = max(r.Most[kind], n)
		all += n
	}
	r.Most[writeAny] = max(r.Most[writeAny], all)
}
