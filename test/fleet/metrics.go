package main

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// metrics are series of the API server, by their text: name{labels}.
type metrics map[string]float64

// wanted are the metrics that are kept of the thousands.
var wanted = []string{"apiserver_request_total{", "apiserver_request_duration_seconds_bucket{", "apiserver_watch_events_total{", "apiserver_longrunning_requests{"}

func (p *controlPlane) metrics(ctx context.Context) (metrics, error) {
	text, err := p.typed.RESTClient().Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	return parseMetrics(string(text))
}

func parseMetrics(text string) (metrics, error) {
	m := metrics{}
	for line := range strings.Lines(text) {
		if !slices.ContainsFunc(wanted, func(prefix string) bool { return strings.HasPrefix(line, prefix) }) {
			continue
		}
		i := strings.LastIndexByte(line, ' ')
		v, err := strconv.ParseFloat(strings.TrimSpace(line[i+1:]), 64)
		if err != nil {
			return nil, fmt.Errorf("metrics: %q: %w", line, err)
		}
		m[line[:i]] = v
	}
	return m, nil
}

// since is what was counted after before.
func (m metrics) since(before metrics) metrics {
	d := metrics{}
	for series, v := range m {
		d[series] = v - before[series]
	}
	return d
}

// label gives a label's value in a series, empty for none.
func label(series, name string) string {
	_, rest, _ := strings.Cut(series, name+`="`)
	value, _, _ := strings.Cut(rest, `"`)
	return value
}

// sum adds the series of a metric that match.
func (m metrics) sum(name string, match func(series string) bool) float64 {
	var sum float64
	for series, v := range m {
		if strings.HasPrefix(series, name+"{") && match(series) {
			sum += v
		}
	}
	return sum
}

// duration is the quantile of how long matching requests took, in seconds, as Prometheus' histogram_quantile has it: a
// straight line within a bucket. It is NaN where nothing was counted.
func (m metrics) duration(q float64, match func(series string) bool) float64 {
	byBound := map[float64]float64{}
	for series, v := range m {
		if strings.HasPrefix(series, "apiserver_request_duration_seconds_bucket{") && match(series) {
			bound, err := strconv.ParseFloat(label(series, "le"), 64)
			if err == nil {
				byBound[bound] += v
			}
		}
	}
	type bucket struct{ bound, count float64 }
	var buckets []bucket
	for bound, n := range byBound {
		buckets = append(buckets, bucket{bound, n})
	}
	slices.SortFunc(buckets, func(x, y bucket) int { return cmp.Compare(x.bound, y.bound) })
	if len(buckets) == 0 || buckets[len(buckets)-1].count == 0 {
		return math.NaN()
	}
	rank := q * buckets[len(buckets)-1].count
	var below bucket
	for _, b := range buckets {
		if b.count >= rank {
			if math.IsInf(b.bound, 1) {
				return below.bound
			}
			return below.bound + (b.bound-below.bound)*(rank-below.count)/(b.count-below.count)
		}
		below = b
	}
	return below.bound
}

// mutating says whether a series is about requests that change something, those of one API group or, where that is
// "", of all.
func mutating(group string) func(string) bool {
	return func(series string) bool {
		verb := label(series, "verb")
		return (verb == "POST" || verb == "PUT" || verb == "PATCH" || verb == "APPLY" || verb == "DELETE") &&
			(group == "" || label(series, "group") == group)
	}
}
