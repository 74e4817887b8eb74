package importer

import (
	"time"

	"github.com/tarlift/tarlift/internal/source"
)

// progressInterval keeps callbacks rare enough to cost nothing and frequent enough for a smooth bar.
const progressInterval = 100 * time.Millisecond

// reporter passes progress on, at changes of phase and else at intervals. It is used by one goroutine.
type reporter struct {
	report   func(Progress)
	now      Progress
	last     time.Time
	position func() int64 // of a stream
}

func newReporter(report func(Progress)) *reporter {
	if report == nil {
		report = func(Progress) {}
	}
	return &reporter{report: report}
}

func (r *reporter) phase(p Phase) {
	r.now.Phase = p
	r.flush()
}

func (r *reporter) total(n int64) { r.now.Total = n }

// stream makes progress the place in src that was read last, until endStream: how many of its bytes are needed is
// known only at its end.
func (r *reporter) stream(src source.Blob) {
	r.position, r.now.Total = src.BytesRead, max(src.Size(), 0)
}

func (r *reporter) endStream() {
	r.position, r.now = nil, Progress{Phase: r.now.Phase}
}

func (r *reporter) done(n int64) {
	r.now.Done += n
	r.tick()
}

func (r *reporter) skipped(n int64) {
	r.now.Skipped += n
	r.tick()
}

func (r *reporter) tick() {
	if time.Since(r.last) >= progressInterval {
		r.flush()
	}
}

func (r *reporter) flush() {
	r.last = time.Now()
	if r.position != nil {
		r.now.Done, r.now.Skipped = r.position(), 0
	}
	r.report(r.now)
}
