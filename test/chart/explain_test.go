package chart_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"
)

// What `kubectl explain` says names every default, and nothing of Go.
func TestExplain(t *testing.T) {
	goName := regexp.MustCompile(`\b(Annotation|Condition|Reason|Label)[A-Z]\w+`)
	files, err := filepath.Glob("../../config/crd/*.yaml")
	if err != nil || len(files) != 2 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var crd apiextensionsv1.CustomResourceDefinition
		if err := yaml.Unmarshal(text, &crd); err != nil {
			t.Fatal(err)
		}
		fields := 0
		var walk func(path string, p *apiextensionsv1.JSONSchemaProps)
		walk = func(path string, p *apiextensionsv1.JSONSchemaProps) {
			fields++
			if name := goName.FindString(p.Description); name != "" {
				t.Errorf("%s says %s", path, name)
			}
			if p.Default != nil && !strings.HasPrefix(path, ".status") &&
				!strings.Contains(p.Description, strings.Trim(string(p.Default.Raw), `"`)) {
				t.Errorf("%s does not say its default %s: %s", path, p.Default.Raw, p.Description)
			}
			for name, child := range p.Properties {
				walk(path+"."+name, &child)
			}
			if p.Items != nil && p.Items.Schema != nil {
				walk(path+"[]", p.Items.Schema)
			}
		}
		walk("", crd.Spec.Versions[0].Schema.OpenAPIV3Schema)
		if fields < 20 {
			t.Errorf("%s: only %d fields", file, fields)
		}
	}
}
