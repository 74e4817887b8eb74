package fleet

import (
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/tarlift/tarlift/api/v1alpha1"
)

// metrics are those of archives. There are as many series as archives, however many nodes there are.
type metrics struct {
	conditions, nodes *prometheus.GaugeVec
	admissions        *prometheus.CounterVec
}

// newMetrics registers them with r, if that is not nil.
func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		conditions: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "tarlift", Name: "archive_condition", Help: "Conditions of each ImageArchive, 1 for those that are True.",
		}, []string{"archive", "condition"}),
		nodes: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "tarlift", Name: "archive_nodes", Help: "Nodes that each ImageArchive selects, by what they have of it.",
		}, []string{"archive", "state"}),
		admissions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "tarlift", Name: "rollout_admissions_total", Help: "Admissions of nodes to imports that were written, by what was decided.",
		}, []string{"decision"}),
	}
	if r != nil {
		r.MustRegister(m.conditions, m.nodes, m.admissions)
	}
	return m
}

func (m *metrics) set(a *v1alpha1.ImageArchive, s *v1alpha1.ImageArchiveStatus) {
	for _, typ := range []string{v1alpha1.ConditionReady, v1alpha1.ConditionReconciling, v1alpha1.ConditionStalled} {
		value := 0.0
		if meta.IsStatusConditionTrue(s.Conditions, typ) {
			value = 1
		}
		m.conditions.WithLabelValues(a.Name, typ).Set(value)
	}
	for state, n := range map[string]int32{
		"ready": s.Nodes.Ready, "importing": s.Nodes.Importing, "failed": s.Nodes.Failed, "pending": s.Nodes.Pending,
	} {
		m.nodes.WithLabelValues(a.Name, state).Set(float64(n))
	}
}

func (m *metrics) forget(archive string) {
	match := prometheus.Labels{"archive": archive}
	m.conditions.DeletePartialMatch(match)
	m.nodes.DeletePartialMatch(match)
}
