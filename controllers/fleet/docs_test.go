package fleet

import (
	"regexp"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tarlift/tarlift/test/docs"
)

// mine are the metrics of the controller.
var mine = regexp.MustCompile("^tarlift_(archive|rollout)_")

func TestMetricsAreDocumented(t *testing.T) {
	registry := prometheus.NewRegistry()
	newMetrics(registry)
	docs.CheckMetrics(t, registry, mine.MatchString)
}
