package chart_test

import (
	"context"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	_ "sigs.k8s.io/controller-runtime/pkg/controller" // registers what every process of the agent has
	"sigs.k8s.io/controller-runtime/pkg/metrics"
)

const operations = root + "/docs/operations.md"

// targetLabels are those that a PodMonitor of this chart gives every series.
var targetLabels = []string{"job", "namespace", "pod", "container", "instance", "node"}

var (
	tableMetric = regexp.MustCompile("`(tarlift_[a-z_]+)(?:{([a-z,]+)})?`")
	descMetric  = regexp.MustCompile(`fqName: "([a-z_]+)".*variableLabels: {([a-z,]*)}`)
)

// existing are the names and labels of all metrics: the project's by its documentation, which a test in controllers holds
// to what is registered, and controller-runtime's by its registry.
func existing(t *testing.T) map[string][]string {
	t.Helper()
	page, err := os.ReadFile(operations)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string][]string{"up": nil}
	for _, m := range tableMetric.FindAllStringSubmatch(string(page), -1) {
		found[m[1]] = strings.Split(m[2], ",")
		if strings.HasSuffix(m[1], "_seconds") {
			found[m[1]+"_bucket"] = append(slices.Clone(found[m[1]]), "le")
		}
	}
	registry, ok := metrics.Registry.(prometheus.Collector)
	if !ok {
		t.Fatalf("a registry of type %T tells not what it has", metrics.Registry)
	}
	descs := make(chan *prometheus.Desc)
	go func() {
		defer close(descs)
		registry.Describe(descs)
	}()
	for d := range descs {
		if m := descMetric.FindStringSubmatch(d.String()); m != nil {
			found[m[1]] = strings.Split(m[2], ",")
		}
	}
	if len(found) < 20 {
		t.Fatalf("only %d metrics were found: %v", len(found), found)
	}
	return found
}

// checkExpression says whether an expression is PromQL about metrics and labels that exist.
func checkExpression(t *testing.T, exist map[string][]string, text string) {
	t.Helper()
	expr, err := parser.ParseExpr(text)
	if err != nil {
		t.Errorf("%s: %v", text, err)
		return
	}
	parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
		s, ok := n.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		known, ok := exist[s.Name]
		if !ok {
			t.Errorf("%s: there is no metric %s", text, s.Name)
		}
		for _, m := range s.LabelMatchers {
			if m.Name != labels.MetricName && !slices.Contains(known, m.Name) && !slices.Contains(targetLabels, m.Name) {
				t.Errorf("%s: %s has no label %s", text, s.Name, m.Name)
			}
		}
		return nil
	})
}

// sample is a float at a time.
type sample struct {
	t int64
	f float64
}

func (s sample) T() int64                      { return s.t }
func (s sample) F() float64                    { return s.f }
func (s sample) H() *histogram.Histogram       { return nil }
func (s sample) FH() *histogram.FloatHistogram { return nil }
func (s sample) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (s sample) Copy() chunks.Sample           { return s }

// scraped are series as Prometheus would have them.
type scraped []storage.Series

// scrape adds a series, with a sample a minute for as long as value is asked to give any.
func (s *scraped) scrape(t *testing.T, series string, duration time.Duration, value func(time.Duration) float64) {
	t.Helper()
	lset, err := parser.ParseMetric(series)
	if err != nil {
		t.Fatalf("%s: %v", series, err)
	}
	var list []chunks.Sample
	for at := time.Duration(0); at <= duration; at += time.Minute {
		list = append(list, sample{at.Milliseconds(), value(at)})
	}
	*s = append(*s, storage.NewListSeries(lset, list))
}

// Querier makes them a [storage.Queryable].
func (s scraped) Querier(int64, int64) (storage.Querier, error) {
	return &storage.MockQuerier{SelectMockFunction: func(_ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
		set := &seriesSet{SeriesSet: storage.EmptySeriesSet()}
		for _, series := range s {
			if !slices.ContainsFunc(matchers, func(m *labels.Matcher) bool { return !m.Matches(series.Labels().Get(m.Name)) }) {
				set.series = append(set.series, series)
			}
		}
		return set
	}}, nil
}

type seriesSet struct {
	storage.SeriesSet // the empty one, for what is not overridden

	series []storage.Series
	at     storage.Series
}

func (s *seriesSet) Next() bool {
	if len(s.series) == 0 {
		return false
	}
	s.at, s.series = s.series[0], s.series[1:]
	return true
}

func (s *seriesSet) At() storage.Series { return s.at }

// firing are the results that an expression has had at every minute of a span that ends at a time.
func firing(t *testing.T, s scraped, expr string, span, end time.Duration) []labels.Labels {
	t.Helper()
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 1e6, Timeout: time.Minute})
	q, err := engine.NewRangeQuery(context.Background(), s, nil, expr, time.UnixMilli((end - span).Milliseconds()), time.UnixMilli(end.Milliseconds()), time.Minute)
	if err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	defer q.Close()
	matrix, err := q.Exec(t.Context()).Matrix()
	if err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	var found []labels.Labels
	for _, series := range matrix {
		if len(series.Floats) == int(span/time.Minute)+1 {
			found = append(found, series.Metric)
		}
	}
	return found
}
