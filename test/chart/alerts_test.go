package chart_test

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// monitored are the values that turn all of monitoring on.
var monitored = []string{`podMonitor.enabled=true`, `prometheusRule.enabled=true`, `grafanaDashboard.enabled=true`}

// alerts returns the rules by their names.
func alerts(t *testing.T, values ...string) map[string]monitoringv1.Rule {
	t.Helper()
	rule := one[monitoringv1.PrometheusRule](t, render(t, append(values, monitored...)...), "PrometheusRule")
	found := map[string]monitoringv1.Rule{}
	for _, g := range rule.Spec.Groups {
		for _, r := range g.Rules {
			found[r.Alert] = r
		}
	}
	return found
}

func TestMonitoringIsOptional(t *testing.T) {
	for _, o := range render(t) {
		if k := o.GetKind(); k == "PodMonitor" || k == "PrometheusRule" || k == "ConfigMap" {
			t.Errorf("there is a %s by default", k)
		}
	}
	for _, role := range []string{"node", "controller"} {
		_, err := helm(t, "template", release, chart, "--set-json", "podMonitor.enabled=true", "--set-json", role+".ports.metrics=0")
		if err == nil || !strings.Contains(err.Error(), role+".ports.metrics") {
			t.Errorf("%s is monitored and has no metrics: error %v", role, err)
		}
	}
}

// A monitor selects exactly the pods of its role, and a port that they have.
func TestPodMonitors(t *testing.T) {
	objects := render(t, append([]string{`podMonitor.labels={"release":"prometheus"}`, `podMonitor.interval="1m"`}, monitored...)...)
	monitors := typed[monitoringv1.PodMonitor](t, objects, "PodMonitor")
	all := pods(t, objects)
	if len(monitors) != len(all) {
		t.Errorf("%d monitors for %d roles", len(monitors), len(all))
	}
	for _, m := range monitors {
		if m.Labels["release"] != "prometheus" || m.Namespace != namespace {
			t.Errorf("%s is in namespace %s, with labels %v", m.Name, m.Namespace, m.Labels)
		}
		selector, err := metav1.LabelSelectorAsSelector(&m.Spec.Selector)
		if err != nil {
			t.Fatal(err)
		}
		for role, pod := range all {
			if got, want := selector.Matches(labels.Set(pod.Labels)), m.Name == "tarlift-"+role; got != want {
				t.Errorf("%s selects %s: %t", m.Name, role, got)
			}
			endpoint := m.Spec.PodMetricsEndpoints[0]
			if !slices.ContainsFunc(pod.Spec.Containers[0].Ports, func(p corev1.ContainerPort) bool { return p.Name == *endpoint.Port }) {
				t.Errorf("%s scrapes port %s, which %s has not", m.Name, *endpoint.Port, role)
			}
			if endpoint.Interval != "1m" {
				t.Errorf("%s scrapes every %s", m.Name, endpoint.Interval)
			}
		}
	}
}

// TestAlerts checks each alert by itself: metrics, severity, and a runbook that is there.
func TestAlerts(t *testing.T) {
	page, err := os.ReadFile(operations)
	if err != nil {
		t.Fatal(err)
	}
	exist := existing(t)
	rules := alerts(t)
	for name, r := range rules {
		t.Run(name, func(t *testing.T) {
			checkExpression(t, exist, r.Expr.String())
			if !slices.Contains([]string{"info", "warning", "critical"}, r.Labels["severity"]) {
				t.Errorf("severity %q", r.Labels["severity"])
			}
			if r.For == nil || r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
				t.Errorf("for %v, annotations %v", r.For, r.Annotations)
			}
			const base = "https://github.com/tarlift/tarlift/blob/main/docs/operations.md#"
			if anchor := strings.ToLower(name); r.Annotations["runbook_url"] != base+anchor {
				t.Errorf("runbook %s, want the anchor %s", r.Annotations["runbook_url"], anchor)
			}
			if !strings.Contains(string(page), "\n#### "+name+"\n") {
				t.Errorf("%s has no section for it", operations)
			}
		})
	}
	if len(rules) < 5 {
		t.Errorf("%d alerts", len(rules))
	}
}

