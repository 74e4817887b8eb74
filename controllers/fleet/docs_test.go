package fleet

import (
	"os"
	"regexp"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

// fleets are the metrics of the controller.
var fleets = regexp.MustCompile("^tarlift_(archive|rollout)_")

// The page of operations names every metric of the controller with its labels, and no other.
func TestMetricsAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	for _, m := range regexp.MustCompile("`(tarlift_[a-z_]+)(?:{([a-z,]+)})?`").FindAllSubmatch(page, -1) {
		if fleets.Match(m[1]) {
			documented[string(m[1])] = string(m[2])
		}
	}
	registry := prometheus.NewRegistry()
	newMetrics(registry)
	descs := make(chan *prometheus.Desc)
	go func() {
		defer close(descs)
		registry.Describe(descs)
	}()
	registered := map[string]string{}
	desc := regexp.MustCompile(`fqName: "([a-z_]+)".*variableLabels: {([a-z,]*)}`)
	for d := range descs {
		m := desc.FindStringSubmatch(d.String())
		if m == nil {
			t.Fatalf("%s is in no known form", d)
		}
		registered[m[1]] = m[2]
	}
	if diff := cmp.Diff(registered, documented); diff != "" {
		t.Errorf("metrics and their labels (-registered +documented):\n%s", diff)
	}
}
