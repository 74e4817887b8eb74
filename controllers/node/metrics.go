package node

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/internal/reason"
)

// The kinds of tarlift_heals_total.
const (
	healedByRepair = "repair"
	healedByImport = "import"
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
			Help: "Archives whose images were missing and are complete again, by how: repair needs no source, import does.",
		}, []string{"kind"}),
		diskFree:    disk("disk_free_bytes", "Room on a file system that containerd writes to, as of the last check or import."),
		diskReserve: disk("disk_reserve_bytes", "How much of it imports leave free."),
	}
	r.MustRegister(m.read, m.written, m.skipped, m.imports, m.phases, m.inProgress, m.heals, m.diskFree, m.diskReserve)
	return m
}

// count counts an import that ended. One that was cancelled has only read.
func (m *metrics) count(r *importRun, cause error, read int64) {
	m.read.Add(float64(read))
	switch {
	case r.at.IsZero() || cause != nil && r.err != nil:
	case r.err != nil:
		name, _ := reason.Classify(r.err)
		m.imports.WithLabelValues(name).Inc()
	default:
		m.imports.WithLabelValues(v1alpha1.ReasonImported).Inc()
		m.written.Add(float64(r.result.Bytes.Written))
		m.skipped.Add(float64(r.result.Bytes.Skipped))
	}
}

// measure takes down how much room containerd has. It costs a question and a system call, so it goes with what is done
// anyway; of an importer that does not tell, and of disks that it cannot see, nothing is said.
func (m *metrics) measure(ctx context.Context, i Importer) {
	teller, ok := i.(interface {
		Disks(context.Context) ([]*importer.Disk, error)
	})
	if !ok {
		return
	}
	limited, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	disks, err := teller.Disks(limited)
	if err != nil {
		return
	}
	for _, d := range disks {
		if d.Unknown == "" && len(d.Roots) > 0 {
			m.diskFree.WithLabelValues(d.Roots[0]).Set(float64(d.Free))
			m.diskReserve.WithLabelValues(d.Roots[0]).Set(float64(d.Reserve))
		}
	}
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
