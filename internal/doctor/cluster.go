package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/internal/cli"
)

// clusterChecks are the checks that need an answer of the API server.
var clusterChecks = []string{"cluster clock", "crds", "rights", "node", "own state", "policy"}

// Remedies where the API server refuses or returns an error.
const (
	seeServer      = "see the API server's log"
	seeCredentials = "are these credentials valid?"
)

// examineCluster examines what 'agent node' needs of an API server, if one is configured.
func (e *examination) examineCluster(ctx context.Context, o Options) {
	config, err := clientConfig(o.Kubeconfig)
	if errors.Is(err, rest.ErrNotInCluster) {
		e.skip("there is no --kubeconfig, and no service account of a pod", "api server")
		return
	}
	var c *cluster
	if err == nil {
		c, err = newCluster(e, config, o)
	}
	if err != nil {
		e.failed("api server", "is --kubeconfig right?", err)
		return
	}
	if !c.checkServer(ctx) {
		e.skip("the API server does not answer", clusterChecks...)
		return
	}
	if !c.checkCRDs(ctx) {
		e.skip("the CRDs are not served", clusterChecks[2:]...)
		return
	}
	c.checkRights(ctx)
	c.checkNode(ctx)
	c.checkOwnState(ctx)
	c.checkPolicy(ctx)
}

func clientConfig(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		return rest.InClusterConfig() //nolint:wrapcheck // its kind is looked at
	}
	c, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read --kubeconfig: %w", err)
	}
	return c, nil
}

// cluster is an API server.
type cluster struct {
	*examination
	options Options
	http    *http.Client
	base    string // its URL, without a slash at the end
	client  client.Client
}

func newCluster(e *examination, config *rest.Config, o Options) (*cluster, error) {
	config.Timeout = e.timeout
	config.UserAgent = rest.DefaultKubernetesUserAgent()
	config.WarningHandler = rest.NoWarnings{}
	h, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("create client of the API server: %w", err)
	}
	base, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, fmt.Errorf("address of the API server: %w", err)
	}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, v1alpha1.AddToScheme, authorizationv1.AddToScheme, authenticationv1.AddToScheme, admissionv1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("register types: %w", err)
		}
	}
	c, err := client.New(config, client.Options{Scheme: scheme, HTTPClient: h})
	if err != nil {
		return nil, fmt.Errorf("create client of the API server: %w", err)
	}
	return &cluster{examination: e, options: o, http: h, base: strings.TrimSuffix(base.String(), "/"), client: c}, nil
}

// maxDocument bounds what is read of an answer, in bytes: the OpenAPI document of two kinds has 100 KiB.
const maxDocument = 4 << 20

// document is a raw answer of the API server.
type document struct {
	code int
	date string
	data []byte
}

func (c *cluster) get(ctx context.Context, path string) (document, error) {
	return ask(ctx, c.examination, func(ctx context.Context) (document, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+path, nil)
		if err != nil {
			return document{}, fmt.Errorf("get %s: %w", path, err)
		}
		resp, err := c.http.Do(req)
		if err != nil {
			return document{}, err //nolint:wrapcheck // it names what was asked
		}
		defer resp.Body.Close()
		data, err := io.ReadAll(io.LimitReader(resp.Body, maxDocument))
		if err != nil {
			return document{}, fmt.Errorf("get %s: %w", path, err)
		}
		return document{resp.StatusCode, resp.Header.Get("Date"), data}, nil
	})
}

// oldestKubernetes is the minor version of 1.30, whose tokens are the first to name the node of their pod.
const oldestKubernetes = 30

