package chart_test

import (
	"errors"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// TestAccess asks the API server what the chart's accounts may do.
func TestAccess(t *testing.T) {
	c, _ := admin(t)
	type access = authorizationv1.ResourceAttributes
	tests := map[string]struct {
		account string
		access  access
		want    bool
	}{
		"node reads a Secret that a source names": {nodeAccount, access{Verb: "get", Resource: "secrets", Namespace: namespace, Name: "s"}, true},
		"node finds out which Secrets there are":  {nodeAccount, access{Verb: "list", Resource: "secrets", Namespace: namespace}, false},
		"node watches Secrets":                    {nodeAccount, access{Verb: "watch", Resource: "secrets", Namespace: namespace}, false},
		"node reads another namespace's Secret":   {nodeAccount, access{Verb: "get", Resource: "secrets", Namespace: "kube-system", Name: "s"}, false},
		"controller reads a Secret":               {controllerAccount, access{Verb: "get", Resource: "secrets", Namespace: namespace, Name: "s"}, false},
		"node orders an import":                   {nodeAccount, access{Verb: "create", Group: "tarlift.dev", Resource: "imagearchives"}, false},
		"controller orders an import":             {controllerAccount, access{Verb: "create", Group: "tarlift.dev", Resource: "imagearchives"}, false},
		"node follows ImageArchives":              {nodeAccount, access{Verb: "watch", Group: "tarlift.dev", Resource: "imagearchives"}, true},
		"node writes a roll-up":                   {nodeAccount, access{Verb: "patch", Group: "tarlift.dev", Resource: "imagearchives", Subresource: "status"}, false},
		"controller writes a roll-up":             {controllerAccount, access{Verb: "patch", Group: "tarlift.dev", Resource: "imagearchives", Subresource: "status"}, true},
		"controller speaks for a node":            {controllerAccount, access{Verb: "patch", Group: "tarlift.dev", Resource: "nodeimagestates", Subresource: "status"}, false},
		"node reports":                            {nodeAccount, access{Verb: "patch", Group: "tarlift.dev", Resource: "nodeimagestates", Subresource: "status"}, true},
		"node writes a spec":                      {nodeAccount, access{Verb: "patch", Group: "tarlift.dev", Resource: "nodeimagestates"}, false},
		"node replaces a report":                  {nodeAccount, access{Verb: "update", Group: "tarlift.dev", Resource: "nodeimagestates", Subresource: "status"}, false},
		"node deletes a report":                   {nodeAccount, access{Verb: "delete", Group: "tarlift.dev", Resource: "nodeimagestates"}, false},
		"controller admits nodes":                 {controllerAccount, access{Verb: "patch", Group: "tarlift.dev", Resource: "nodeimagestates"}, true},
		"controller deletes what no node has":     {controllerAccount, access{Verb: "delete", Group: "tarlift.dev", Resource: "nodeimagestates"}, true},
		"controller makes up nodes":               {controllerAccount, access{Verb: "create", Group: "tarlift.dev", Resource: "nodeimagestates"}, false},
		"controller replaces nodes' reports":      {controllerAccount, access{Verb: "update", Group: "tarlift.dev", Resource: "nodeimagestates", Subresource: "status"}, false},
		"controller deletes all reports":          {controllerAccount, access{Verb: "deletecollection", Group: "tarlift.dev", Resource: "nodeimagestates"}, false},
		"node relabels nodes":                     {nodeAccount, access{Verb: "patch", Resource: "nodes", Name: "node-a"}, false},
		"controller leads":                        {controllerAccount, access{Verb: "create", Group: "coordination.k8s.io", Resource: "leases", Namespace: namespace}, true},
		"controller takes another lease":          {controllerAccount, access{Verb: "update", Group: "coordination.k8s.io", Resource: "leases", Namespace: namespace, Name: "other"}, false},
	}
	ask := func(t *testing.T, account string, a access) bool {
		t.Helper()
		review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User: "system:serviceaccount:" + namespace + ":" + account, ResourceAttributes: &a,
		}}
		create(t, c, review)
		return review.Status.Allowed
	}
	// What is allowed first: afterwards the server has seen every role.
	for _, want := range []bool{true, false} {
		for name, tt := range tests {
			if tt.want != want {
				continue
			}
			t.Run(name, func(t *testing.T) {
				if !want {
					if ask(t, tt.account, tt.access) {
						t.Error("allowed")
					}
					return
				}
				eventually(t, "the rights of the role", func() error {
					if !ask(t, tt.account, tt.access) {
						return errors.New("refused")
					}
					return nil
				})
			})
		}
	}
}

