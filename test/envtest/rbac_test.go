package envtest

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/node"
	"github.com/tarlift/tarlift/internal/source"
)

// loopback is where tests serve.
var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}

// That the roles suffice is shown by the tests that run under them; this is what they must not give.
func TestRoles(t *testing.T) {
	for _, test := range []struct {
		account                                      string
		verb, group, resource, sub, name, namespaced string
		want                                         bool
	}{
		{"tarlift-node", "patch", "tarlift.dev", "nodeimagestates", "status", "n", "", true},
		{"tarlift-node", "create", "tarlift.dev", "nodeimagestates", "", "", "", true},
		{"tarlift-node", "delete", "tarlift.dev", "nodeimagestates", "", "n", "", false},
		{"tarlift-node", "patch", "tarlift.dev", "imagearchives", "status", "a", "", false},
		{"tarlift-node", "patch", "tarlift.dev", "imagearchives", "", "a", "", false},
		{"tarlift-node", "create", "tarlift.dev", "imagearchives", "", "a", "", false},
		{"tarlift-node", "get", "", "secrets", "", "s", systemNamespace, true},
		{"tarlift-node", "list", "", "secrets", "", "", systemNamespace, false},
		{"tarlift-node", "watch", "", "secrets", "", "", systemNamespace, false},
		{"tarlift-node", "get", "", "secrets", "", "s", "kube-system", false},
		{"tarlift-node", "patch", "", "nodes", "", "n", "", false},
		{"tarlift-node", "list", "", "pods", "", "", "", false},
		{"tarlift-node", "create", "coordination.k8s.io", "leases", "", "", systemNamespace, false},
		{"tarlift-node", "create", "events.k8s.io", "events", "", "", "default", true},
		{"tarlift-node", "create", "events.k8s.io", "events", "", "", "kube-system", false},
		{"tarlift-node", "patch", "events.k8s.io", "events", "", "e", "default", false},
		{"tarlift-node", "get", "", "nodes", "", "n", "", false},
		{"tarlift-controller", "create", "events.k8s.io", "events", "", "", "default", true},
		{"tarlift-controller", "patch", "events.k8s.io", "events", "", "e", "kube-system", false},
		{"tarlift-controller", "patch", "tarlift.dev", "imagearchives", "status", "a", "", true},
		{"tarlift-controller", "patch", "tarlift.dev", "imagearchives", "", "a", "", false},
		{"tarlift-controller", "patch", "tarlift.dev", "nodeimagestates", "status", "n", "", false},
		{"tarlift-controller", "create", "tarlift.dev", "nodeimagestates", "", "n", "", false},
		{"tarlift-controller", "patch", "tarlift.dev", "nodeimagestates", "", "n", "", true},
		{"tarlift-controller", "delete", "tarlift.dev", "nodeimagestates", "", "n", "", true},
		{"tarlift-controller", "deletecollection", "tarlift.dev", "nodeimagestates", "", "", "", false},
		{"tarlift-node", "patch", "tarlift.dev", "nodeimagestates", "", "n", "", false},
		{"tarlift-controller", "get", "", "secrets", "", "s", systemNamespace, false},
		{"tarlift-controller", "create", "coordination.k8s.io", "leases", "", "", systemNamespace, true},
		{"tarlift-controller", "update", "coordination.k8s.io", "leases", "", "controller.tarlift.dev", systemNamespace, true},
		{"tarlift-controller", "update", "coordination.k8s.io", "leases", "", "other", systemNamespace, false},
		{"tarlift-controller", "update", "coordination.k8s.io", "leases", "", "kube-scheduler", "kube-system", false},
		{"tarlift-controller", "patch", "", "nodes", "", "n", "", false},
	} {
		user := as(test.account).Impersonate
		review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User: user.UserName, Groups: user.Groups,
			ResourceAttributes: &authorizationv1.ResourceAttributes{
				Verb: test.verb, Group: test.group, Resource: test.resource, Subresource: test.sub, Name: test.name, Namespace: test.namespaced,
			},
		}}
		if err := admin.Create(t.Context(), review); err != nil {
			t.Fatal(err)
		}
		if review.Status.Allowed != test.want {
			t.Errorf("%s may %s %s/%s %s in %q: %v, want %v",
				test.account, test.verb, test.resource, test.sub, test.name, test.namespaced, review.Status.Allowed, test.want)
		}
	}
}

