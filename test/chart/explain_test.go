package chart_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"
)

var goName = regexp.MustCompile(`\b[A-Z][a-z0-9]+[A-Z]\w*`)

// apiNames look like names of Go, and are the API's.
var apiNames = []string{
	"ImageArchive", "ImageArchives", "NodeImageState",
	"CamelCase", "DoesNotExist", "NotIn", // in the descriptions of Kubernetes' own types
}

// What `kubectl explain` says names every default, and nothing of Go.
func TestExplain(t *testing.T) {
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
			// The first word is the field's or, as in Kubernetes' own descriptions, its type's.
			_, text, _ := strings.Cut(strings.Join(strings.Fields(p.Description), " "), " ")
			for _, name := range goName.FindAllString(text, -1) {
				if !slices.Contains(apiNames, name) {
					t.Errorf("%s says %s", path, name)
				}
			}
			if p.Default != nil {
				says := "Defaults to "
				if p.Type != "object" {
					says += strings.Trim(string(p.Default.Raw), `"`) + "."
				}
				if !strings.Contains(text, says) {
					t.Errorf("%s does not say its default %s: %s", path, p.Default.Raw, text)
				}
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
