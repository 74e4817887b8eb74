package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/cheggaaa/pb/v3"

	"github.com/tarlift/tarlift/internal/importer"
)

// How progress is shown. The automatic choice is the bar on a terminal, and lines elsewhere.
const (
	progressAuto  = "auto"
	progressPlain = "plain"
	progressNone  = "none"
)

// lineInterval is the time between two lines: often enough to see life in a log, rare enough to read the rest.
const lineInterval = 5 * time.Second

// barTemplate shows the step, the bytes, a bar, and once they are known, after half a second, the rate and the time that
// is left.
const barTemplate pb.ProgressBarTemplate = `{{string . "phase"}} {{counters . }} {{bar . }} {{percent . }} {{speed . "%s/s" " "}} {{rtime . "%s left" "%s" " "}}`

// progress shows how far an import is.
type progress interface {
	report(importer.Progress)
	stop()
}

func newProgress(kind string, w io.Writer) progress {
	switch {
	case kind == progressNone:
		return silence{}
	case kind == progressAuto && isTerminal(w):
		return newBar(w)
	}
	return newLines(w, lineInterval)
}

// moved says how many bytes of how many are dealt with. The total is 0 while it is unknown.
func moved(p importer.Progress) (done, total int64) {
	done = p.Done + p.Skipped
	if p.Phase == importer.PhaseUnpacking {
		done = p.Unpacked
	}
	if p.Total > 0 {
		done = min(done, p.Total)
	}
	return done, p.Total
}

type silence struct{}

func (silence) report(importer.Progress) {}
func (silence) stop()                    {}

// bar draws one line of a terminal again and again, and wipes it out in the end.
type bar struct{ *pb.ProgressBar }

func newBar(w io.Writer) bar {
	b := barTemplate.New(0)
	b.SetWriter(w).Set(pb.Bytes, true).Set(pb.CleanOnFinish, true).Set("phase", importer.PhaseIndexing)
	return bar{b.Start()}
}

func (b bar) report(p importer.Progress) {
	done, total := moved(p)
	b.Set("phase", p.Phase).SetTotal(total).SetCurrent(done)
}

func (b bar) stop() { b.Finish() }

// lines prints a line every few seconds, also while a step reports nothing. An import that is done before the
// first is due prints none.
type lines struct {
	w     io.Writer
	every time.Duration
	done  chan struct{}
	ended chan struct{}

	mu  sync.Mutex
	now importer.Progress
}

func newLines(w io.Writer, every time.Duration) *lines {
	l := &lines{w: w, every: every, done: make(chan struct{}), ended: make(chan struct{})}
	l.now.Phase = importer.PhaseIndexing
	go l.run()
	return l
}

func (l *lines) run() {
	defer close(l.ended)
	tick := time.NewTicker(l.every)
	defer tick.Stop()
	var before int64
	for {
		select {
		case <-l.done:
			return
		case <-tick.C:
			l.mu.Lock()
			now := l.now
			l.mu.Unlock()
			done, _ := moved(now)
			fmt.Fprintln(l.w, progressLine(now, float64(max(done-before, 0))/l.every.Seconds()))
			before = done
		}
	}
}

func (l *lines) report(p importer.Progress) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now = p
}

// stop returns when no line can follow.
func (l *lines) stop() {
	close(l.done)
	<-l.ended
}

// progressLine is one line; rate is in bytes a second.
func progressLine(p importer.Progress, rate float64) string {
	done, total := moved(p)
	line := string(p.Phase)
	switch {
	case total > 0:
		line += fmt.Sprintf(": %s of %s (%d %%)", size(done), size(total), 100*done/total)
	case done > 0:
		line += ": " + size(done)
	}
	if rate > 0 && (p.Phase == importer.PhaseTransferring || p.Phase == phaseReading || p.Phase == phaseWriting) {
		line += fmt.Sprintf(", %s/s", size(int64(rate)))
		if left := total - done; left > 0 {
			line += fmt.Sprintf(", %s left", time.Duration(float64(left)/rate*float64(time.Second)).Round(time.Second))
		}
	}
	return line
}
