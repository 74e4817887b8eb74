package main

import (
	"context"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/api/v1alpha1"
)

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
		{"create", "events.k8s.io", "events", metav1.NamespaceDefault},
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
