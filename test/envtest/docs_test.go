package envtest

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tarlift/tarlift/test/docs"
)

var (
	// heredoc is a manifest within shell commands.
	heredoc = regexp.MustCompile(`(?s)<<'EOF'\n(.*?)\nEOF\n`)
	// elided is a digest that is cut short for the reader.
	elided = regexp.MustCompile(`sha256:[0-9a-f]*…`)
	// more is a line that says that there are others.
	more = regexp.MustCompile(`(?m)^ *…\n`)
)

// The API server takes every object that the pages show, and every part of an ImageArchive's spec, strictly: with no
// field that it does not know.
func TestExamplesAreAccepted(t *testing.T) {
	pages, err := docs.Pages("../..")
	if err != nil {
		t.Fatal(err)
	}
	strict := client.WithFieldValidation(admin, metav1.FieldValidationStrict)
	accepted := map[string]int{}
	for _, page := range pages {
		blocks, _ := page.Parts()
		for _, b := range blocks {
			for k, text := range manifests(b) {
				o := example(t, text, fmt.Sprintf("example-%d-%d", b.Line, k))
				if err := strict.Create(t.Context(), o, client.DryRunAll); err != nil {
					t.Errorf("%s:%d: %v", page.Path, b.Line, err)
				}
				accepted[o.GetKind()]++
			}
		}
	}
	if accepted["ImageArchive"] < 10 || accepted["Secret"] < 1 || accepted["NodeImageState"] < 1 {
		t.Errorf("accepted %v: are they still found?", accepted)
	}
}

// manifests are the YAML documents of a block.
func manifests(b docs.Block) (texts []string) {
	switch b.Language {
	case "yaml":
		texts = strings.Split(b.Text, "\n---\n")
	case "sh":
		for _, m := range heredoc.FindAllStringSubmatch(b.Text, -1) {
			texts = append(texts, strings.Split(m[1], "\n---\n")...)
		}
	}
	return texts
}

// example makes a whole object of what a page shows: an object, a part of an ImageArchive's spec, a status, or a list of
// conditions or of a NodeImageState's archives.
func example(t *testing.T, text, name string) *unstructured.Unstructured {
	t.Helper()
	text = elided.ReplaceAllString(more.ReplaceAllString(text, ""), "sha256:"+strings.Repeat("0a", 32))
	if strings.HasPrefix(text, "  ") {
		text = "spec:\n" + text
	}
	var shown any
	if err := yaml.Unmarshal([]byte(text), &shown); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	object, isObject := withoutDots(shown).(map[string]any)
	switch {
	case !isObject && strings.HasPrefix(text, "- name:"):
		object = map[string]any{"kind": "NodeImageState", "status": map[string]any{"archives": shown}}
	case !isObject:
		object = map[string]any{"status": map[string]any{"conditions": shown}}
	case object["kind"] == nil && object["spec"] == nil:
		object = map[string]any{"status": object}
	}
	o := &unstructured.Unstructured{Object: object}
	if o.GetKind() == "" {
		o.SetKind("ImageArchive")
	}
	if o.GetAPIVersion() == "" {
		o.SetAPIVersion("tarlift.dev/v1alpha1")
	}
	if o.GetName() == "" {
		o.SetName(name)
	}
	if _, found, _ := unstructured.NestedMap(object, "spec", "source"); !found && o.GetKind() == "ImageArchive" {
		if err := unstructured.SetNestedField(object, "a.tar", "spec", "source", "file", "path"); err != nil {
			t.Fatal(err)
		}
	}
	if namespaced, err := admin.IsObjectNamespaced(o); err == nil && namespaced && o.GetNamespace() == "" {
		o.SetNamespace("default")
	}
	return o
}

// withoutDots takes away what says that there is more: a field or an item that is just three dots.
func withoutDots(v any) any {
	switch v := v.(type) {
	case map[string]any:
		delete(v, "…")
		for key := range v {
			v[key] = withoutDots(v[key])
		}
	case []any:
		for k := range v {
			v[k] = withoutDots(v[k])
		}
	}
	return v
}
