package doctor

import (
	"bytes"
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/tarlift/tarlift/internal/importer"
)

// wantFinding checks the one finding of a check.
func wantFinding(t *testing.T, d *examination, v Verdict, found string) {
	t.Helper()
	if len(d.findings) != 1 {
		t.Fatalf("findings %+v", d.findings)
	}
	f := d.findings[0]
	if f.Verdict != v || !strings.Contains(f.Found, found) {
		t.Errorf("%+v, want %s, %q", f, v, found)
	}
	if (f.Remedy != "") != (v == Warn || v == Fail) {
		t.Errorf("remedy %q of %s", f.Remedy, v)
	}
}

func TestContainerdVersions(t *testing.T) {
	for version, want := range map[string]Verdict{
		"v2.4.2": OK, "2.0.0-rc.1": OK, "1.7.27~ds1": OK, "v1.7.35-k3s1": OK, "v2.10.0": OK,
		"1.6.20": Warn, "v3.0.0": Warn, "dev": Warn, "": Warn, "v1.5.9": Fail, "0.9.1": Fail,
	} {
		p := containerd{examination: &examination{}, daemon: importer.Daemon{Version: version}}
		p.checkVersion()
		wantFinding(t, p.examination, want, version)
	}
}

func TestDisk(t *testing.T) {
	const gib = 1 << 30
	for name, tc := range map[string]struct {
		disk  importer.Disk
		want  Verdict
		found string
	}{
		"room": {importer.Disk{
			Free: 40 * gib, Total: 100 * gib, Reserve: 15 * gib, Inodes: importer.Inodes{Free: 50, Total: 100, Reserve: 5},
		}, OK, "50 % of its inodes"},
		"no inodes":   {importer.Disk{Free: 40 * gib, Total: 100 * gib, Reserve: 15 * gib}, OK, "40 GiB of 100 GiB free, reserve 15 GiB"},
		"low":         {importer.Disk{Free: 14 * gib, Total: 100 * gib, Reserve: 15 * gib}, Fail, "14 GiB of 100 GiB free, below the reserve"},
		"few inodes":  {importer.Disk{Free: 40, Total: 100, Inodes: importer.Inodes{Free: 4, Total: 100, Reserve: 5}}, Fail, "4 of 100 inodes free"},
		"not visible": {importer.Disk{Unknown: "/var/lib/containerd is not visible here"}, Warn, "not visible"},
	} {
		t.Run(name, func(t *testing.T) {
			d := &examination{}
			d.checkDisk(&tc.disk)
			wantFinding(t, d, tc.want, tc.found)
		})
	}
}

func TestClock(t *testing.T) {
	now := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	for name, tc := range map[string]struct {
		now  time.Time
		last time.Duration // before now
		want Verdict
	}{
		"right":        {now, time.Hour, OK},
		"just now":     {now, -time.Second, OK},
		"set back":     {now, -time.Hour, Warn},
		"never set":    {time.Unix(100, 0), time.Hour, Fail},
		"never, later": {time.Unix(100, 0), -time.Hour, Fail},
	} {
		t.Run(name, func(t *testing.T) {
			d := &examination{}
			d.compareClock(tc.now, record{"image a", tc.now.Add(-tc.last)})
			wantFinding(t, d, tc.want, "")
		})
	}
	for name, tc := range map[string]struct {
		ahead time.Duration // of the server
		took  time.Duration
		want  Verdict
	}{
		"alike":       {0, 0, OK},
		"slow answer": {-20 * time.Second, 19 * time.Second, OK},
		"fast":        {-30 * time.Second, 0, Warn},
		"slow":        {30 * time.Second, 0, Warn},
		"far behind":  {time.Hour, 0, Fail},
		"far ahead":   {-time.Hour, time.Second, Fail},
	} {
		t.Run("server/"+name, func(t *testing.T) {
			c := &cluster{examination: &examination{}}
			c.compareServerClock(time.Now().Add(tc.ahead).UTC().Format("Mon, 02 Jan 2006 15:04:05 GMT"), tc.took)
			wantFinding(t, c.examination, tc.want, "API server's")
		})
	}
	c := &cluster{examination: &examination{}}
	c.compareServerClock("", 0)
	wantFinding(t, c.examination, Skip, "")
}

func TestCRI(t *testing.T) {
	for name, tc := range map[string]struct {
		namespace string
		cri       importer.CRI
		err       error
		want      Verdict
		found     string
	}{
		"serves":        {"k8s.io", importer.CRI{Serving: true, Version: "v1", Snapshotter: "overlayfs"}, nil, OK, "overlayfs"},
		"no network":    {"k8s.io", importer.CRI{Serving: true, NetworkNotReady: "NetworkReady: x"}, nil, OK, "the pod network is not ready"},
		"not ready":     {"k8s.io", importer.CRI{Serving: true, NotReady: []string{"RuntimeReady: x"}}, nil, Fail, "RuntimeReady: x"},
		"disabled":      {"k8s.io", importer.CRI{Problem: "its plugin is disabled"}, nil, Fail, "disabled"},
		"no answer":     {"k8s.io", importer.CRI{}, errors.New("no answer within 5s"), Fail, "no answer"},
		"not kubelet's": {"other", importer.CRI{}, nil, Skip, "other"},
	} {
		t.Run(name, func(t *testing.T) {
			p := containerd{examination: &examination{}, options: importer.Options{Namespace: tc.namespace}, cri: tc.cri, criErr: tc.err}
			p.checkCRI()
			wantFinding(t, p.examination, tc.want, tc.found)
		})
	}
}

// A question that hangs and ignores its context gets no answer in time.
func TestTimeout(t *testing.T) {
	d := &examination{timeout: 20 * time.Millisecond}
	hang := make(chan struct{})
	defer close(hang)
	started := time.Now()
	_, err := ask(t.Context(), d, func(context.Context) (int, error) { <-hang; return 1, nil })
	if err == nil || !strings.Contains(err.Error(), "no answer within 20ms") || time.Since(started) > 5*time.Second {
		t.Errorf("%v after %s", err, time.Since(started))
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

// The doctor asks for the rights that the agent's roles give, no more and no fewer.
func TestRights(t *testing.T) {
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
