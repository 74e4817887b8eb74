package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"slices"
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

// checkCRDs says whether the kinds are served, with all fields that this agent knows.
func (c *cluster) checkCRDs(ctx context.Context) bool {
	const check, remedy = "crds", "install the CRDs of the agent's release: helm upgrade with crds.enabled, or kubectl apply --server-side -f config/crd"
	path := "/apis/" + v1alpha1.GroupVersion.String()
	doc, err := c.get(ctx, path)
	var list metav1.APIResourceList
	if err == nil && doc.code == http.StatusOK {
		err = json.Unmarshal(doc.data, &list)
	}
	switch {
	case err != nil:
		c.failed(check, remedy, err)
		return false
	case doc.code != http.StatusOK:
		c.add(check, verdictFail, remedy, "%s is not served (status %d)", v1alpha1.GroupVersion, doc.code)
		return false
	}
	for _, name := range []string{"imagearchives", "imagearchives/status", "nodeimagestates", "nodeimagestates/status"} {
		if !slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Name == name }) {
			c.add(check, verdictFail, remedy, "%s has no %s", v1alpha1.GroupVersion, name)
			return false
		}
	}
	if missing := c.missingFields(ctx, path); len(missing) > 0 {
		c.add(check, verdictFail, remedy, "they are older than this agent: %s is missing", some(missing))
		return true
	}
	c.ok(check, "%s is served", v1alpha1.GroupVersion)
	return true
}

// schema is the part of an OpenAPI schema that is looked at.
type schema struct {
	Properties map[string]*schema `json:"properties"`
}

// field is a member's schema, empty where there is none.
func (s *schema) field(name string) *schema {
	if f := s.Properties[name]; f != nil {
		return f
	}
	return &schema{}
}

// missingFields compares what is served with the fields of the agent's own types. What cannot be read lacks nothing.
func (c *cluster) missingFields(ctx context.Context, path string) (missing []string) {
	doc, err := c.get(ctx, "/openapi/v3"+path)
	var api struct {
		Components struct {
			Schemas map[string]*schema `json:"schemas"`
		} `json:"components"`
	}
	if err != nil || json.Unmarshal(doc.data, &api) != nil {
		return nil
	}
	for _, k := range []struct {
		kind, member string
		fields       reflect.Type
	}{
		{"ImageArchive", "spec", reflect.TypeFor[v1alpha1.ImageArchiveSpec]()},
		{"ImageArchive", "status", reflect.TypeFor[v1alpha1.ImageArchiveStatus]()},
		{"NodeImageState", "spec", reflect.TypeFor[v1alpha1.NodeImageStateSpec]()},
		{"NodeImageState", "status", reflect.TypeFor[v1alpha1.NodeImageStateStatus]()},
	} {
		for name, s := range api.Components.Schemas {
			if !strings.HasSuffix(name, "."+k.kind) {
				continue
			}
			for n := range k.fields.NumField() {
				field, _, _ := strings.Cut(k.fields.Field(n).Tag.Get("json"), ",")
				if _, ok := s.field(k.member).Properties[field]; field != "" && !ok {
					missing = append(missing, k.kind+"."+k.member+"."+field)
				}
			}
		}
	}
	return missing
}

// right is something that `agent node` has to be allowed.
type right struct {
	verb, group, resource, namespace string
}

// nodeRights are those of config/rbac/node.yaml.
func nodeRights(secrets string) []right {
	const group = "tarlift.dev"
	all := []right{
		{"list", group, "imagearchives", ""}, {"watch", group, "imagearchives", ""},
		{"list", group, "nodeimagestates", ""}, {"watch", group, "nodeimagestates", ""},
		{"create", group, "nodeimagestates", ""}, {"patch", group, "nodeimagestates/status", ""},
		{"list", "", "nodes", ""}, {"watch", "", "nodes", ""},
		{"create", "events.k8s.io", "events", metav1.NamespaceDefault}, {"patch", "events.k8s.io", "events", metav1.NamespaceDefault},
	}
	if secrets != "" {
		all = append(all, right{"get", "", "secrets", secrets})
	}
	return all
}

func (r right) String() string {
	text := r.verb + " " + r.resource
	if r.namespace != "" {
		text += " in " + r.namespace
	}
	return text
}

func (c *cluster) allowed(ctx context.Context, r right) (bool, error) {
	resource, sub, _ := strings.Cut(r.resource, "/")
	review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
		ResourceAttributes: &authorizationv1.ResourceAttributes{
			Verb: r.verb, Group: r.group, Resource: resource, Subresource: sub, Namespace: r.namespace,
		},
	}}
	err := c.client.Create(ctx, review)
	return review.Status.Allowed, err //nolint:wrapcheck // the caller says what was asked
}

