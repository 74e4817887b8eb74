package node

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/internal/reason"
)

// metrics are what one agent counts since it started.
type metrics struct {
	read, written, skipped prometheus.Counter
	imports                *prometheus.CounterVec
	phases                 *prometheus.HistogramVec
	inProgress             prometheus.Gauge
	heals                  *prometheus.CounterVec
	diskFree, diskReserve  *prometheus.GaugeVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "tarlift", Name: name, Help: help})
	}
	disk := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "tarlift", Name: name, Help: help}, []string{"root"})
	}
	m := &metrics{
		read:    counter("read_bytes_total", "Bytes taken from sources, by imports of any outcome."),
		written: counter("written_bytes_total", "Bytes committed to containerd's content store by successful imports."),
		skipped: counter("skipped_bytes_total", "Bytes of needed blobs that were present before successful imports."),
		imports: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "tarlift", Name: "imports_total", Help: "Attempts at an import that ended, by reason; Imported is success.",
		}, []string{"reason"}),
		phases: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "tarlift", Name: "import_phase_duration_seconds", Help: "Time that imports spend in each phase.",
			Buckets: prometheus.ExponentialBuckets(0.01, 4, 10), // 10 ms to 44 min
		}, []string{"phase"}),
		inProgress: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "tarlift", Name: "imports_in_progress", Help: "Imports that run now.",
		}),
		heals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "tarlift", Name: "heals_total",
			Help: "Archives whose images were lost and are whole again, by how: repair needs no source, import does.",
		}, []string{"kind"}),
		diskFree:    disk("disk_free_bytes", "Room on a file system that containerd writes to, as of the last check or import."),
		diskReserve: disk("disk_reserve_bytes", "How much of it imports leave free."),
	}
	r.MustRegister(m.read, m.written, m.skipped, m.imports, m.phases, m.inProgress, m.heals, m.diskFree, m.diskReserve)
	return m
}

// count takes in the outcome of an import.
func (m *metrics) count(o *outcome) {
	m.read.Add(float64(o.read))
	if o.stopped {
		return
	}
	if o.err != nil {
		reason, _ := reason.Classify(o.err)
		m.imports.WithLabelValues(reason).Inc()
		return
	}
	m.imports.WithLabelValues(v1alpha1.ReasonImported).Inc()
	m.written.Add(float64(o.result.Bytes.Written))
	m.skipped.Add(float64(o.result.Bytes.Skipped))
}

// phaseTimer measures the phases of one import.
type phaseTimer struct {
	metrics *metrics
	phase   importer.Phase
	since   time.Time
}

func (t *phaseTimer) enter(p importer.Phase) {
	if p == t.phase {
		return
	}
	t.end()
	t.phase, t.since = p, time.Now()
}

func (t *phaseTimer) end() {
	if t.phase != "" {
		t.metrics.phases.WithLabelValues(string(t.phase)).Observe(time.Since(t.since).Seconds())
	}
}
