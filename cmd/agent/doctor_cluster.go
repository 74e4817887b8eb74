package main

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
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/api/v1alpha1"
)

// clusterChecks are what needs an answer of the API server.
var clusterChecks = []string{"cluster clock", "crds", "rights", "node", "own state", "policy"}

// examineCluster looks at what `agent node` needs of an API server, if there is a way to one.
func (d *doctor) examineCluster(ctx context.Context, f doctorFlags) {
	conf, err := doctorConfig(f.kubeconfig)
	if errors.Is(err, rest.ErrNotInCluster) {
		d.skip("api server", "neither --kubeconfig nor a pod's service account leads to one")
		return
	}
	var c *cluster
	if err == nil {
		c, err = newCluster(d, conf, f)
	}
	if err != nil {
		d.failed("api server", "is --kubeconfig right?", err)
		return
	}
	if !c.checkServer(ctx) {
		for _, check := range clusterChecks {
			d.skip(check, "the API server cannot be asked")
		}
		return
	}
	if c.checkCRDs(ctx) {
		c.checkRights(ctx)
		c.checkNode(ctx)
		c.checkOwnState(ctx)
		c.checkPolicy(ctx)
		return
	}
	for _, check := range clusterChecks[2:] {
		d.skip(check, "the CRDs are not there")
	}
}

func doctorConfig(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		return rest.InClusterConfig() //nolint:wrapcheck // its kind is looked at
	}
	c, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read --kubeconfig: %w", err)
	}
	return c, nil
}

// cluster is an API server, and who asks it.
type cluster struct {
	*doctor
	flags  doctorFlags
	http   *http.Client
	base   string
	client client.Client
}

func newCluster(d *doctor, conf *rest.Config, f doctorFlags) (*cluster, error) {
	conf.Timeout = d.timeout
	conf.UserAgent = rest.DefaultKubernetesUserAgent()
	conf.WarningHandler = rest.NoWarnings{}
	h, err := rest.HTTPClientFor(conf)
	if err != nil {
		return nil, fmt.Errorf("make a client of the API server: %w", err)
	}
	base, _, err := rest.DefaultServerUrlFor(conf)
	if err != nil {
		return nil, fmt.Errorf("the API server's address: %w", err)
	}
	scheme := newScheme()
	for _, add := range []func() error{
		func() error { return authorizationv1.AddToScheme(scheme) },
		func() error { return authenticationv1.AddToScheme(scheme) },
		func() error { return admissionv1.AddToScheme(scheme) },
	} {
		if err := add(); err != nil {
			return nil, fmt.Errorf("register types: %w", err)
		}
	}
	c, err := client.New(conf, client.Options{Scheme: scheme, HTTPClient: h})
	if err != nil {
		return nil, fmt.Errorf("make a client of the API server: %w", err)
	}
	return &cluster{doctor: d, flags: f, http: h, base: strings.TrimSuffix(base.String(), "/"), client: c}, nil
}

// maxDocument bounds what is read of an answer in bytes: the OpenAPI document of two kinds has 100 KiB.
const maxDocument = 4 << 20

// document is a raw answer of the API server.
type document struct {
	code int
	date string
	data []byte
}