const serviceAccount = "system:serviceaccount:"

// whoami is the user whom the API server takes us for.
func (c *cluster) whoami(ctx context.Context) (authenticationv1.UserInfo, error) {
	return ask(ctx, c.doctor, func(ctx context.Context) (authenticationv1.UserInfo, error) {
		review := &authenticationv1.SelfSubjectReview{}
		err := c.client.Create(ctx, review)
		return review.Status.UserInfo, err //nolint:wrapcheck // the finding says what was asked
	})
}

// checkRights asks for the rights of whoever asks. Those of an administrator say nothing of the agent's.
func (c *cluster) checkRights(ctx context.Context) {
	const check = "rights"
	user, err := c.whoami(ctx)
	if err != nil {
		c.failed(check, "are these credentials still good?", err)
		return
	}
	if !strings.HasPrefix(user.Username, serviceAccount) {
		c.skip(check, "%s is not the agent: run this in the agent's pod", user.Username)
		return
	}
	missing, err := ask(ctx, c.doctor, func(ctx context.Context) (missing []string, err error) {
		for _, r := range nodeRights(c.flags.secretNamespace) {
			allowed, err := c.allowed(ctx, r)
			if err != nil {
				return nil, err
			}
			if !allowed {
				missing = append(missing, r.String())
			}
		}
		return missing, nil
	})
	account := strings.TrimPrefix(user.Username, serviceAccount)
	switch {
	case err != nil:
		c.failed(check, "are these credentials still good?", err)
	case len(missing) > 0:
		c.add(check, verdictFail, "bind the agent's roles (rbac of the chart, or config/rbac/node.yaml) to this service account", "%s may not %s", account, strings.Join(missing, ", "))
	default:
		c.ok(check, "%s has all that the agent needs", account)
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

// policyProbe is no node: the policy must not let an agent write its NodeImageState.
const policyProbe = "tarlift-doctor-no-such-node"

// checkPolicy says whether an agent is held to its own node. An agent tries it, without effect; who may read policies
// looks for one.
func (c *cluster) checkPolicy(ctx context.Context) {
	const check, remedy = "policy", "admissionPolicy.enabled of the chart, or config/rbac/admissionpolicy.yaml: else the agent of one node can speak for all"
	user, err := c.whoami(ctx)
	if err != nil {
		c.failed(check, "are these credentials still good?", err)
		return
	}
	if len(user.Extra["authentication.kubernetes.io/node-name"]) > 0 {
		may, err := ask(ctx, c.doctor, func(ctx context.Context) (bool, error) {
			return c.allowed(ctx, right{"create", v1alpha1.GroupVersion.Group, "nodeimagestates", ""})
		})
		if err == nil && !may {
			c.skip(check, "the agent may not write for any node")
			return
		}
		_, err = ask(ctx, c.doctor, func(ctx context.Context) (struct{}, error) {
			o := &v1alpha1.NodeImageState{ObjectMeta: metav1.ObjectMeta{Name: policyProbe}}
			return struct{}{}, c.client.Create(ctx, o, client.DryRunAll)
		})
		switch {
		case apierrors.IsForbidden(err):
			c.ok(check, "the agent may not write for another node")
		case err != nil:
			c.failed(check, "look at the API server", err)
		default:
			c.add(check, verdictWarn, remedy, "the agent may write for other nodes")
		}
		return
	}
	var list admissionv1.ValidatingAdmissionPolicyList
	_, err = ask(ctx, c.doctor, func(ctx context.Context) (struct{}, error) { return struct{}{}, c.client.List(ctx, &list) })
	switch {
	case apierrors.IsForbidden(err):
		c.skip(check, "%s may not list policies", user.Username)
	case err != nil:
		c.failed(check, "look at the API server", err)
	case !slices.ContainsFunc(list.Items, guardsStates):
		c.add(check, verdictWarn, remedy, "no admission policy is about nodeimagestates")
	default:
		c.ok(check, "there is one about nodeimagestates")
	}
}

func guardsStates(p admissionv1.ValidatingAdmissionPolicy) bool {
	return p.Spec.MatchConstraints != nil && slices.ContainsFunc(p.Spec.MatchConstraints.ResourceRules, func(r admissionv1.NamedRuleWithOperations) bool {
		return slices.Contains(r.Resources, "nodeimagestates/status")
	})
}
