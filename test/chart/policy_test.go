package chart_test

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/controller-runtime/pkg/log"
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
	for _, name := range []string{namespace, secretNamespace} {
		create(t, c, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	}
	for _, name := range []string{"node-a", "node-b"} {
		create(t, c, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}})
	}
	installed := render(t, "admissionPolicy.enabled=false")
	apply(t, c, slices.DeleteFunc(installed, func(o unstructured.Unstructured) bool { return o.GetAnnotations()["helm.sh/hook"] != "" }))
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

// as is a client with a token of an account: bound to a pod on the node, as the
// kubelet would ask for it, or to nothing where node is "".
func as(t *testing.T, admin client.Client, config *rest.Config, account, node string) client.Client {
	t.Helper()
	spec := authenticationv1.TokenRequestSpec{}
	if node != "" {
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: account + "-" + node, Namespace: namespace},
			Spec: corev1.PodSpec{
				NodeName: node, ServiceAccountName: account,
				Containers: []corev1.Container{{Name: "agent", Image: "agent"}},
			},
		}
		create(t, admin, pod)
		spec.BoundObjectRef = &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID}
	}
	request := &authenticationv1.TokenRequest{Spec: spec}
	owner := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: account, Namespace: namespace}}
	if err := admin.SubResource("token").Create(t.Context(), owner, request); err != nil {
		t.Fatalf("request a token: %v", err)
	}
	anonymous := rest.AnonymousClientConfig(config)
	anonymous.BearerToken = request.Status.Token
	c, err := client.New(anonymous, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// edit changes a NodeImageState, or what is sent to change one.
type edit func(o map[string]any)

func keepSpec(map[string]any)       {}
func nullSpec(o map[string]any)     { o["spec"] = nil }
func dropSpec(o map[string]any)     { delete(o, "spec") }
func emptySpec(o map[string]any)    { o["spec"] = map[string]any{} }
func setSpec(o map[string]any)      { o["spec"] = admitting(2) }
func admittedSpec(o map[string]any) { o["spec"] = admitting(1) }

// admitting is a spec that lets a node import one generation of an archive.
func admitting(generation int64) map[string]any {
	return map[string]any{"admitted": []any{map[string]any{
		"archive": "a", "uid": "u", "generation": generation, "time": "2026-01-01T00:00:00Z",
	}}}
}

// content is a NodeImageState that no other is like.
func content(node string, e edit) *unstructured.Unstructured {
	o := stateOf(node)
	now := fmt.Sprint(time.Now().UnixNano())
	o.SetLabels(map[string]string{"written": now})
	o.Object["status"] = map[string]any{"agentVersion": now}
	e(o.Object)
	return o
}

// write is one request that changes a NodeImageState.
type write struct {
	fresh  bool // there must be none before
	many   bool // it names none
	status bool // spec is out of its reach
	send   func(ctx context.Context, c client.Client, node string, e edit) error
}

const fieldOwner = client.FieldOwner("tarlift-test")

// writes are all the ways to change a NodeImageState.
var writes = map[string]write{
	"create":          {fresh: true, send: createState},
	"create by apply": {fresh: true, send: applyState},
	"apply":           {send: applyState},
	"update": {send: func(ctx context.Context, c client.Client, node string, e edit) error {
		o, err := edited(ctx, c, node, e)
		if err != nil {
			return err
		}
		return c.Update(ctx, o)
	}},
	"patch": {send: func(ctx context.Context, c client.Client, node string, e edit) error {
		return c.Patch(ctx, stateOf(node), mergePatch(node, e))
	}},
	"delete": {send: func(ctx context.Context, c client.Client, node string, _ edit) error {
		return c.Delete(ctx, stateOf(node))
	}},
	"delete a collection": {many: true, send: func(ctx context.Context, c client.Client, node string, _ edit) error {
		return c.DeleteAllOf(ctx, stateOf(""), client.MatchingFields{"metadata.name": node})
	}},
	"update status": {status: true, send: func(ctx context.Context, c client.Client, node string, e edit) error {
		o, err := edited(ctx, c, node, e)
		if err != nil {
			return err
		}
		return c.Status().Update(ctx, o)
	}},
	"patch status": {status: true, send: func(ctx context.Context, c client.Client, node string, e edit) error {
		return c.Status().Patch(ctx, stateOf(node), mergePatch(node, e))
	}},
	"apply status": {status: true, send: func(ctx context.Context, c client.Client, node string, e edit) error {
		return c.Status().Apply(ctx, client.ApplyConfigurationFromUnstructured(content(node, e)), fieldOwner, client.ForceOwnership)
	}},
}

func createState(ctx context.Context, c client.Client, node string, e edit) error {
	return c.Create(ctx, content(node, e))
}

func applyState(ctx context.Context, c client.Client, node string, e edit) error {
	return c.Apply(ctx, client.ApplyConfigurationFromUnstructured(content(node, e)), fieldOwner, client.ForceOwnership)
}

func mergePatch(node string, e edit) client.Patch {
	o := content(node, e).Object
	delete(o["metadata"].(map[string]any), "name")
	text, err := json.Marshal(o)
	if err != nil {
		panic(err) // it is made of strings
	}
	return client.RawPatch("application/merge-patch+json", text)
}

// edited is the state that is there, changed.
func edited(ctx context.Context, c client.Client, node string, e edit) (*unstructured.Unstructured, error) {
	o := stateOf(node)
	if err := c.Get(ctx, client.ObjectKeyFromObject(o), o); err != nil {
		return nil, err
	}
	o.SetLabels(content(node, e).GetLabels())
	o.Object["status"] = content(node, e).Object["status"]
	e(o.Object)
	return o, nil
}

// specEdits are the ways to change spec, by the write that does it.
var specEdits = []struct {
	name, write string
	edit        edit
}{
	{"create with a spec", "create", setSpec},
	{"create with a spec by apply", "create by apply", setSpec},
	{"apply another spec", "apply", setSpec},
	{"update to another spec", "update", setSpec},
	{"update to no spec", "update", dropSpec},
	{"update to an empty spec", "update", emptySpec},
	{"patch to another spec", "patch", setSpec},
	{"patch to no spec", "patch", nullSpec},
}

// metadataEdits keep a state when its Node is gone, or let it go with something else.
var metadataEdits = map[string]edit{
	"a finalizer":                 metadata("finalizers", []any{"tarlift.dev/test"}),
	"another Node as its owner":   metadata("ownerReferences", []any{ownerNode("node-b")}),
	"another object as its owner": metadata("ownerReferences", []any{map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "name": "node-a", "uid": "u"}}),
}

