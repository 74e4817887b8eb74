// Package chart_test renders the Helm chart with the real helm and holds the
// result to what the project promises of it.
package chart_test

import (
	"bytes"
	"cmp"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

const (
	root      = "../.."
	chart     = root + "/charts/tarlift"
	release   = "tarlift"
	namespace = "tarlift-system"
)

// tools is the directory of the programs that `make tools` builds.
func tools() string {
	return cmp.Or(os.Getenv("TARLIFT_TOOLS"), root+"/bin/tools")
}

// helm runs helm and returns its standard output, and its standard error as
// error text.
func helm(t *testing.T, args ...string) (string, error) {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(tools(), "helm"))
	if err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("run helm (`make tools` builds it): %v", err)
	}
	if err != nil {
		err = errors.New(strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), err
}

// render returns the objects that the chart makes of values written as for
// --set.
func render(t *testing.T, values ...string) []unstructured.Unstructured {
	t.Helper()
	args := []string{"template", release, chart, "--namespace", namespace}
	for _, v := range values {
		args = append(args, "--set-json", v)
	}
	out, err := helm(t, args...)
	if err != nil {
		t.Fatalf("helm template: %v", err)
	}
	return decodeAll(t, out)
}

// decodeAll decodes a stream of YAML documents.
func decodeAll(t *testing.T, text string) []unstructured.Unstructured {
	t.Helper()
	var objects []unstructured.Unstructured
	for _, doc := range strings.Split("\n"+text, "\n---\n") {
		var o unstructured.Unstructured
		if err := yaml.UnmarshalStrict([]byte(doc), &o.Object); err != nil {
			t.Fatalf("document: %v\n%s", err, doc)
		}
		if len(o.Object) > 0 {
			objects = append(objects, o)
		}
	}
	return objects
}

// typed converts the objects of one kind.
func typed[T any](t *testing.T, objects []unstructured.Unstructured, kind string) []T {
	t.Helper()
	var found []T
	for _, o := range objects {
		if o.GetKind() != kind {
			continue
		}
		var v T
		// Strict: a misspelt field would be dropped by the API server unseen.
		if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(o.Object, &v, true); err != nil {
			t.Fatalf("%s %s: %v", kind, o.GetName(), err)
		}
		found = append(found, v)
	}
	return found
}

// one is typed where the chart must make exactly one of a kind.
func one[T any](t *testing.T, objects []unstructured.Unstructured, kind string) T {
	t.Helper()
	found := typed[T](t, objects, kind)
	if len(found) != 1 {
		t.Fatalf("%d objects of kind %s, want 1", len(found), kind)
	}
	return found[0]
}