func (c *cluster) get(ctx context.Context, path string) (document, error) {
	return ask(ctx, c.doctor, func(ctx context.Context) (document, error) {
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

// oldestKubernetes, 1.30, is the first whose tokens name the node of their pod.
const oldestKubernetes = 30

// checkServer says whether the API server answers, and holds the clock against its own.
func (c *cluster) checkServer(ctx context.Context) bool {
	const check = "api server"
	began := time.Now()
	doc, err := c.get(ctx, "/version")
	took := time.Since(began)
	if err != nil {
		c.failed(check, "is it running, and is its address right (apiServer.host of the chart, server of --kubeconfig)? A pod on the host's network needs no CNI, but kube-proxy for the Service's address", err)
		return false
	}
	var v struct{ Minor, GitVersion string }
	if err := json.Unmarshal(doc.data, &v); doc.code != http.StatusOK || err != nil {
		c.add(check, verdictFail, "are these credentials still good, and is this a Kubernetes API server?", "%s answers /version with status %d", c.base, doc.code)
		return false
	}
	minor, err := strconv.Atoi(strings.TrimRight(v.Minor, "+"))
	if err == nil && minor < oldestKubernetes {
		c.add(check, verdictWarn, "update Kubernetes to 1.30 or later: agents cannot be held to their own nodes before", "%s at %s", v.GitVersion, c.base)
	} else {
		c.ok(check, "%s at %s, in %s", v.GitVersion, c.base, took.Round(time.Millisecond))
	}
	c.checkServerClock(doc.date, took)
	return true
}

func (c *cluster) checkServerClock(date string, took time.Duration) {
	const check, remedy = "cluster clock", "set the clocks of node and API server, by NTP for example: tokens, certificates and deadlines go by them"
	server, err := http.ParseTime(date)
	if err != nil {
		c.skip(check, "the API server does not say what time it is")
		return
	}
	// The answer was made at some time while it was waited for, and is rounded down to a second.
	off := time.Since(server)
	switch distance := max(off-took-time.Second, -off); {
	case distance > clockBound:
		c.add(check, verdictFail, remedy, "%s apart from the API server's", distance.Round(time.Second))
	case distance > clockTolerance:
		c.add(check, verdictWarn, remedy, "%s apart from the API server's", distance.Round(time.Second))
	default:
		c.ok(check, "like the API server's, within %s", clockTolerance)
	}
}

// one gets an object by its name alone, which is all that the agent may do.
func (c *cluster) one(ctx context.Context, list client.ObjectList) (found bool, err error) {
	return ask(ctx, c.doctor, func(ctx context.Context) (bool, error) {
		if err := c.client.List(ctx, list, client.MatchingFields{"metadata.name": c.flags.nodeName}); err != nil {
			return false, err //nolint:wrapcheck // it says what was asked
		}
		return meta.LenList(list) > 0, nil
	})
}

func (c *cluster) checkNode(ctx context.Context) {
	const check = "node"
	if c.flags.nodeName == "" {
		c.skip(check, "which one this is, --node-name does not say")
		return
	}
	found, err := c.one(ctx, &corev1.NodeList{})
	switch {
	case apierrors.IsForbidden(err):
		c.skip(check, "these credentials may not list nodes")
	case err != nil:
		c.failed(check, "look at the API server", err)
	case !found:
		c.add(check, verdictFail, "give the name that 'kubectl get nodes' shows", "there is no Node %s", c.flags.nodeName)
	default:
		c.ok(check, "%s", c.flags.nodeName)
	}
}

// checkOwnState reads what this node's agent has reported.
func (c *cluster) checkOwnState(ctx context.Context) {
	const check = "own state"
	if c.flags.nodeName == "" {
		c.skip(check, "--node-name does not say whose")
		return
	}
	var list v1alpha1.NodeImageStateList
	found, err := c.one(ctx, &list)
	switch {
	case apierrors.IsForbidden(err):
		c.skip(check, "these credentials may not list nodeimagestates")
		return
	case err != nil:
		c.failed(check, "look at the API server", err)
		return
	case !found:
		c.add(check, verdictWarn, "is the agent's pod running on this node, and what does it log?", "no NodeImageState %s: the agent has not reported yet", c.flags.nodeName)
		return
	}
	archives := list.Items[0].Status.Archives
	var not []string
	for _, a := range archives {
		if ready := meta.FindStatusCondition(a.Conditions, v1alpha1.ConditionReady); ready == nil || ready.Status != metav1.ConditionTrue {
			reason := "not reported"
			if ready != nil {
				reason = ready.Reason
			}
			not = append(not, a.Name+": "+reason)
		}
	}
	if len(not) > 0 {
		c.add(check, verdictWarn, "kubectl get nodeimagestate "+c.flags.nodeName+" -o yaml tells more", "%d of %d archives are not ready: %s", len(not), len(archives), some(not))
		return
	}
	c.ok(check, "%d archives, all ready", len(archives))
}
