package main

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tarlift/tarlift/internal/importer"
)

// Without containerd an import fails, soon and with the right reason; what is wrong with the source comes first.
func TestImportWithoutContainerd(t *testing.T) {
	file := write(t, "a.tar", build(t, samples()))
	socket := filepath.Join(t.TempDir(), "containerd.sock")
	wantFailure(t, agent(t, nil, "import", "-o", "json", "--address", socket, file), exitFailed, "RuntimeUnavailable")
	wantFailure(t, agent(t, nil, "inspect", "--plan", "-o", "json", "--address", socket, file), exitFailed, "RuntimeUnavailable")
	wantFailure(t, agent(t, nil, "import", "-o", "json", "--address", socket, "/nonexistent"), exitFailed, "SourceNotFound")
	o := agent(t, nil, "import", "--address", socket, file)
	if o.code != exitFailed || o.out != "" || strings.Count(o.errOut, "\n") != 1 {
		t.Errorf("exit code %d, output %q, error %q", o.code, o.out, o.errOut)
	}
}

// Credentials come from files and reach the server.
func TestCredentials(t *testing.T) {
	data := build(t, samples())
	secret := write(t, "secret", []byte("s3cr3t\n"))
	var want string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != want {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		http.ServeContent(w, r, "", time.Unix(1, 0), bytes.NewReader(data))
	}))
	defer srv.Close()
	for header, args := range map[string][]string{
		"Basic c2hpcDpzM2NyM3Q=": {"--username", "ship", "--password-file", secret},
		"Bearer s3cr3t":          {"--bearer-token-file", secret},
	} {
		want = header
		wantFailure(t, agent(t, nil, "inspect", "-o", "json", srv.URL), exitFailed, "SourceDenied")
		if o := agent(t, nil, append([]string{"inspect", srv.URL}, args...)...); o.code != exitOK {
			t.Errorf("%v: exit code %d: %s", args, o.code, o.errOut)
		}
	}
	for _, flag := range []string{"--password-file", "--bearer-token-file", "--ca-file", "--cert-file", "--key-file"} {
		wantFailure(t, agent(t, nil, "inspect", "-o", "json", flag, "/nonexistent", srv.URL), exitFailed, "SourceDenied")
	}
	wantFailure(t, agent(t, nil, "inspect", "-o", "json", "--ca-file", "/dev/zero", srv.URL), exitFailed, "SourceDenied")
}

// silent is a server that sends nothing until the client goes.
func silent(t *testing.T) (url string, reached <-chan struct{}) {
	t.Helper()
	ch := make(chan struct{}, 10)
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		ch <- struct{}{}
		<-r.Context().Done()
	}))
	t.Cleanup(srv.Close)
	return srv.URL, ch
}

func TestInterrupted(t *testing.T) {
	url, reached := silent(t)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-reached; cancel() }()
	wantFailure(t, agentWith(ctx, nil, "inspect", "-o", "json", url), exitInterrupted, reasonInterrupted)
}

// Nobody may ever write into a named pipe.
func TestInterruptedBeforePipeHasWriter(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantFailure(t, agentWith(ctx, nil, "import", "-o", "json", pipe), exitInterrupted, reasonInterrupted)
}

// Signals reach the process, also while it reads a silent pipe, and a process that does not stop is killed by
// the second one.
func TestSignals(t *testing.T) {
	url, reached := silent(t)
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		cmd := exec.Command(os.Args[0], "inspect", "-o", "json", url)
		cmd.Env = append(os.Environ(), asAgent+"=1")
		var out bytes.Buffer
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		<-reached
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // the exit code tells
		wantFailure(t, outcome{cmd.ProcessState.ExitCode(), out.String(), decodeMessage(t, out.String())}, exitInterrupted, reasonInterrupted)
	}
}

func decodeMessage(t *testing.T, out string) string {
	t.Helper()
	return decode[errorOutput](t, outcome{out: out}).Error.Message
}

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
	l.report(importer.Progress{Phase: importer.PhaseUnpacking})
	for range 3 {
		<-lines
	}
	l.stop()
	select {
	case <-l.ended:
	default:
		t.Error("stop did not wait for the last line")
	}
}

// writes passes on what is written.
type writes chan string

func (w writes) Write(p []byte) (int, error) { w <- string(p); return len(p), nil }

// The automatic choice is a bar on a terminal and lines elsewhere.
func TestProgressChoice(t *testing.T) {
	master, terminal := openTerminal(t)
	p := newProgress(progressAuto, terminal)
	b, ok := p.(bar)
	if !ok {
		t.Fatalf("%T on a terminal", p)
	}
	for done := int64(256 << 20); done <= 512<<20; done += 32 << 20 { // a rate needs half a second
		b.report(importer.Progress{Phase: importer.PhaseTransferring, Done: done, Total: 1 << 30})
		b.Write()
		time.Sleep(100 * time.Millisecond)
	}
	b.stop()
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
		p := newProgress(kind, w)
		if _, ok := p.(*lines); !ok {
			t.Errorf("%s: %T", kind, p)
		}
		p.stop()
	}
	if p := newProgress(progressNone, os.Stderr); p != (silence{}) {
		t.Errorf("none: %T", p)
	}
}