// checkServer reports whether the API server answers, and compares the clocks.
func (c *cluster) checkServer(ctx context.Context) bool {
	const check = "api server"
	started := time.Now()
	doc, err := c.get(ctx, "/version")
	took := time.Since(started)
	if err != nil {
		c.failed(check, "is it running, and is its address right (apiServer.host of the chart, server of the kubeconfig)? "+
			"A pod on the host's network needs no CNI, but needs kube-proxy for the address of a Service", err)
		return false
	}
	var v struct{ Minor, GitVersion string }
	if err := json.Unmarshal(doc.data, &v); doc.code != http.StatusOK || err != nil {
		c.fail(check, "are these credentials valid, and is this a Kubernetes API server?", "%s answers /version with status %d", c.base, doc.code)
		return false
	}
	minor, err := strconv.Atoi(strings.TrimRight(v.Minor, "+"))
	if err == nil && minor < oldestKubernetes {
		c.warn(check, "update Kubernetes to 1.30 or later: before, no policy can restrict agents to their own nodes",
			"%s at %s", v.GitVersion, c.base)
	} else {
		c.ok(check, "%s at %s, in %s", v.GitVersion, c.base, took.Round(time.Millisecond))
	}
	c.compareServerClock(doc.date, took)
	return true
}

func (c *cluster) compareServerClock(date string, took time.Duration) {
	const check = "cluster clock"
	server, err := http.ParseTime(date)
	if err != nil {
		c.skip("the API server sends no time", check)
		return
	}
	// The server wrote the time at some moment of the request, and rounded it down to a second.
	off := time.Since(server)
	difference := max(off-took-time.Second, -off)
	verdict := Warn
	switch {
	case difference <= clockTolerance:
		c.ok(check, "within %s of the API server's", clockTolerance)
		return
	case difference > clockBound:
		verdict = Fail
	}
	c.add(check, verdict, "set the clocks of the node and the API server, with NTP for example: tokens, certificates and deadlines "+
		"depend on them", "%s apart from the API server's", difference.Round(time.Second))
}

// list lists the object that has this node's name, which is all that the agent may list.
func (c *cluster) list(ctx context.Context, list client.ObjectList) (found bool, err error) {
	return ask(ctx, c.examination, func(ctx context.Context) (bool, error) {
		if err := c.client.List(ctx, list, client.MatchingFields{"metadata.name": c.options.NodeName}); err != nil {
			return false, err //nolint:wrapcheck // it says what was asked
		}
		return meta.LenList(list) > 0, nil
	})
}

func (c *cluster) checkNode(ctx context.Context) {
	const check = "node"
	name := c.options.NodeName
	if name == "" {
		c.skip("--node-name is not set", check)
		return
	}
	found, err := c.list(ctx, &corev1.NodeList{})
	switch {
	case apierrors.IsForbidden(err):
		c.skip("these credentials may not list nodes", check)
	case err != nil:
		c.failed(check, seeServer, err)
	case !found:
		c.fail(check, "set --node-name to the name that 'kubectl get nodes' shows", "there is no Node %s", name)
	default:
		c.ok(check, "%s", name)
	}
}

// checkOwnState reads what this node's agent has reported.
func (c *cluster) checkOwnState(ctx context.Context) {
	const check = "own state"
	name := c.options.NodeName
	if name == "" {
		c.skip("--node-name is not set", check)
		return
	}
	var list v1alpha1.NodeImageStateList
	found, err := c.list(ctx, &list)
	switch {
	case apierrors.IsForbidden(err):
		c.skip("these credentials may not list nodeimagestates", check)
		return
	case err != nil:
		c.failed(check, seeServer, err)
		return
	case !found:
		c.warn(check, "is the agent's pod running on this node, and what does it log?",
			"no NodeImageState %s: the agent has not reported yet", name)
		return
	}
	archives := list.Items[0].Status.Archives
	var notReady []string
	for _, a := range archives {
		if a.Ready {
			continue
		}
		reason := "not reported"
		if c := meta.FindStatusCondition(a.Conditions, v1alpha1.ConditionReady); c != nil {
			reason = c.Reason
		}
		notReady = append(notReady, a.Name+": "+reason)
	}
	if len(notReady) > 0 {
		c.warn(check, "see 'kubectl get nodeimagestate "+name+" -o yaml'",
			"%d of %d archives are not ready: %s", len(notReady), len(archives), cli.List(notReady))
		return
	}
	c.ok(check, "%d archives, all ready", len(archives))
}