// rules returns every rule of the chart by the role that has it. Events about
// objects that are in no namespace are in `default`; there a role gives nothing else.
func rules(t *testing.T, objects []unstructured.Unstructured) (cluster, own map[string][]rbacv1.PolicyRule) {
	t.Helper()
	cluster, own = map[string][]rbacv1.PolicyRule{}, map[string][]rbacv1.PolicyRule{}
	for _, r := range typed[rbacv1.ClusterRole](t, objects, "ClusterRole") {
		cluster[r.Name] = r.Rules
	}
	for _, r := range typed[rbacv1.Role](t, objects, "Role") {
		onlyEvents := len(r.Rules) == 1 && slices.Equal(r.Rules[0].Resources, []string{"events"})
		if r.Namespace != namespace && (r.Namespace != "default" || !onlyEvents) {
			t.Errorf("role %s is in namespace %q", r.Name, r.Namespace)
		}
		own[r.Name] = r.Rules
	}
	return cluster, own
}

func TestRights(t *testing.T) {
	cluster, own := rules(t, render(t))
	var secrets []string
	for name, list := range own {
		for _, r := range list {
			if slices.Contains(r.Resources, "secrets") {
				secrets = append(secrets, name)
				if diff := cmp.Diff([]string{"get"}, r.Verbs); diff != "" {
					t.Errorf("%s's verbs on Secrets (-want +got):\n%s", name, diff)
				}
			}
		}
	}
	if diff := cmp.Diff([]string{"tarlift-node"}, secrets); diff != "" {
		t.Errorf("roles that read Secrets (-want +got):\n%s", diff)
	}
	for name, list := range cluster {
		for _, r := range list {
			if slices.Contains(r.Resources, "secrets") || slices.Contains(r.Resources, "events") {
				t.Errorf("%s may do this in every namespace: %v", name, r)
			}
		}
	}
	for _, all := range []map[string][]rbacv1.PolicyRule{cluster, own} {
		for name, list := range all {
			for _, r := range list {
				if slices.Contains(slices.Concat(r.Verbs, r.Resources, r.APIGroups), "*") {
					t.Errorf("%s has a wildcard: %v", name, r)
				}
			}
		}
	}
}

// Wherever the Secrets of sources are, the agent may get them there, looks for them there, and may get no others.
func TestSecretsHaveOneNamespace(t *testing.T) {
	for want, values := range map[string][]string{
		"$(POD_NAMESPACE)": nil,
		secretNamespace:    {`secrets.namespace="` + secretNamespace + `"`},
	} {
		objects := render(t, values...)
		var roles, bindings []string
		for _, r := range typed[rbacv1.Role](t, objects, "Role") {
			if slices.ContainsFunc(r.Rules, func(rule rbacv1.PolicyRule) bool { return slices.Contains(rule.Resources, "secrets") }) {
				roles = append(roles, r.Namespace+"/"+r.Name)
			}
		}
		for _, b := range typed[rbacv1.RoleBinding](t, objects, "RoleBinding") {
			if b.RoleRef.Name == nodeAccount {
				bindings = append(bindings, b.Namespace+"/"+b.Name)
				account := []rbacv1.Subject{{Kind: "ServiceAccount", Name: nodeAccount, Namespace: namespace}}
				if diff := cmp.Diff(account, b.Subjects); diff != "" {
					t.Errorf("subjects (-want +got):\n%s", diff)
				}
			}
		}
		wanted := []string{strings.ReplaceAll(want, "$(POD_NAMESPACE)", namespace) + "/" + nodeAccount}
		if diff := cmp.Diff([][]string{wanted, wanted}, [][]string{roles, bindings}); diff != "" {
			t.Errorf("roles that read Secrets, and their bindings (-want +got):\n%s", diff)
		}
		for role, pod := range map[string]corev1.PodSpec{
			"node": pods(t, objects)["node"].Spec, "doctor": one[corev1.Pod](t, objects, "Pod").Spec,
		} {
			if flag := "--secret-namespace=" + want; !slices.Contains(pod.Containers[0].Args, flag) {
				t.Errorf("%s: %v, want %s", role, pod.Containers[0].Args, flag)
			}
		}
	}
}

func TestOnlyViewIsAggregated(t *testing.T) {
	var aggregated []string
	for _, r := range typed[rbacv1.ClusterRole](t, render(t), "ClusterRole") {
		for label := range maps.Keys(r.Labels) {
			if !strings.HasPrefix(label, "rbac.authorization.k8s.io/aggregate-to-") {
				continue
			}
			aggregated = append(aggregated, path.Base(label))
			for _, rule := range r.Rules {
				if diff := cmp.Diff([]string{"get", "list", "watch"}, rule.Verbs); diff != "" {
					t.Errorf("%s (-want +got):\n%s", r.Name, diff)
				}
			}
		}
	}
	if diff := cmp.Diff([]string{"aggregate-to-view"}, aggregated); diff != "" {
		t.Errorf("aggregations (-want +got):\n%s", diff)
	}
}
