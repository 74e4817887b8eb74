package main

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tarlift/tarlift/internal/cli"
)

// Without containerd an import fails, soon and with the right reason; what is wrong with the source comes first.
func TestImportWithoutContainerd(t *testing.T) {
	file := write(t, "a.tar", build(t, samples()))
	socket := filepath.Join(t.TempDir(), "containerd.sock")
	wantFailure(t, agent(t, nil, "import", "-o", "json", "--address", socket, file), cli.ExitFailed, "RuntimeUnavailable")
	wantFailure(t, agent(t, nil, "inspect", "--plan", "-o", "json", "--address", socket, file), cli.ExitFailed, "RuntimeUnavailable")
	wantFailure(t, agent(t, nil, "import", "-o", "json", "--address", socket, "/nonexistent"), cli.ExitFailed, "SourceNotFound")
	o := agent(t, nil, "import", "--address", socket, file)
	if o.code != cli.ExitFailed || o.out != "" || strings.Count(o.errOut, "\n") != 1 {
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
		wantFailure(t, agent(t, nil, "inspect", "-o", "json", srv.URL), cli.ExitFailed, "SourceDenied")
		if o := agent(t, nil, append([]string{"inspect", srv.URL}, args...)...); o.code != cli.ExitOK {
			t.Errorf("%v: exit code %d: %s", args, o.code, o.errOut)
		}
	}
	for _, flag := range []string{"--password-file", "--bearer-token-file", "--ca-file", "--cert-file", "--key-file"} {
		wantFailure(t, agent(t, nil, "inspect", "-o", "json", flag, "/nonexistent", srv.URL), cli.ExitFailed, "SourceDenied")
	}
	wantFailure(t, agent(t, nil, "inspect", "-o", "json", "--ca-file", "/dev/zero", srv.URL), cli.ExitFailed, "SourceDenied")
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
	wantFailure(t, agentWith(ctx, nil, "inspect", "-o", "json", url), cli.ExitInterrupted, cli.ReasonInterrupted)
}

// Nobody may ever write into a named pipe.
func TestInterruptedBeforePipeHasWriter(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantFailure(t, agentWith(ctx, nil, "import", "-o", "json", pipe), cli.ExitInterrupted, cli.ReasonInterrupted)
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
		o := outcome{cmd.ProcessState.ExitCode(), out.String(), decodeMessage(t, out.String())}
		wantFailure(t, o, cli.ExitInterrupted, cli.ReasonInterrupted)
	}
}

func decodeMessage(t *testing.T, out string) string {
	t.Helper()
	return decode[errorOutput](t, outcome{out: out}).Error.Message
}