// Alerts that ask for a job ask for one that a PodMonitor of the same release makes.
func TestAlertsNameTheirJobs(t *testing.T) {
	out, err := helm(t, "template", "other", chart, "--namespace", "ns", "--set", "podMonitor.enabled=true,prometheusRule.enabled=true,grafanaDashboard.enabled=true")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out, `tarlift-system/`) {
		t.Error("the default job is named")
	}
	for _, want := range []string{`job="ns/other-tarlift-node"`, `job="ns/other-tarlift-controller"`, `job=\"ns/other-tarlift-controller\"`} {
		if !strings.Contains(out, want) {
			t.Errorf("nothing is asked of %s", want)
		}
	}
	var names []string
	for _, m := range typed[monitoringv1.PodMonitor](t, decodeAll(t, out), "PodMonitor") {
		names = append(names, m.Namespace+"/"+m.Name)
	}
	if diff := cmp.Diff([]string{"ns/other-tarlift-node", "ns/other-tarlift-controller"}, names); diff != "" {
		t.Errorf("jobs (-want +got):\n%s", diff)
	}
}

// course is how a metric runs in time.
type course map[string]func(time.Duration) float64

func steady(v float64) func(time.Duration) float64 { return func(time.Duration) float64 { return v } }

// growing by one at every step.
func growing(step time.Duration) func(time.Duration) float64 {
	return func(at time.Duration) float64 { return float64(at / step) }
}

// from has one value until a time, and another from then on.
func from(then time.Duration, before, after float64) func(time.Duration) float64 {
	return func(at time.Duration) float64 {
		if at < then {
			return before
		}
		return after
	}
}

// TestAlertsFire lets Prometheus' own engine evaluate the rules over four hours of series, and looks which fire at the end.
func TestAlertsFire(t *testing.T) {
	const hours = 4 * time.Hour
	const (
		node, leader = `{job="tarlift-system/tarlift-node",node="a",instance="a"}`, `leader_election_master_status{job="tarlift-system/tarlift-controller",pod="c1"}`
		ready, left  = `tarlift_archive_nodes{archive="x",state="ready"}`, `tarlift_archive_nodes{archive="x",state="pending"}`
		reconciling  = `tarlift_archive_condition{archive="x",condition="Reconciling"}`
		stalled      = `tarlift_archive_condition{archive="x",condition="Stalled"}`
		free         = `tarlift_disk_free_bytes{node="a",root="/"}`
		reserve      = `tarlift_disk_reserve_bytes{node="a",root="/"}`
	)
	tests := map[string]struct {
		series course
		want   []string
	}{
		"all is well": {course{
			"up" + node: steady(1), ready: steady(3), left: steady(0), reconciling: steady(0), stalled: steady(0), free: steady(10), reserve: steady(5),
			`tarlift_imports_total{reason="Imported"}`: growing(time.Hour),
		}, nil},
		"an agent is down":                {course{"up" + node: steady(0)}, []string{"TarliftAgentDown"}},
		"an agent is replaced":            {course{"up" + node: from(hours-5*time.Minute, 1, 0)}, nil},
		"no controller":                   {course{leader: nil}, []string{"TarliftControllerDown"}},
		"a controller that does not lead": {course{leader: steady(0)}, []string{"TarliftControllerDown"}},
		"another one leads":               {course{leader: steady(0), strings.ReplaceAll(leader, "c1", "c2"): steady(1)}, nil},
		"an archive stalls":               {course{stalled: steady(1), left: steady(2)}, []string{"TarliftArchiveStalled"}},
		"an archive has just stalled":     {course{stalled: from(hours-10*time.Minute, 0, 1)}, nil},
		"no node gets ready":              {course{reconciling: steady(1), ready: steady(1), left: steady(2)}, []string{"TarliftNodesNotReady"}},
		"a rollout takes its time":        {course{reconciling: steady(1), ready: growing(20 * time.Minute), left: steady(2)}, nil},
		"a rollout has come to a halt":    {course{reconciling: steady(1), ready: from(hours-100*time.Minute, 1, 2), left: steady(2)}, []string{"TarliftNodesNotReady"}},
		"a suspended archive":             {course{reconciling: steady(0), ready: steady(1), left: steady(2)}, nil},
		"imports fail at every attempt":   {course{`tarlift_imports_total{reason="SourceUnavailable",node="a"}`: growing(11 * time.Minute)}, []string{"TarliftImportsFailing"}},
		"an import failed once":           {course{`tarlift_imports_total{reason="SourceUnavailable",node="a"}`: from(hours-20*time.Minute, 0, 1)}, nil},
		"imports succeed":                 {course{`tarlift_imports_total{reason="Imported",node="a"}`: growing(5 * time.Minute)}, nil},
		"the disk is full":                {course{free: steady(4), reserve: steady(5)}, []string{"TarliftDiskReserve"}},
		"the disk was full":               {course{free: from(hours-10*time.Minute, 4, 6), reserve: steady(5)}, nil},
	}
	rules := alerts(t)
	seen := map[string]bool{}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var s scraped
			if _, ok := tt.series[leader]; !ok {
				s.scrape(t, leader, hours, steady(1))
			}
			for series, value := range tt.series {
				if value != nil {
					s.scrape(t, series, hours, value)
				}
			}
			var got []string
			for alert, r := range rules {
				wait, err := time.ParseDuration(string(*r.For))
				if err != nil {
					t.Fatal(err)
				}
				if found := firing(t, s, r.Expr.String(), wait, hours); len(found) > 0 {
					got = append(got, alert)
					checkTemplate(t, r, found[0].Map())
				}
			}
			slices.Sort(got)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("alerts that fire (-want +got):\n%s", diff)
			}
		})
		for _, alert := range tt.want {
			seen[alert] = true
		}
	}
	if len(seen) != len(rules) {
		t.Errorf("only these have been seen to fire: %v", seen)
	}
}

