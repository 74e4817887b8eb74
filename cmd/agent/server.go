package main

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	ctrl "sigs.k8s.io/controller-runtime"
)

// lateInterval is the time between two attempts to read a configuration that does not exist yet.
const lateInterval = 2 * time.Second

// lateServer is the API server of a configuration that does not exist yet: a kubeconfig, or a pod's service account. Until it
// exists, each request waits, as it would for an API server that does not answer.
type lateServer struct {
	find func() (*rest.Config, error)

	mu   sync.Mutex
	next http.RoundTripper // nil until the configuration exists
	base *url.URL
}

// config returns a configuration for clients of the server.
func (l *lateServer) config() *rest.Config {
	// Without a limit, as controller-runtime's own: the API server's priority and fairness limits agents.
	return &rest.Config{Host: "http://not-configured.invalid", Transport: l, UserAgent: rest.DefaultKubernetesUserAgent(), QPS: -1}
}

// quietConfig reads the same files as clientConfig, which logs an error each time that there is none.
func quietConfig() (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("find the API server: %w", err)
	}
	return config, nil
}

// RoundTrip implements http.RoundTripper.
func (l *lateServer) RoundTrip(req *http.Request) (*http.Response, error) {
	for {
		next, base, err := l.connect()
		if err == nil {
			req = req.Clone(req.Context())
			req.Host, req.URL.Scheme, req.URL.Host = "", base.Scheme, base.Host
			req.URL.Path = strings.TrimSuffix(base.Path, "/") + req.URL.Path
			return next.RoundTrip(req) //nolint:wrapcheck // it stands in for next
		}
		select {
		case <-req.Context().Done():
			return nil, fmt.Errorf("find the API server: %w", err)
		case <-time.After(lateInterval):
		}
	}
}

func (l *lateServer) connect() (http.RoundTripper, *url.URL, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.next != nil {
		return l.next, l.base, nil
	}
	config, err := l.find()
	if err != nil {
		return nil, nil, err
	}
	next, err := rest.TransportFor(config)
	if err != nil {
		return nil, nil, fmt.Errorf("connect to the API server: %w", err)
	}
	base, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, nil, fmt.Errorf("connect to the API server: %w", err)
	}
	ctrl.Log.Info("Found the API server's configuration")
	l.next, l.base = next, base
	return next, base, nil
}
