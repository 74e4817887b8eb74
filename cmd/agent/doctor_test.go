package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/tarlift/tarlift/internal/importer"
)

// wantFinding checks the one finding of a check.
func wantFinding(t *testing.T, d *doctor, v verdict, found string) {
	t.Helper()
	if len(d.findings) != 1 {
		t.Fatalf("findings %+v", d.findings)
	}
	f := d.findings[0]
	if f.Verdict != v || !strings.Contains(f.Found, found) {
		t.Errorf("%+v, want %s, %q", f, v, found)
	}
	if (f.Remedy != "") != (v == verdictWarn || v == verdictFail) {
		t.Errorf("remedy %q of %s", f.Remedy, v)
	}
}

func TestDoctorContainerdVersions(t *testing.T) {
	for version, want := range map[string]verdict{
		"v2.4.2": verdictOK, "2.0.0-rc.1": verdictOK, "1.7.27~ds1": verdictOK, "v1.7.35-k3s1": verdictOK, "v2.10.0": verdictOK,
		"1.6.20": verdictWarn, "v3.0.0": verdictWarn, "dev": verdictWarn, "": verdictWarn, "v1.5.9": verdictFail, "0.9.1": verdictFail,
	} {
		p := patient{doctor: &doctor{}, daemon: importer.Daemon{Version: version}}
		p.checkVersion()
		wantFinding(t, p.doctor, want, version)
	}
}

func TestDoctorDisk(t *testing.T) {
	const gib = 1 << 30
	for name, tc := range map[string]struct {
		disk  importer.Disk
		want  verdict
		found string
	}{
		"room":        {importer.Disk{Free: 40 * gib, Total: 100 * gib, Reserve: 15 * gib, Inodes: importer.Inodes{Free: 50, Total: 100, Reserve: 5}}, verdictOK, "50 % of its inodes"},
		"no inodes":   {importer.Disk{Free: 40 * gib, Total: 100 * gib, Reserve: 15 * gib}, verdictOK, "40 GiB free of 100 GiB; 15 GiB"},
		"low":         {importer.Disk{Free: 14 * gib, Total: 100 * gib, Reserve: 15 * gib}, verdictFail, "14 GiB free"},
		"few inodes":  {importer.Disk{Free: 40 * gib, Total: 100 * gib, Inodes: importer.Inodes{Free: 4, Total: 100, Reserve: 5}}, verdictFail, "4 inodes free of 100"},
		"not visible": {importer.Disk{Unknown: "/var/lib/containerd is not visible here"}, verdictWarn, "not visible"},
	} {
		t.Run(name, func(t *testing.T) {
			d := &doctor{}
			d.judgeDisk(&tc.disk)
			wantFinding(t, d, tc.want, tc.found)
		})
	}
}

func TestDoctorClock(t *testing.T) {
	now := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	for name, tc := range map[string]struct {
		now  time.Time
		last time.Duration // before now
		want verdict
	}{
		"right":        {now, time.Hour, verdictOK},
		"just now":     {now, -time.Second, verdictOK},
		"set back":     {now, -time.Hour, verdictWarn},
		"never set":    {time.Unix(100, 0), time.Hour, verdictFail},
		"never, later": {time.Unix(100, 0), -time.Hour, verdictFail},
	} {
		t.Run(name, func(t *testing.T) {
			d := &doctor{}
			d.judgeClock(tc.now, noted{"image a", tc.now.Add(-tc.last)})
			wantFinding(t, d, tc.want, "")
		})
	}
	for name, tc := range map[string]struct {
		ahead time.Duration // of the server
		took  time.Duration
		want  verdict
	}{
		"alike":       {0, 0, verdictOK},
		"slow answer": {-20 * time.Second, 19 * time.Second, verdictOK},
		"fast":        {-30 * time.Second, 0, verdictWarn},
		"slow":        {30 * time.Second, 0, verdictWarn},
		"far behind":  {time.Hour, 0, verdictFail},
		"far ahead":   {-time.Hour, time.Second, verdictFail},
	} {
		t.Run("server/"+name, func(t *testing.T) {
			c := &cluster{doctor: &doctor{}}
			c.checkServerClock(time.Now().Add(tc.ahead).UTC().Format("Mon, 02 Jan 2006 15:04:05 GMT"), tc.took)
			wantFinding(t, c.doctor, tc.want, "API server's")
		})
	}
	c := &cluster{doctor: &doctor{}}
	c.checkServerClock("", 0)
	wantFinding(t, c.doctor, verdictSkip, "")
}

