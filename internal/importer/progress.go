package importer

import (
	"sync"
	"time"

	"github.com/tarlift/tarlift/internal/source"
)

// progressInterval keeps callbacks rare enough to cost nothing and frequent enough for a smooth bar.
const progressInterval = 100 * time.Millisecond

// reporter passes progress on, at changes of phase and else at intervals.
type reporter struct {
	mu       sync.Mutex
	report   func(Progress) // nil for none
	now      Progress
	last     time.Time
	position func() int64 // of a stream
}

// phase reports the end of the last phase, else a bar would stay short, and the beginning of another.
func (r *reporter) phase(p Phase) {
	r.update(true, func(*Progress) {})
	r.update(true, func(now *Progress) { now.Phase = p })
}

// stream makes progress the place in src that was read last, until endStream: how many of its bytes are needed is
// known only at its end.
func (r *reporter) stream(src source.Blob) {
	r.update(false, func(now *Progress) { r.position, now.Total = src.BytesRead, max(src.Size(), 0) })
}

func (r *reporter) endStream() {
	r.update(true, func(*Progress) {}) // how far it came
	r.update(false, func(now *Progress) { r.position, *now = nil, Progress{Phase: now.Phase, Unpacked: now.Unpacked} })
}

func (r *reporter) done(n int64) {
	r.update(false, func(now *Progress) { now.Done += n })
}

func (r *reporter) skipped(n int64) {
	r.update(false, func(now *Progress) { now.Skipped += n })
}

func (r *reporter) unpacked(n int64) {
	r.update(false, func(now *Progress) { now.Unpacked += n })
}

// update changes what is known, and reports it when that is due.
func (r *reporter) update(due bool, change func(*Progress)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.now)
	if r.report == nil || r.now.Phase == "" || !due && time.Since(r.last) < progressInterval {
		return
	}
	r.last = time.Now()
	if r.position != nil {
		r.now.Done, r.now.Skipped = r.position(), 0
		if r.now.Total > 0 { // what the source gave before, to be looked at, it gives again
			r.now.Done = min(r.now.Done, r.now.Total)
		}
	}
	r.report(r.now)
}