func TestSecretsOfSources(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		if user+password != "userpw" && r.Header.Get("Authorization") != "Bearer token" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.Write([]byte("archive"))
	}))
	t.Cleanup(server.Close)
	labelled := map[string]string{v1alpha1.LabelSource: "true"}
	for name, secret := range map[string]*corev1.Secret{
		"basic":      {ObjectMeta: metav1.ObjectMeta{Labels: labelled}, StringData: map[string]string{"username": "user", "password": "pw"}},
		"bearer":     {ObjectMeta: metav1.ObjectMeta{Labels: labelled}, StringData: map[string]string{"bearerToken": "token"}},
		"wrong":      {ObjectMeta: metav1.ObjectMeta{Labels: labelled}, StringData: map[string]string{"username": "user", "password": "no"}},
		"other-keys": {ObjectMeta: metav1.ObjectMeta{Labels: labelled}, StringData: map[string]string{"user": "user"}},
		"unlabelled": {StringData: map[string]string{"bearerToken": "token"}},
		"no-hosts":   {ObjectMeta: metav1.ObjectMeta{Labels: labelled}, StringData: map[string]string{"bearerToken": "token"}},
		"other-host": {ObjectMeta: metav1.ObjectMeta{Labels: labelled, Annotations: map[string]string{v1alpha1.AnnotationHosts: "files.example.com"}}, StringData: map[string]string{"bearerToken": "token"}},
		"denying":    {ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{v1alpha1.LabelSource: "false"}}, StringData: map[string]string{"bearerToken": "token"}},
		"elsewhere":  {ObjectMeta: metav1.ObjectMeta{Namespace: "default", Labels: labelled}, StringData: map[string]string{"bearerToken": "token"}},
		"not-pem":    {ObjectMeta: metav1.ObjectMeta{Labels: labelled}, StringData: map[string]string{"ca.crt": "x"}},
	} {
		secret.Name = name
		if secret.Namespace == "" {
			secret.Namespace = systemNamespace
		}
		if name != "no-hosts" && secret.Annotations == nil {
			secret.Annotations = map[string]string{v1alpha1.AnnotationHosts: "127.0.0.1"}
		}
		create(t, secret)
	}
	reader, err := client.New(as("tarlift-node"), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	sources := node.Sources{Secrets: reader, Namespace: systemNamespace, AllowAddresses: loopback}
	for _, test := range []struct {
		secret, cert string
		want         error
	}{
		{"basic", "", nil},
		{"bearer", "", nil},
		{"", "", source.ErrDenied},
		{"wrong", "", source.ErrDenied},
		{"other-keys", "", source.ErrDenied},
		{"unlabelled", "", source.ErrDenied},
		{"denying", "", source.ErrDenied},
		{"no-hosts", "", source.ErrDenied},
		{"other-host", "", source.ErrDenied},
		{"absent", "", source.ErrDenied},
		{"elsewhere", "", source.ErrDenied},
		{"basic", "absent", source.ErrDenied},
		{"basic", "basic", source.ErrDenied},
		{"basic", "not-pem", source.ErrInvalid},
	} {
		spec := &v1alpha1.HTTPSource{URL: server.URL + "/a.tar"}
		if test.secret != "" {
			spec.SecretRef = &v1alpha1.SecretReference{Name: test.secret}
		}
		if test.cert != "" {
			spec.CertSecretRef = &v1alpha1.SecretReference{Name: test.cert}
		}
		var blob source.Blob
		location, err := sources.Resolve(t.Context(), v1alpha1.Source{HTTP: spec})
		if err == nil {
			blob, err = location.Open(t.Context())
		}
		if !errors.Is(err, test.want) {
			t.Errorf("secret %q, certificate %q: %v, want %v", test.secret, test.cert, err, test.want)
		}
		if err == nil {
			blob.Close()
		}
	}
}
