package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/test/cluster"
)

const systemNamespace = "tarlift-system"

// controlPlane is a real etcd and a real API server, with what the project installs there.
type controlPlane struct {
	env    *envtest.Environment
	config *rest.Config
	client client.WithWatch
	typed  *kubernetes.Clientset

	apiServer, etcd process
}

func startControlPlane(ctx context.Context) (p *controlPlane, err error) {
	assets, err := cluster.ToolsDir()
	if err != nil {
		return nil, err
	}
	root, err := cluster.ModuleRoot()
	if err != nil {
		return nil, err
	}
	if err := v1alpha1.AddToScheme(scheme.Scheme); err != nil {
		return nil, err
	}
	env := &envtest.Environment{
		BinaryAssetsDirectory:    assets,
		CRDDirectoryPaths:        []string{filepath.Join(root, "config", "crd")},
		ErrorIfCRDPathMissing:    true,
		ControlPlaneStartTimeout: time.Minute,
		ControlPlaneStopTimeout:  time.Minute,
	}
	p = &controlPlane{env: env}
	env.ControlPlane.GetAPIServer().Configure().
		// Else open watches hold its end up for a minute.
		Set("shutdown-watch-termination-grace-period", "1s").
		// Any: nobody is told of it, and where there is no network it finds none by itself.
		Set("advertise-address", cluster.ControlPlaneIP).Set("endpoint-reconciler-type", "none")
	if p.config, err = env.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start the API server, which `make tools` builds: %w", err), env.Stop())
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, env.Stop()) // p is nil by then
		}
	}()
	p.config.QPS = -1
	if p.apiServer, err = childNamed("kube-apiserver"); err != nil {
		return nil, err
	}
	if p.etcd, err = childNamed("etcd"); err != nil {
		return nil, err
	}
	if p.client, err = client.NewWithWatch(p.config, client.Options{}); err != nil {
		return nil, err
	}
	if p.typed, err = kubernetes.NewForConfig(p.config); err != nil {
		return nil, err
	}
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: systemNamespace}}
	if err := p.client.Create(ctx, namespace); err != nil {
		return nil, err
	}
	return p, p.install(ctx, filepath.Join(root, "config", "rbac"))
}

func (p *controlPlane) stop() error { return p.env.Stop() }

// install creates the objects of all YAML files in a directory: accounts, roles and the admission policy.
func (p *controlPlane) install(ctx context.Context, dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(files) == 0 {
		return fmt.Errorf("no YAML in %s: %w", dir, err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		docs := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(data), 4096)
		for {
			var o unstructured.Unstructured
			if err := docs.Decode(&o); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			if err := p.client.Create(ctx, &o); err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
		}
	}
	return nil
}

// makeNodes creates Nodes, and for each a token of the agents' account that is bound to it, as that of a pod on it
// would be: the admission policy looks at that.
func (p *controlPlane) makeNodes(ctx context.Context, n int) ([]agentSpec, error) {
	specs := make([]agentSpec, n)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i := range specs {
		g.Go(func() (err error) {
			node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{
				Name:   fmt.Sprintf("node-%05d.example.internal", i),
				Labels: map[string]string{corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64"},
			}}
			if err := p.client.Create(ctx, node); err != nil {
				return err
			}
			bound := &authenticationv1.BoundObjectReference{Kind: "Node", APIVersion: "v1", Name: node.Name, UID: node.UID}
			specs[i].Node = node.Name
			specs[i].Token, err = p.token(ctx, "tarlift-node", bound)
			return err
		})
	}
	return specs, g.Wait()
}

// token is one of an account, for longer than any run takes.
func (p *controlPlane) token(ctx context.Context, account string, bound *authenticationv1.BoundObjectReference) (string, error) {
	seconds := int64((6 * time.Hour).Seconds())
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds, BoundObjectRef: bound}}
	request, err := p.typed.CoreV1().ServiceAccounts(systemNamespace).CreateToken(ctx, account, request, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("token of %s: %w", account, err)
	}
	return request.Status.Token, nil
}

func (p *controlPlane) writeKubeconfig(path, token string) error {
	return clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"c": {Server: p.config.Host, CertificateAuthorityData: p.config.CAData}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{"u": {Token: token}},
		Contexts:       map[string]*clientcmdapi.Context{"x": {Cluster: "c", AuthInfo: "u"}},
		CurrentContext: "x",
	}, path)
}
