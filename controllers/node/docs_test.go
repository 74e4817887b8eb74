package node

import (
	"regexp"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tarlift/tarlift/test/docs"
)

// others are metrics of the controller, or of both programs.
var others = regexp.MustCompile("^tarlift_(archive|rollout)_|^tarlift_build_info$")

func TestMetricsAreDocumented(t *testing.T) {
	registry := prometheus.NewRegistry()
	newMetrics(registry)
	docs.CheckMetrics(t, registry, func(name string) bool { return !others.MatchString(name) })
}
