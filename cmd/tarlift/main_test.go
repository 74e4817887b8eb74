package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/internal/cli"
	"github.com/tarlift/tarlift/test/docs"
)

// outcome is the result of a command line.
type outcome struct {
	code        int
	out, errOut string
}

// tarlift runs a command line in this process.
func tarlift(t *testing.T, in io.Reader, args ...string) outcome {
	t.Helper()
	return tarliftWith(t.Context(), in, args...)
}

func tarliftWith(ctx context.Context, in io.Reader, args ...string) outcome {
	if in == nil {
		in = strings.NewReader("")
	}
	var out, errOut bytes.Buffer
	code := run(ctx, args, in, &out, &errOut)
	return outcome{code, out.String(), errOut.String()}
}

// decode reads the one JSON object that standard output must be.
func decode[T any](t *testing.T, o outcome) T {
	t.Helper()
	var v T
	d := json.NewDecoder(strings.NewReader(o.out))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil || d.More() {
		t.Fatalf("standard output is not the one object: %v: %q (standard error: %q)", err, o.out, o.errOut)
	}
	return v
}

// wantFailure checks the exit code and the reason, and that standard error has the message too.
func wantFailure(t *testing.T, o outcome, code int, reason string) {
	t.Helper()
	got := decode[struct{ Error cli.Failure }](t, o).Error
	if o.code != code || got.Reason != reason || got.Message == "" || !strings.Contains(o.errOut, got.Message) {
		t.Errorf("exit code %d, want %d; %+v, want %s; standard error %q", o.code, code, got, reason, o.errOut)
	}
}

// layer is a compressed layer of about size bytes.
func layer(seed uint64, size int64) builder.Layer {
	return builder.Layer{Compression: builder.Gzip, Files: []builder.File{builder.Noise("file", seed, size)}}
}

func platform(p string, layers ...builder.Layer) builder.PlatformImage {
	return builder.PlatformImage{Platform: builder.Platform(p), Layers: layers}
}

func build(t *testing.T, a builder.Archive) []byte {
	t.Helper()
	data, err := a.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func write(t *testing.T, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// silent is a server that sends nothing until the client disconnects.
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

func TestVersion(t *testing.T) {
	if o := tarlift(t, nil, "version"); o.code != cli.ExitOK || o.out != version+"\n" {
		t.Errorf("exit code %d, output %q", o.code, o.out)
	}
}

// The page of the command names every command and flag, and the command lines of all pages exist.
func TestDocumentation(t *testing.T) {
	docs.CheckFlags(t, newRootCommand(), "docs/tarlift-cli.md")
	docs.CheckCommandLines(t, newRootCommand(), 15)
}

// Nothing that only a cluster needs is linked: neither controllers nor Kubernetes' libraries.
func TestLinks(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		for _, prefix := range []string{"k8s.io/client-go", "sigs.k8s.io/controller-runtime", "github.com/tarlift/tarlift/controllers"} {
			if strings.HasPrefix(line, prefix) {
				t.Errorf("tarlift links %s", line)
			}
		}
	}
}