func metadata(field string, value any) edit {
	return func(o map[string]any) { o["metadata"].(map[string]any)[field] = value }
}

func ownerNode(name string) map[string]any {
	return map[string]any{"apiVersion": "v1", "kind": "Node", "name": name, "uid": "u"}
}

// reset makes a node's state what a write finds: none, or one that the controller has written to.
func reset(t *testing.T, admin client.Client, node string, w write) {
	t.Helper()
	noFinalizers := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`))
	if err := admin.Patch(t.Context(), stateOf(node), noFinalizers); client.IgnoreNotFound(err) != nil {
		t.Fatal(err)
	}
	if err := admin.Delete(t.Context(), stateOf(node)); client.IgnoreNotFound(err) != nil {
		t.Fatal(err)
	}
	if !w.fresh {
		create(t, admin, content(node, admittedSpec))
	}
}

// found is the spec that a node's state has, nil where there is none.
func found(t *testing.T, admin client.Client, node string) any {
	t.Helper()
	o := stateOf(node)
	if err := admin.Get(t.Context(), client.ObjectKeyFromObject(o), o); client.IgnoreNotFound(err) != nil {
		t.Fatal(err)
	}
	return o.Object["spec"]
}

// allowAll gives an account more rights than the chart does, so that what is refused is refused by the policy.
func allowAll(t *testing.T, admin client.Client, account string) {
	t.Helper()
	create(t, admin, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "all"}, Rules: []rbacv1.PolicyRule{{
		APIGroups: []string{"tarlift.dev"}, Resources: []string{"*"}, Verbs: []string{"*"},
	}}})
	create(t, admin, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "all"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "all"},
		Subjects:   []rbacv1.Subject{{Kind: "ServiceAccount", Name: account, Namespace: namespace}},
	})
}

func TestNodeWritesOnlyItsOwnState(t *testing.T) {
	c, config := admin(t)
	allowAll(t, c, nodeAccount)
	onA, unbound := as(t, c, config, nodeAccount, "node-a"), as(t, c, config, nodeAccount, "")
	send := func(t *testing.T, by client.Client, name, node string, e edit) error {
		t.Helper()
		reset(t, c, node, writes[name])
		return writes[name].send(t.Context(), by, node, e)
	}
	eventually(t, "the rights of the role", func() error { return send(t, onA, "patch", "node-a", keepSpec) })
	for name := range writes {
		for who, by := range map[string]client.Client{"node-a's agent": onA, "a token of no node": unbound} {
			for _, node := range []string{"node-a", "node-b"} {
				if err := send(t, by, name, node, keepSpec); err != nil {
					t.Fatalf("without the policy: %s of %s by %s: %v", name, node, who, err)
				}
			}
		}
	}
	for _, s := range specEdits {
		err := send(t, onA, s.write, "node-a", s.edit)
		if got := found(t, c, "node-a"); err != nil || cmp.Equal(got, any(admitting(1))) {
			t.Fatalf("without the policy: %s: %v; the spec is %v", s.name, err, got)
		}
	}
	for name, e := range metadataEdits {
		for _, w := range []string{"create", "patch", "update"} {
			if err := send(t, onA, w, "node-a", e); err != nil {
				t.Fatalf("without the policy: %s by %s: %v", name, w, err)
			}
		}
	}

	apply(t, c, render(t))
	eventually(t, "the policy", func() error {
		if err := send(t, onA, "patch", "node-b", keepSpec); !apierrors.IsForbidden(err) {
			return fmt.Errorf("a write to another node's state gives %w", err)
		}
		return nil
	})
	for name, w := range writes {
		t.Run(name, func(t *testing.T) {
			if err := send(t, onA, name, "node-b", keepSpec); !apierrors.IsForbidden(err) {
				t.Errorf("another node's state: error %v, want forbidden", err)
			}
			if err := send(t, unbound, name, "node-a", keepSpec); !apierrors.IsForbidden(err) {
				t.Errorf("by a token of no node: error %v, want forbidden", err)
			}
			// Deleting a collection names no object, so it cannot be told whose it would be.
			if err := send(t, onA, name, "node-a", keepSpec); apierrors.IsForbidden(err) != w.many || !w.many && err != nil {
				t.Errorf("the node's own state: %v", err)
			}
			if !w.status {
				return
			}
			err := send(t, onA, name, "node-a", setSpec)
			if diff := cmp.Diff(any(admitting(1)), found(t, c, "node-a")); err != nil || diff != "" {
				t.Errorf("the node's own spec by way of status: %v (-before +after):\n%s", err, diff)
			}
		})
	}
	for _, s := range specEdits {
		t.Run(s.name, func(t *testing.T) {
			if err := send(t, onA, s.write, "node-a", s.edit); !apierrors.IsForbidden(err) {
				t.Errorf("the node's own spec: error %v, want forbidden", err)
			}
		})
	}
	for name, e := range metadataEdits {
		for _, w := range []string{"create", "create by apply", "apply", "patch", "update"} {
			if err := send(t, onA, w, "node-a", e); !apierrors.IsForbidden(err) {
				t.Errorf("%s by %s: error %v, want forbidden", name, w, err)
			}
		}
	}
	if err := send(t, onA, "create", "node-a", metadata("ownerReferences", []any{ownerNode("node-a")})); err != nil {
		t.Errorf("create as its own Node's: %v", err)
	}
	testOthersMetadata(t, c, onA)
	if err := send(t, onA, "create", "node-a", emptySpec); err != nil {
		t.Errorf("create with a spec that says nothing: %v", err)
	}
	if err := send(t, c, "delete", "node-b", keepSpec); err != nil {
		t.Errorf("an administrator deletes any state: %v", err)
	}
}

// testOthersMetadata is about a state to which others gave a finalizer and an owner: the node's agent still reports, and
// changes neither.
func testOthersMetadata(t *testing.T, admin, agent client.Client) {
	theirs := func(o map[string]any) {
		admittedSpec(o)
		for _, e := range metadataEdits {
			e(o)
		}
	}
	removed := func(o map[string]any) {
		metadata("finalizers", []any{})(o)
		metadata("ownerReferences", []any{})(o)
	}
	kept := func(t *testing.T) []any {
		t.Helper()
		o := stateOf("node-a")
		if err := admin.Get(t.Context(), client.ObjectKeyFromObject(o), o); err != nil {
			t.Fatal(err)
		}
		return []any{o.GetFinalizers(), o.GetOwnerReferences()}
	}
	for name, w := range writes {
		if w.fresh || w.many || name == "delete" {
			continue
		}
		t.Run(name+" of what others gave a finalizer and an owner", func(t *testing.T) {
			reset(t, admin, "node-a", write{fresh: true})
			create(t, admin, content("node-a", theirs))
			before := kept(t)
			if err := w.send(t.Context(), agent, "node-a", keepSpec); err != nil {
				t.Errorf("the node's own write: %v", err)
			}
			// Status has no metadata, and an apply removes nothing that another field manager has set.
			if err := w.send(t.Context(), agent, "node-a", removed); apierrors.IsForbidden(err) == (w.status || name == "apply") {
				t.Errorf("a write that removes them: error %v", err)
			}
			if diff := cmp.Diff(before, kept(t)); diff != "" {
				t.Errorf("finalizers and owners (-before +after):\n%s", diff)
			}
		})
	}
	reset(t, admin, "node-a", write{fresh: true})
}

// TestControllerWritesSpec is under the chart's own role. The policy has nothing against the controller.
func TestControllerWritesSpec(t *testing.T) {
	c, config := admin(t)
	apply(t, c, render(t))
	controller := as(t, c, config, controllerAccount, "node-a")
	for _, name := range []string{"patch", "apply"} {
		eventually(t, "the rights of the role", func() error {
			reset(t, c, "node-b", writes[name])
			err := writes[name].send(t.Context(), controller, "node-b", setSpec)
			if diff := cmp.Diff(any(admitting(2)), found(t, c, "node-b")); err == nil && diff != "" {
				t.Fatalf("%s: the spec (-want +got):\n%s", name, diff)
			}
			return err
		})
	}
	for _, name := range []string{"create", "create by apply", "patch status", "apply status", "delete a collection"} {
		reset(t, c, "node-b", writes[name])
		if err := writes[name].send(t.Context(), controller, "node-b", keepSpec); !apierrors.IsForbidden(err) {
			t.Errorf("%s: error %v, want forbidden", name, err)
		}
	}
}

// stateOf is a NodeImageState as YAML has it, with nothing that a type would add.
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
