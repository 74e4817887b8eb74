package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tarlift/tarlift/internal/cli"
	"github.com/tarlift/tarlift/internal/doctor"
)

func TestDoctorOutput(t *testing.T) {
	findings := []doctor.Finding{
		{Check: "socket", Verdict: doctor.OK, Found: "fine"},
		{Check: "api server", Verdict: doctor.Fail, Found: "none", Remedy: "start it"},
	}
	var plain, coloured bytes.Buffer
	printFindings(&plain, findings, false)
	printFindings(&coloured, findings, true)
	if want := "ok    socket      fine\nfail  api server  none\n                  -> start it\n"; plain.String() != want {
		t.Errorf("%q", plain.String())
	}
	if !strings.Contains(coloured.String(), "\x1b[31mfail\x1b[0m  api server  none") {
		t.Errorf("%q", coloured.String())
	}
}

// The command line: text and JSON, exit codes, and no way to any API server.
func TestDoctorCommand(t *testing.T) {
	t.Setenv("KUBECONFIG", "")
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	socket := filepath.Join(t.TempDir(), "none.sock")
	o := agent(t, nil, "doctor", "-o", "json", "--address", socket)
	got := decode[diagnosis](t, o)
	if o.code != cli.ExitFailed || got.OK || len(got.Checks) != 13 || got.Checks[0].Verdict != doctor.Fail {
		t.Errorf("exit code %d: %+v", o.code, got)
	}
	for _, f := range got.Checks[1:] {
		if f.Verdict != doctor.Skip {
			t.Errorf("%+v", f)
		}
	}
	o = agent(t, nil, "doctor", "--address", socket)
	if o.code != cli.ExitFailed || !strings.HasPrefix(o.out, "fail  socket ") || !strings.Contains(o.out, "-> is containerd running") ||
		!strings.Contains(o.errOut, "1 of 13 checks failed") {
		t.Errorf("exit code %d, %s, %s", o.code, o.out, o.errOut)
	}
	broken := agent(t, nil, "doctor", "-o", "json", "--address", socket, "--kubeconfig", "/nonexistent")
	if c := decode[diagnosis](t, broken).Checks; c[len(c)-1].Check != "api server" || c[len(c)-1].Verdict != doctor.Fail {
		t.Errorf("%+v", c)
	}
	if o := agent(t, nil, "doctor", "--timeout", "0s"); o.code != cli.ExitUsage {
		t.Errorf("exit code %d", o.code)
	}
}
