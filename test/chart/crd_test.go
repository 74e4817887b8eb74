package chart_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

const keep = "helm.sh/resource-policy"

// crds returns the chart's CustomResourceDefinitions by name.
func crds(t *testing.T, values ...string) map[string]unstructured.Unstructured {
	t.Helper()
	found := map[string]unstructured.Unstructured{}
	for _, o := range render(t, values...) {
		if o.GetKind() == "CustomResourceDefinition" {
			found[o.GetName()] = o
		}
	}
	return found
}

// Helm packages no file from outside the chart, so that holds copies.
func TestCRDsAreTheGeneratedOnes(t *testing.T) {
	files, err := filepath.Glob(root + "/config/crd/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("generated CRDs: %d, %v", len(files), err)
	}
	rendered := crds(t)
	if len(rendered) != len(files) {
		t.Errorf("%d CRDs in the chart, %d generated", len(rendered), len(files))
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var want unstructured.Unstructured
		if err := yaml.Unmarshal(data, &want.Object); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		got := rendered[want.GetName()]
		if diff := cmp.Diff(want.Object["spec"], got.Object["spec"]); diff != "" {
			t.Errorf("%s (-generated +chart):\n%s", want.GetName(), diff)
		}
		for name, value := range want.GetAnnotations() {
			if got.GetAnnotations()[name] != value {
				t.Errorf("%s: annotation %s is %q, want %q", want.GetName(), name, got.GetAnnotations()[name], value)
			}
		}
	}
}

func TestCRDValues(t *testing.T) {
	tests := map[string]struct {
		values []string
		count  int
		policy string
	}{
		"kept":                {nil, 2, "keep"},
		"go with a release":   {[]string{"crds.keep=false"}, 2, ""},
		"installed otherwise": {[]string{"crds.enabled=false"}, 0, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			found := crds(t, tt.values...)
			if len(found) != tt.count {
				t.Errorf("%d CRDs, want %d", len(found), tt.count)
			}
			for _, crd := range found {
				if got := crd.GetAnnotations()[keep]; got != tt.policy {
					t.Errorf("%s: %s is %q, want %q", crd.GetName(), keep, got, tt.policy)
				}
			}
		})
	}
}

// Without Helm, accounts, roles and the admission policy are applied from
// config/rbac: one must grant, and deny, what the other does.
func TestRolesAreThoseOfConfig(t *testing.T) {
	files, err := filepath.Glob(root + "/config/rbac/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("roles: %d files, %v", len(files), err)
	}
	rendered := map[string]map[string]any{}
	missing := map[string]bool{}
	for _, o := range render(t) {
		name := o.GetKind() + " " + o.GetName()
		rendered[name] = o.Object
		group := o.GroupVersionKind().Group
		switch group {
		case "rbac.authorization.k8s.io", "admissionregistration.k8s.io", "flowcontrol.apiserver.k8s.io":
			missing[name] = true
		}
	}
	delete(missing, "ClusterRole tarlift-view") // for people
	delete(missing, "ClusterRole tarlift-edit")
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range decodeAll(t, string(data)) {
			name := want.GetKind() + " " + want.GetName()
			for _, field := range []string{"rules", "roleRef", "subjects", "spec"} {
				if diff := cmp.Diff(want.Object[field], rendered[name][field]); diff != "" {
					t.Errorf("%s: %s (-%s +chart):\n%s", name, field, filepath.Base(file), diff)
				}
			}
			if rendered[name] == nil {
				t.Errorf("%s is not in the chart", name)
			}
			delete(missing, name)
		}
	}
	for name := range missing {
		t.Errorf("%s is not in config/rbac", name)
	}
}
