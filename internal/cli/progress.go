package cli

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/cheggaaa/pb/v3"

	"github.com/tarlift/tarlift/internal/importer"
)

// How to show progress: auto is a bar on a terminal, and lines elsewhere.
const (
	progressAuto  = "auto"
	progressPlain = "plain"
	progressNone  = "none"
)

// Phases of writing an archive, beside those of an import.
const (
	PhaseReading importer.Phase = "reading" // a stream into a temporary file
	PhaseWriting importer.Phase = "writing"
)

// lineInterval is the time between two lines: short enough to show that something happens, long enough to leave a log
// readable.
const lineInterval = 5 * time.Second

// barTemplate shows the phase, the bytes, a bar, and after half a second the rate and the remaining time.
const barTemplate pb.ProgressBarTemplate = `{{string . "phase"}} {{counters . }} {{bar . }} {{percent . }} ` +
	`{{speed . "%s/s" " "}} {{rtime . "%s left" "%s" " "}}`

// Progress shows how far a command is.
type Progress interface {
	Report(importer.Progress)
	// Stop ends the display. It returns when nothing more will be written.
	Stop()
}

// NewProgress shows progress on w as a choice of AddProgress says.
func NewProgress(kind string, w io.Writer) Progress {
	switch {
	case kind == progressNone:
		return none{}
	case kind == progressAuto && IsTerminal(w):
		return newBar(w)
	}
	return newLines(w, lineInterval)
}

// moved returns how many bytes of how many are done. The total is 0 while it is unknown.
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

// none shows nothing.
type none struct{}

func (none) Report(importer.Progress) {}
func (none) Stop()                    {}

// bar redraws one line of a terminal, and erases it in the end.
type bar struct{ *pb.ProgressBar }

func newBar(w io.Writer) bar {
	b := barTemplate.New(0)
	b.SetWriter(w).Set(pb.Bytes, true).Set(pb.CleanOnFinish, true).Set("phase", importer.PhaseIndexing)
	return bar{b.Start()}
}

func (b bar) Report(p importer.Progress) {
	done, total := moved(p)
	b.Set("phase", p.Phase).SetTotal(total).SetCurrent(done)
}

func (b bar) Stop() { b.Finish() }

// lines prints a line every few seconds, also while a phase reports nothing. A short command prints none.
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

func (l *lines) Report(p importer.Progress) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now = p
}

func (l *lines) Stop() {
	close(l.done)
	<-l.ended
}

// progressLine is one line; rate is in bytes a second.
func progressLine(p importer.Progress, rate float64) string {
	done, total := moved(p)
	line := string(p.Phase)
	switch {
	case total > 0:
		line += fmt.Sprintf(": %s of %s (%d %%)", Size(done), Size(total), 100*done/total)
	case done > 0:
		line += ": " + Size(done)
	}
	if rate > 0 && (p.Phase == importer.PhaseTransferring || p.Phase == PhaseReading || p.Phase == PhaseWriting) {
		line += fmt.Sprintf(", %s/s", Size(int64(rate)))
		if left := total - done; left > 0 {
			line += fmt.Sprintf(", %s left", time.Duration(float64(left)/rate*float64(time.Second)).Round(time.Second))
		}
	}
	return line
}