// checkTemplate looks for labels in the texts of an alert that its result has not. Those of a target are not simulated.
func checkTemplate(t *testing.T, r monitoringv1.Rule, have map[string]string) {
	t.Helper()
	for key, text := range r.Annotations {
		for _, part := range strings.Split(text, "$labels.")[1:] {
			label, _, _ := strings.Cut(part, " ")
			if _, ok := have[label]; !ok && label != "pod" {
				t.Errorf("%s of %s names the label %s; there are %v", key, r.Alert, label, have)
			}
		}
	}
}

// panel is the part of a dashboard's panel that is looked at.
type panel struct {
	ID          int
	Type, Title string
	Description string
	GridPos     struct{ X, Y, W, H int }
	Datasource  struct{ UID string }
	Targets     []struct{ Expr string }
	FieldConfig any
}

func TestDashboard(t *testing.T) {
	config := one[corev1.ConfigMap](t, render(t, append([]string{`grafanaDashboard.annotations={"grafana_folder":"Tarlift"}`}, monitored...)...), "ConfigMap")
	if config.Labels["grafana_dashboard"] != "1" || config.Annotations["grafana_folder"] != "Tarlift" {
		t.Errorf("labels %v, annotations %v", config.Labels, config.Annotations)
	}
	var dashboard struct {
		UID, Title string
		Panels     []panel
		Templating struct {
			List []struct{ Name, Definition string }
		}
	}
	if err := json.Unmarshal([]byte(config.Data["tarlift.json"]), &dashboard); err != nil {
		t.Fatal(err)
	}
	exist := existing(t)
	asked := map[string]bool{}
	taken := map[string]string{}
	for _, p := range dashboard.Panels {
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				place := fmt.Sprint(x, " ", y)
				if other := taken[place]; other != "" || x >= 24 {
					t.Errorf("%s lies on %s at %s", p.Title, other, place)
				}
				taken[place] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		if p.Title == "" || p.Description == "" || p.Datasource.UID != "${datasource}" || len(p.Targets) == 0 {
			t.Errorf("panel %d lacks something: %+v", p.ID, p)
		}
		for _, target := range p.Targets {
			checkExpression(t, exist, strings.ReplaceAll(target.Expr, "$archive", ".*"))
			for name := range exist {
				if strings.Contains(target.Expr, name) {
					asked[name] = true
				}
			}
		}
	}
	for name := range exist {
		if strings.HasPrefix(name, "tarlift_") && !asked[name] {
			t.Errorf("no panel shows %s", name)
		}
	}
}
