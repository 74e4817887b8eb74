package doctor

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

// right is a right that 'agent node' needs.
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

// whoami is the user that the API server sees.
func (c *cluster) whoami(ctx context.Context) (authenticationv1.UserInfo, error) {
	return ask(ctx, c.examination, func(ctx context.Context) (authenticationv1.UserInfo, error) {
		review := &authenticationv1.SelfSubjectReview{}
		err := c.client.Create(ctx, review)
		return review.Status.UserInfo, err //nolint:wrapcheck // the finding names the check
	})
}

// checkRights checks the rights of the agent's service account. An administrator's rights would say nothing about them.
func (c *cluster) checkRights(ctx context.Context) {
	const check = "rights"
	user, err := c.whoami(ctx)
	if err != nil {
		c.failed(check, seeCredentials, err)
		return
	}
	if !strings.HasPrefix(user.Username, serviceAccount) {
		c.skip(user.Username+" is not the agent: run this in the agent's pod", check)
		return
	}
	missing, err := ask(ctx, c.examination, func(ctx context.Context) (missing []string, err error) {
		for _, r := range nodeRights(c.options.SecretNamespace) {
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
		c.failed(check, seeCredentials, err)
	case len(missing) > 0:
		c.fail(check, "bind the agent's roles (rbac of the chart, or config/rbac/node.yaml) to this service account",
			"%s may not %s", account, strings.Join(missing, ", "))
	default:
		c.ok(check, "%s has all rights that the agent needs", account)
	}
}

// policyProbe is the name of no node: the policy must not let an agent write its NodeImageState.
const policyProbe = "tarlift-doctor-no-such-node"

const enablePolicy = "set admissionPolicy.enabled in the chart, or apply config/rbac/admissionpolicy.yaml: " +
	"without it the agent of one node can write the reports of all nodes"

// checkPolicy checks whether an agent can write for its own node only. With an agent's credentials it tries to, as a dry
// run; other users look for the policy.
func (c *cluster) checkPolicy(ctx context.Context) {
	const check = "policy"
	user, err := c.whoami(ctx)
	if err != nil {
		c.failed(check, seeCredentials, err)
		return
	}
	if len(user.Extra["authentication.kubernetes.io/node-name"]) > 0 {
		c.tryPolicy(ctx, check)
		return
	}
	var list admissionv1.ValidatingAdmissionPolicyList
	_, err = ask(ctx, c.examination, func(ctx context.Context) (struct{}, error) { return struct{}{}, c.client.List(ctx, &list) })
	switch {
	case apierrors.IsForbidden(err):
		c.skip(user.Username+" may not list policies", check)
	case err != nil:
		c.failed(check, seeServer, err)
	case !slices.ContainsFunc(list.Items, guardsStates):
		c.warn(check, enablePolicy, "no admission policy matches nodeimagestates")
	default:
		c.ok(check, "an admission policy matches nodeimagestates")
	}
}

func (c *cluster) tryPolicy(ctx context.Context, check string) {
	allowed, err := ask(ctx, c.examination, func(ctx context.Context) (bool, error) {
		return c.allowed(ctx, right{"create", v1alpha1.GroupVersion.Group, "nodeimagestates", ""})
	})
	if err == nil && !allowed {
		c.skip("the agent may not write for any node", check)
		return
	}
	_, err = ask(ctx, c.examination, func(ctx context.Context) (struct{}, error) {
		o := &v1alpha1.NodeImageState{ObjectMeta: metav1.ObjectMeta{Name: policyProbe}}
		return struct{}{}, c.client.Create(ctx, o, client.DryRunAll)
	})
	switch {
	case apierrors.IsForbidden(err):
		c.ok(check, "the agent may not write for another node")
	case err != nil:
		c.failed(check, seeServer, err)
	default:
		c.warn(check, enablePolicy, "the agent may write for other nodes")
	}
}

func guardsStates(p admissionv1.ValidatingAdmissionPolicy) bool {
	match := p.Spec.MatchConstraints
	return match != nil && slices.ContainsFunc(match.ResourceRules, func(r admissionv1.NamedRuleWithOperations) bool {
		return slices.Contains(r.Resources, "nodeimagestates/status")
	})
}
