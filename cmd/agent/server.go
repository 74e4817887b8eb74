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

// lateInterval is how often to look for a configuration that is not there yet.
const lateInterval = 2 * time.Second

// lateServer is the API server of a configuration that is not there yet: a kubeconfig, or a pod's service account. Until it
// is, each request waits for it, as it would for an API server that does not answer.
type lateServer struct {
	find func() (*rest.Config, error)

	mu   sync.Mutex
	next http.RoundTripper // nil: not there yet
	base *url.URL
}

// config is a configuration that leads there.
func (l *lateServer) config() *rest.Config {
	// The API server's own fairness limits an agent, as without this.
	return &rest.Config{Host: "http://not-configured.invalid", Transport: l, UserAgent: rest.DefaultKubernetesUserAgent(), QPS: -1}
}

// quietConfig looks where clientConfig does. That logs an error each time that there is nothing.
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
		next, base, err := l.reach()
		if err == nil {
			req = req.Clone(req.Context())
			req.Host, req.URL.Scheme, req.URL.Host = "", base.Scheme, base.Host
			req.URL.Path = strings.TrimSuffix(base.Path, "/") + req.URL.Path
			return next.RoundTrip(req) //nolint:wrapcheck // it stands for the other one
		}
		select {
		case <-req.Context().Done():
			return nil, fmt.Errorf("find the API server: %w", err)
		case <-time.After(lateInterval):
		}
	}
}

func (l *lateServer) reach() (http.RoundTripper, *url.URL, error) {
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
