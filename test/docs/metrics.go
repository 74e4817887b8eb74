package docs

import (
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

var (
	metricPattern = regexp.MustCompile("`(tarlift_[a-z_]+)(?:{([a-z,]+)})?`")
	descPattern   = regexp.MustCompile(`fqName: "([a-z_]+)".*variableLabels: {([a-z,]*)}`)
)

// CheckMetrics checks that the page of operations names each metric of a registry with its labels, and no other of those
// that mine says yes to.
func CheckMetrics(t *testing.T, registry *prometheus.Registry, mine func(name string) bool) {
	t.Helper()
	page, err := Read(root, "docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	for _, m := range metricPattern.FindAllStringSubmatch(strings.Join(page.Lines, "\n"), -1) {
		if mine(m[1]) {
			documented[m[1]] = m[2]
		}
	}
	descs := make(chan *prometheus.Desc)
	go func() {
		defer close(descs)
		registry.Describe(descs)
	}()
	registered := map[string]string{}
	for d := range descs {
		m := descPattern.FindStringSubmatch(d.String())
		if m == nil {
			t.Fatalf("%s is in no known form", d)
		}
		registered[m[1]] = m[2]
	}
	if diff := cmp.Diff(registered, documented); diff != "" {
		t.Errorf("metrics and their labels (-registered +documented):\n%s", diff)
	}
}