func TestDoctorCRI(t *testing.T) {
	for name, tc := range map[string]struct {
		namespace string
		cri       importer.CRI
		err       error
		want      verdict
		found     string
	}{
		"serves":        {"k8s.io", importer.CRI{Serving: true, Version: "v1", Snapshotter: "overlayfs"}, nil, verdictOK, "overlayfs"},
		"no network":    {"k8s.io", importer.CRI{Serving: true, NetworkNotReady: "NetworkReady: NetworkPluginNotReady"}, nil, verdictOK, "no network for pods yet"},
		"not ready":     {"k8s.io", importer.CRI{Serving: true, NotReady: []string{"RuntimeReady: x"}}, nil, verdictFail, "RuntimeReady: x"},
		"disabled":      {"k8s.io", importer.CRI{Problem: "its plugin is disabled"}, nil, verdictFail, "disabled"},
		"no answer":     {"k8s.io", importer.CRI{}, errors.New("no answer within 5s"), verdictFail, "no answer"},
		"not kubelet's": {"other", importer.CRI{}, nil, verdictSkip, "other"},
	} {
		t.Run(name, func(t *testing.T) {
			p := patient{doctor: &doctor{}, o: importer.Options{Namespace: tc.namespace}, cri: tc.cri, criErr: tc.err}
			p.checkCRI()
			wantFinding(t, p.doctor, tc.want, tc.found)
		})
	}
}

// What hangs and heeds no context is left behind.
func TestDoctorTimeout(t *testing.T) {
	d := &doctor{timeout: 20 * time.Millisecond}
	hang := make(chan struct{})
	defer close(hang)
	began := time.Now()
	_, err := ask(t.Context(), d, func(context.Context) (int, error) { <-hang; return 1, nil })
	if err == nil || !strings.Contains(err.Error(), "no answer within 20ms") || time.Since(began) > 5*time.Second {
		t.Errorf("%v after %s", err, time.Since(began))
	}
	if v, err := ask(t.Context(), d, func(context.Context) (int, error) { return 1, nil }); v != 1 || err != nil {
		t.Errorf("%d, %v", v, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := ask(ctx, d, func(ctx context.Context) (int, error) { <-ctx.Done(); return 0, ctx.Err() }); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

func TestDoctorOutput(t *testing.T) {
	findings := []finding{{"socket", verdictOK, "fine", ""}, {"api server", verdictFail, "none", "start it"}}
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
	if o.code != exitFailed || got.OK || len(got.Checks) != 2+len(containerdChecks) || got.Checks[0].Verdict != verdictFail {
		t.Errorf("exit code %d: %+v", o.code, got)
	}
	for _, f := range got.Checks[1:] {
		if f.Verdict != verdictSkip {
			t.Errorf("%+v", f)
		}
	}
	o = agent(t, nil, "doctor", "--address", socket)
	if o.code != exitFailed || !strings.HasPrefix(o.out, "fail  socket ") || !strings.Contains(o.out, "-> is containerd running") || !strings.Contains(o.errOut, "1 of 13 checks failed") {
		t.Errorf("exit code %d, %s, %s", o.code, o.out, o.errOut)
	}
	broken := agent(t, nil, "doctor", "-o", "json", "--address", socket, "--kubeconfig", "/nonexistent")
	if c := decode[diagnosis](t, broken).Checks; c[len(c)-1].Check != "api server" || c[len(c)-1].Verdict != verdictFail {
		t.Errorf("%+v", c)
	}
	if o := agent(t, nil, "doctor", "--timeout", "0s"); o.code != exitUsage {
		t.Errorf("exit code %d", o.code)
	}
}

// The doctor asks for the rights that the agent's roles give, no more and no fewer.
func TestDoctorRights(t *testing.T) {
	data, err := os.ReadFile("../../config/rbac/node.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var given []string
	docs := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(data), 4096)
	for {
		var role rbacv1.Role
		if docs.Decode(&role) != nil {
			break
		}
		for _, rule := range role.Rules {
			for _, verb := range rule.Verbs {
				for _, resource := range rule.Resources {
					given = append(given, right{verb, rule.APIGroups[0], resource, role.Namespace}.String())
				}
			}
		}
	}
	var asked []string
	for _, r := range nodeRights("tarlift-system") {
		asked = append(asked, r.String())
	}
	slices.Sort(given)
	slices.Sort(asked)
	if !slices.Equal(given, asked) {
		t.Errorf("the roles give %q, the doctor asks for %q", given, asked)
	}
}
