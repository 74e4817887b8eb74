package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReference(t *testing.T) {
	page, err := reference([]byte(`
# About the name,
# in two lines.
name: ""
list: [{a: 1}]

# A group.
group:
  # One | two <three>.
  size: 15%
  # Ports.
  ports:
    metrics: 1
  nodeSelector:
    kubernetes.io/os: linux
  resources:
    limits:
      memory: 1Gi
  empty: {}
`))
	if err != nil {
		t.Fatal(err)
	}
	_, tables, _ := strings.Cut(page, "## All of it\n\n")
	want := "| value | default | |\n|---|---|---|\n" +
		"| `name` | `\"\"` | About the name, in two lines. |\n" +
		"| `list` | `[{\"a\":1}]` |  |\n" +
		"\n## group\n\nA group.\n\n" +
		"| value | default | |\n|---|---|---|\n" +
		"| `group.size` | `\"15%\"` | One \\| two &lt;three>. |\n" +
		"| `group.ports` |  | Ports. |\n" +
		"| `group.ports.metrics` | `1` |  |\n" +
		"| `group.nodeSelector` | `{\"kubernetes.io/os\":\"linux\"}` |  |\n" +
		"| `group.resources` | `{\"limits\":{\"memory\":\"1Gi\"}}` |  |\n" +
		"| `group.empty` | `{}` |  |\n"
	if diff := cmp.Diff(want, tables); diff != "" {
		t.Errorf("tables (-want +got):\n%s", diff)
	}
}

func TestNoReference(t *testing.T) {
	for name, text := range map[string]string{"nothing": "", "a list": "- a", "no YAML": "a: [", "text": "a"} {
		if page, err := reference([]byte(text)); err == nil {
			t.Errorf("%s makes a page:\n%s", name, page)
		}
	}
}
