package chart_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-logr/logr"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/tarlift/tarlift/api/v1alpha1"
)

const (
	nodeAccount       = "tarlift-node"
	controllerAccount = "tarlift-controller"
	// settle bounds the wait for what the API server does in its own time.
	settle = time.Minute
)

// admin is a client of a real API server that has what the chart makes, the
// admission policy excepted, and the nodes node-a and node-b.
func admin(t *testing.T) (client.Client, *rest.Config) {
	t.Helper()
	assets, err := filepath.Abs(tools())
	if err != nil {
		t.Fatal(err)
	}
	log.SetLogger(logr.Discard())
	env := &envtest.Environment{BinaryAssetsDirectory: assets}
	config, err := env.Start()
	if err != nil {
		t.Fatalf("start the API server (`make tools` builds it): %v", err)
	}
	t.Cleanup(func() {
		if err := env.Stop(); err != nil {
			t.Errorf("stop the API server: %v", err)
		}
	})
	c, err := client.New(config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	create(t, c, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}})
	for _, name := range []string{"node-a", "node-b"} {
		create(t, c, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}})
	}
	apply(t, c, render(t, "admissionPolicy.enabled=false"))
	return c, config
}

func create(t *testing.T, c client.Client, o client.Object) {
	t.Helper()
	if err := c.Create(t.Context(), o); err != nil {
		t.Fatalf("create %T %s: %v", o, o.GetName(), err)
	}
}

func apply(t *testing.T, c client.Client, objects []unstructured.Unstructured) {
	t.Helper()
	for _, o := range objects {
		err := c.Apply(t.Context(), client.ApplyConfigurationFromUnstructured(&o), client.FieldOwner("helm"), client.ForceOwnership)
		if err != nil {
			t.Fatalf("apply %s %s: %v", o.GetKind(), o.GetName(), err)
		}
	}
}

// agent is a client with a token of the node agents' account: bound to a pod on
// the node, as the kubelet would ask for it, or to nothing where node is "".
func agent(t *testing.T, admin client.Client, config *rest.Config, node string) client.Client {
	t.Helper()
	spec := authenticationv1.TokenRequestSpec{}
	if node != "" {
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "agent-" + node, Namespace: namespace},
			Spec: corev1.PodSpec{
				NodeName: node, ServiceAccountName: nodeAccount,
				Containers: []corev1.Container{{Name: "agent", Image: "agent"}},
			},
		}
		create(t, admin, pod)
		spec.BoundObjectRef = &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID}
	}
	request := &authenticationv1.TokenRequest{Spec: spec}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: nodeAccount, Namespace: namespace}}
	if err := admin.SubResource("token").Create(t.Context(), account, request); err != nil {
		t.Fatalf("request a token: %v", err)
	}
	anonymous := rest.AnonymousClientConfig(config)
	anonymous.BearerToken = request.Status.Token
	known := scheme.Scheme
	if err := v1alpha1.AddToScheme(known); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(anonymous, client.Options{Scheme: known})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func state(node string) *v1alpha1.NodeImageState {
	return &v1alpha1.NodeImageState{ObjectMeta: metav1.ObjectMeta{Name: node}}
}

// writes are all the ways to change a NodeImageState. Each leaves one there.
var writes = map[string]func(context.Context, client.Client, string) error{
	"update": func(ctx context.Context, c client.Client, node string) error {
		s := state(node)
		if err := c.Get(ctx, client.ObjectKeyFromObject(s), s); err != nil {
			return err
		}
		s.Labels = map[string]string{"written": fmt.Sprint(time.Now().UnixNano())}
		return c.Update(ctx, s)
	},
	"patch": func(ctx context.Context, c client.Client, node string) error {
		text := fmt.Sprintf(`{"metadata":{"labels":{"written":"%d"}}}`, time.Now().UnixNano())
		return c.Patch(ctx, state(node), client.RawPatch("application/merge-patch+json", []byte(text)))
	},
	"status": func(ctx context.Context, c client.Client, node string) error {
		text := fmt.Sprintf(`{"status":{"summary":"%d"}}`, time.Now().UnixNano())
		return c.Status().Patch(ctx, state(node), client.RawPatch("application/merge-patch+json", []byte(text)))
	},
	"delete and create": func(ctx context.Context, c client.Client, node string) error {
		if err := c.Delete(ctx, state(node)); err != nil {
			return err
		}
		return c.Create(ctx, state(node))
	},
	"delete all that bear a name": func(ctx context.Context, c client.Client, node string) error {
		err := c.DeleteAllOf(ctx, state(""), client.MatchingFields{"metadata.name": node})
		if err != nil {
			return err
		}
		return c.Create(ctx, state(node))
	},
}

func TestNodeWritesOnlyItsOwnState(t *testing.T) {
	c, config := admin(t)
	// More rights than the chart gives, so that what is refused below is refused by the policy.
	create(t, c, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "all"}, Rules: []rbacv1.PolicyRule{{
		APIGroups: []string{"tarlift.dev"}, Resources: []string{"*"}, Verbs: []string{"*"},
	}}})
	create(t, c, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "all"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "all"},
		Subjects:   []rbacv1.Subject{{Kind: "ServiceAccount", Name: nodeAccount, Namespace: namespace}},
	})
	onA, unbound := agent(t, c, config, "node-a"), agent(t, c, config, "")
	eventually(t, "the rights of the role", func() error { return onA.Create(t.Context(), state("node-a")) })
	create(t, onA, state("node-b"))
	for name, write := range writes {
		for _, node := range []string{"node-a", "node-b"} {
			if err := write(t.Context(), onA, node); err != nil {
				t.Fatalf("without the policy: %s of %s: %v", name, node, err)
			}
		}
	}

	apply(t, c, render(t))
	eventually(t, "the policy", func() error {
		if err := writes["patch"](t.Context(), onA, "node-b"); !apierrors.IsForbidden(err) {
			return fmt.Errorf("a write to another node's state gives %w", err)
		}
		return nil
	})
	for name, write := range writes {
		t.Run(name, func(t *testing.T) {
			if err := write(t.Context(), onA, "node-b"); !apierrors.IsForbidden(err) {
				t.Errorf("another node's state: error %v, want forbidden", err)
			}
			if err := write(t.Context(), unbound, "node-a"); !apierrors.IsForbidden(err) {
				t.Errorf("by a token of no node: error %v, want forbidden", err)
			}
			// Deleting a collection names no object, so it cannot be told whose it would be.
			if name == "delete all that bear a name" {
				return
			}
			if err := write(t.Context(), onA, "node-a"); err != nil {
				t.Errorf("the node's own state: %v", err)
			}
		})
	}
	if err := onA.Create(t.Context(), state("node-c")); !apierrors.IsForbidden(err) {
		t.Errorf("create another node's state: error %v, want forbidden", err)
	}
	if err := c.Delete(t.Context(), stateOf("node-b")); err != nil {
		t.Errorf("an administrator deletes any state: %v", err)
	}
}

// stateOf is a state for clients whose scheme does not know the kind.
func stateOf(node string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "tarlift.dev/v1alpha1", "kind": "NodeImageState", "metadata": map[string]any{"name": node},
	}}
}

// eventually tries until there is no error.
func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	deadline := time.Now().Add(settle)
	for err := try(); err != nil; err = try() {
		if time.Now().After(deadline) {
			t.Fatalf("wait for %s: %v", what, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

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
