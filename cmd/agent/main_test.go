package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/log"

	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/internal/cli"
)

// asAgent in the environment makes the test's own binary the agent, for what only a process can show.
const asAgent = "TARLIFT_TEST_AS_AGENT"

func TestMain(m *testing.M) {
	if os.Getenv(asAgent) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// outcome is what a command line came to.
type outcome struct {
	code        int
	out, errOut string
}

// agent runs a command line in this process.
func agent(t *testing.T, in io.Reader, args ...string) outcome {
	t.Helper()
	return agentWith(t.Context(), in, args...)
}

func agentWith(ctx context.Context, in io.Reader, args ...string) outcome {
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
	if err := d.Decode(&v); err != nil {
		t.Fatalf("standard output is no object as expected: %v: %q (standard error: %q)", err, o.out, o.errOut)
	}
	if d.More() {
		t.Fatalf("more than one object: %q", o.out)
	}
	return v
}

type errorOutput struct {
	Error *struct{ Reason, Message string }
}

// wantFailure checks exit code and reason, and that the message is one line fit for a terminal.
func wantFailure(t *testing.T, o outcome, code int, reason string) {
	t.Helper()
	if o.code != code {
		t.Errorf("exit code %d, want %d (%s)", o.code, code, o.errOut)
	}
	got := decode[errorOutput](t, o)
	if got.Error == nil || got.Error.Reason != reason {
		t.Fatalf("reason %+v, want %s", got.Error, reason)
	}
	if m := got.Error.Message; m == "" || strings.ContainsAny(m, "\n\r\x1b\x00") || !strings.Contains(o.errOut, m) {
		t.Errorf("message %q; standard error %q", m, o.errOut)
	}
}

// layer is a compressed layer of about size bytes.
func layer(seed uint64, size int64) builder.Layer {
	return builder.Layer{Compression: builder.Gzip, Files: []builder.File{builder.Noise("file", seed, size)}}
}

func image(name string, platforms ...builder.PlatformImage) builder.Image {
	return builder.Image{Names: []string{name}, Platforms: platforms}
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

func TestUsageErrors(t *testing.T) {
	file := write(t, "a.tar", build(t, builder.Archive{Images: []builder.Image{
		image("a.example/x:1", platform("linux/amd64", layer(1, 10))),
	}}))
	for name, args := range map[string][]string{
		"no command":              {},
		"unknown command":         {"impart", file},
		"no archive":              {"import"},
		"two archives":            {"import", file, file},
		"unknown flag":            {"import", "--bogus", file},
		"no value":                {"import", file, "--address"},
		"digest":                  {"import", "--digest", "sha256:abc", file},
		"index digest":            {"import", "--index-digest", "abc", file},
		"platform":                {"import", "--platform", "a/b/c/d/e", file},
		"conflict":                {"import", "--conflict", "maybe", file},
		"progress":                {"import", "--progress", "lots", file},
		"output":                  {"import", "-o", "xml", file},
		"rename without =":        {"import", "--rename", "a", file},
		"rename to no name":       {"import", "--rename", "a.example/x:1=UPPER CASE", file},
		"base name":               {"import", "--base-name", "not a name", file},
		"glob":                    {"import", "--include", "a\x00b", file},
		"credentials of a file":   {"import", "--username", "u", file},
		"credentials of a stream": {"inspect", "--bearer-token-file", file, "-"},
		"digest without plan":     {"inspect", "--index-digest", "sha256:" + strings.Repeat("0", 64), file},
		"inspect nothing":         {"inspect"},
		"argument of version":     {"version", "x"},
		"node without a name":     {"node"},
		"no prefix":               {"node", "--node-name", "n", "--allow-source-addresses", "127.0.0.1"},
		"a name for a prefix":     {"node", "--node-name", "n", "--allow-source-addresses", "localhost/32"},
		"bits behind the prefix":  {"node", "--node-name", "n", "--allow-source-addresses", "127.0.0.1/8"},
		"a mapped prefix":         {"node", "--node-name", "n", "--allow-source-addresses", "::ffff:127.0.0.1/128"},
		"allowing without limits": {"import", "--allow-source-addresses", "127.0.0.1/32", file},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("NODE_NAME", "")
			o := agent(t, nil, args...)
			if o.code != cli.ExitUsage || o.out != "" || !strings.Contains(o.errOut, "--help") || strings.Contains(o.errOut, `\t`) {
				t.Errorf("exit code %d, output %q, error %q", o.code, o.out, o.errOut)
			}
		})
	}
	wantFailure(t, agent(t, nil, "import", "-o", "json", "--digest", "x", file), cli.ExitUsage, cli.ReasonUsage)
	wantFailure(t, agent(t, nil, "import", "-o", "json", "--bogus"), cli.ExitUsage, cli.ReasonUsage)
}

// Whoever reads JSON gets it also when the command line is not understood before -o is reached.
func TestUsageErrorsAsJSON(t *testing.T) {
	for _, args := range [][]string{
		{"import", "--bogus", "-o", "json", "x"},
		{"import", "--conflict", "nope", "--output=json", "x"},
		{"import", "--conflict=nope", "--output", "json", "x"},
		{"inspect", "--plam", "-ojson", "x"},
		{"inspect", "-x", "-o=json", "x"},
		{"inspect", "-o", "xml", "-o", "json", "x"}, // the last one counts
		{"impart", "-o", "json", "x"},
	} {
		wantFailure(t, agent(t, nil, args...), cli.ExitUsage, cli.ReasonUsage)
	}
	for _, args := range [][]string{
		{"import", "--bogus", "--", "-o", "json"},
		{"import", "--bogus", "-o", "json", "-o", "text", "x"},
		{"import", "--bogus", "x", "-o"},
	} {
		if o := agent(t, nil, args...); o.code != cli.ExitUsage || o.out != "" || strings.Contains(o.errOut, "Usage of") {
			t.Errorf("%q: exit code %d, output %q, error %q", args, o.code, o.out, o.errOut)
		}
	}
}

// containerd's client library logs text to standard error, beside the error that it returns.
func TestLibraryIsSilent(t *testing.T) {
	logger, level, to := log.L.Logger, log.GetLevel(), log.L.Logger.Out
	defer func() { logger.SetLevel(level); logger.SetOutput(to) }()
	var logged bytes.Buffer
	logger.SetLevel(log.InfoLevel)
	logger.SetOutput(&logged)
	if log.G(t.Context()).Error("before"); logged.Len() == 0 {
		t.Fatal("it is silent anyway")
	}
	logged.Reset()
	agent(t, nil, "version")
	if log.G(t.Context()).Error("apply failure, attempting cleanup"); logged.Len() > 0 {
		t.Errorf("logged: %q", logged.String())
	}
}

func TestHelpAndCompletion(t *testing.T) {
	for _, args := range [][]string{{"--help"}, {"import", "--help"}, {"completion", "bash"}, {"completion", "zsh"}, {"completion", "fish"}} {
		if o := agent(t, nil, args...); o.code != cli.ExitOK || o.out == "" || o.errOut != "" {
			t.Errorf("%v: exit code %d, %d bytes of output, error %q", args, o.code, len(o.out), o.errOut)
		}
	}
}

func TestVersion(t *testing.T) {
	if o := agent(t, nil, "version"); o.code != cli.ExitOK || o.out != version+"\n" {
		t.Errorf("exit code %d, output %q", o.code, o.out)
	}
}
