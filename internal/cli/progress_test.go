package cli

import (
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/tarlift/tarlift/internal/importer"
)

func TestProgressLine(t *testing.T) {
	for want, tc := range map[string]struct {
		p    importer.Progress
		rate float64
	}{
		"indexing":                         {importer.Progress{Phase: importer.PhaseIndexing}, 0},
		"transferring: 1.0 MiB":            {importer.Progress{Phase: importer.PhaseTransferring, Done: 1 << 20}, 0},
		"transferring: 1.0 MiB, 2.0 KiB/s": {importer.Progress{Phase: importer.PhaseTransferring, Done: 1 << 20}, 2048},
		"transferring: 3.0 KiB of 4.0 KiB (75 %), 512 B/s, 2s left": {importer.Progress{
			Phase: importer.PhaseTransferring, Done: 2048, Skipped: 1024, Total: 4096}, 512},
		"transferring: 4.0 KiB of 4.0 KiB (100 %), 512 B/s": {importer.Progress{
			Phase: importer.PhaseTransferring, Done: 4096, Skipped: 1024, Total: 4096}, 512},
		"unpacking: 1.0 KiB of 4.0 KiB (25 %)": {importer.Progress{
			Phase: importer.PhaseUnpacking, Done: 4096, Total: 4096, Unpacked: 1024}, 512},
	} {
		if got := progressLine(tc.p, tc.rate); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// Lines come also while nothing is reported.
func TestProgressLines(t *testing.T) {
	lines := make(writes, 1000)
	l := newLines(lines, time.Millisecond)
	l.Report(importer.Progress{Phase: importer.PhaseUnpacking})
	for range 3 {
		<-lines
	}
	l.Stop()
	select {
	case <-l.ended:
	default:
		t.Error("Stop did not wait for the last line")
	}
}

// writes passes on what is written.
type writes chan string

func (w writes) Write(p []byte) (int, error) { w <- string(p); return len(p), nil }

// The automatic choice is a bar on a terminal and lines elsewhere.
func TestProgressChoice(t *testing.T) {
	master, terminal := openTerminal(t)
	p := NewProgress(progressAuto, terminal)
	b, ok := p.(bar)
	if !ok {
		t.Fatalf("%T on a terminal", p)
	}
	for done := int64(256 << 20); done <= 512<<20; done += 32 << 20 { // a rate needs half a second
		b.Report(importer.Progress{Phase: importer.PhaseTransferring, Done: done, Total: 1 << 30})
		b.Write()
		time.Sleep(100 * time.Millisecond)
	}
	b.Stop()
	terminal.Close()
	var shown strings.Builder
	buf := make([]byte, 4096)
	for {
		n, err := master.Read(buf)
		shown.Write(buf[:n])
		if err != nil { // EIO: the other end is closed
			break
		}
	}
	if strings.Contains(shown.String(), "?") {
		t.Errorf("what is not known yet is shown in %q", shown.String())
	}
	for _, want := range []string{"transferring", `512\.00 MiB / 1\.00 GiB`, `50\.00%`, `[0-9.]+ [KMG]iB/s`, `[0-9]+s left`} {
		if !regexp.MustCompile(want).MatchString(shown.String()) {
			t.Errorf("%q is not shown in %q", want, shown.String())
		}
	}

	for kind, w := range map[string]*os.File{progressPlain: terminal, progressAuto: os.NewFile(^uintptr(0), "none")} {
		p := NewProgress(kind, w)
		if _, ok := p.(*lines); !ok {
			t.Errorf("%s: %T", kind, p)
		}
		p.Stop()
	}
	if p := NewProgress(progressNone, os.Stderr); p != (none{}) {
		t.Errorf("none: %T", p)
	}
}
