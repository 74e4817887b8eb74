package cluster

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
)

const (
	// ControlPlaneIP is the address of the API server (port 443) and of whatever
	// tests serve to nodes. It is also the first address of the service range,
	// which is what pods are told: so there is no need of kube-proxy.
	ControlPlaneIP = "10.77.0.1"

	serviceRange = "10.77.0.0/24"
	etcdURL      = "http://127.0.0.1:2379"
	etcdPeerURL  = "http://127.0.0.1:2380"
)

// controllers that pods, their owners and their identities need.
var controllers = []string{
	"clusterrole-aggregation-controller", "daemonset-controller", "deployment-controller", "garbage-collector-controller",
	"job-controller", "namespace-controller", "node-lifecycle-controller", "pod-garbage-collector-controller", "replicaset-controller",
	"root-ca-certificate-publisher-controller", "serviceaccount-controller", "serviceaccount-token-controller", "taint-eviction-controller",
}

// issueCertificates makes everything in the PKI that is not a node's.
func issueCertificates(p *pki) error {
	if err := p.serviceAccountKey(); err != nil {
		return err
	}
	for _, id := range []identity{
		{name: "apiserver", user: "kube-apiserver", server: []string{ControlPlaneIP, "127.0.0.1", "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"}},
		{name: "apiserver-kubelet", user: "apiserver-kubelet", group: "system:masters"},
		{name: "admin", user: "admin", group: "system:masters"},
		{name: "controller-manager", user: "system:kube-controller-manager"},
		{name: "scheduler", user: "system:kube-scheduler"},
	} {
		if err := p.issue(id); err != nil {
			return err
		}
	}
	for _, name := range []string{"admin", "controller-manager", "scheduler"} {
		if err := p.kubeconfig(name); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) makeControlPlane() error {
	pki := c.pki.path
	c.Etcd = c.daemon("etcd", []string{
		"--name=e", "--data-dir=" + filepath.Join(c.Dir, "etcd"), "--initial-cluster=e=" + etcdPeerURL,
		"--listen-client-urls=" + etcdURL, "--advertise-client-urls=" + etcdURL,
		"--listen-peer-urls=" + etcdPeerURL, "--initial-advertise-peer-urls=" + etcdPeerURL,
		"--unsafe-no-fsync", "--log-level=warn",
	}, httpClient(nil), etcdURL+"/readyz")

	admin, err := rest.TLSConfigFor(c.Config())
	if err != nil {
		return err
	}
	c.APIServer = c.daemon("kube-apiserver", []string{
		"--etcd-servers=" + etcdURL, "--bind-address=" + ControlPlaneIP, "--secure-port=443", "--advertise-address=" + ControlPlaneIP,
		"--service-cluster-ip-range=" + serviceRange, "--endpoint-reconciler-type=none",
		"--tls-cert-file=" + pki("apiserver.crt"), "--tls-private-key-file=" + pki("apiserver.key"), "--client-ca-file=" + pki("ca.crt"),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + pki("sa.pub"), "--service-account-signing-key-file=" + pki("sa.key"),
		"--kubelet-preferred-address-types=InternalIP", "--kubelet-certificate-authority=" + pki("ca.crt"),
		"--kubelet-client-certificate=" + pki("apiserver-kubelet.crt"), "--kubelet-client-key=" + pki("apiserver-kubelet.key"),
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true", "--profiling=false",
		// Else open watches hold its end up for a minute.
		"--shutdown-watch-termination-grace-period=1s",
	}, httpClient(admin), "https://"+ControlPlaneIP+"/readyz")

	// Their health needs no identity, and their certificates are made by themselves.
	unverified := httpClient(&tls.Config{InsecureSkipVerify: true})
	c.ControllerManager = c.daemon("kube-controller-manager", append(clientFlags(pki("controller-manager.kubeconfig")),
		"--service-account-private-key-file="+pki("sa.key"), "--root-ca-file="+pki("ca.crt"), "--use-service-account-credentials",
		"--controllers="+strings.Join(controllers, ","),
	), unverified, "https://127.0.0.1:10257/healthz")
	c.Scheduler = c.daemon("kube-scheduler", clientFlags(pki("scheduler.kubeconfig")), unverified, "https://127.0.0.1:10259/readyz")
	return nil
}

func clientFlags(kubeconfig string) []string {
	return []string{
		"--kubeconfig=" + kubeconfig, "--authentication-kubeconfig=" + kubeconfig, "--authorization-kubeconfig=" + kubeconfig,
		"--bind-address=127.0.0.1", "--leader-elect=false",
	}
}

// httpClient asks for readiness: no connection stays open, and none outlives a restart of the server.
func httpClient(config *tls.Config) *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
}

// daemon is a daemon of the control plane, ready when the URL answers 200.
func (c *Cluster) daemon(name string, args []string, client *http.Client, url string) *Daemon {
	return &Daemon{
		Name: name, Log: filepath.Join(c.logs, name+".log"),
		path: filepath.Join(c.tools, name), args: args, env: c.daemonEnv(), start: startHere,
		waitsFor: url, ready: func(ctx context.Context) error { return answers(ctx, client, url) },
		progress: c.progress,
	}
}

// answers returns nil when a GET gives 200.
func answers(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 2<<10))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(body)))
	}
	return nil
}

// startControlPlane closes up when the API server answers, and returns when its clients do as well.
func (c *Cluster) startControlPlane(ctx context.Context, up chan<- struct{}) error {
	if err := c.Etcd.Start(ctx); err != nil {
		return err
	}
	if err := c.APIServer.Start(ctx); err != nil {
		return err
	}
	close(up)
	// They end at once when the API server has not made their roles yet.
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.ControllerManager.Start(ctx) })
	g.Go(func() error { return c.Scheduler.Start(ctx) })
	return g.Wait()
}
