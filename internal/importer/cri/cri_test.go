package cri

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/containerd/containerd/v2/core/introspection"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fakeCRI knows images by name; a name may be learnt only after some questions, and whole questions may fail.
type fakeCRI struct {
	runtimeapi.ImageServiceClient
	ids    map[string]digest.Digest
	after  map[string]int // questions for a name that are answered by nothing
	fail   error
	heals  int // after this many failures
	hang   bool
	asked  int
	mounts []string
}

func (f *fakeCRI) answer(ctx context.Context) error {
	f.asked++
	if f.hang {
		<-ctx.Done()
		return status.FromContextError(ctx.Err()).Err()
	}
	if f.fail != nil && (f.heals == 0 || f.asked <= f.heals) {
		return f.fail
	}
	return nil
}

func (f *fakeCRI) ImageStatus(
	ctx context.Context, r *runtimeapi.ImageStatusRequest, _ ...grpc.CallOption,
) (*runtimeapi.ImageStatusResponse, error) {
	if err := f.answer(ctx); err != nil {
		return nil, err
	}
	name := r.GetImage().GetImage()
	id, ok := f.ids[name]
	if f.after[name] > 0 {
		f.after[name]--
		ok = false
	}
	if !ok {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	return &runtimeapi.ImageStatusResponse{Image: &runtimeapi.Image{Id: id.String()}}, nil
}

func (f *fakeCRI) ImageFsInfo(
	ctx context.Context, _ *runtimeapi.ImageFsInfoRequest, _ ...grpc.CallOption,
) (*runtimeapi.ImageFsInfoResponse, error) {
	if err := f.answer(ctx); err != nil {
		return nil, err
	}
	resp := &runtimeapi.ImageFsInfoResponse{}
	for _, m := range f.mounts {
		resp.ImageFilesystems = append(resp.ImageFilesystems, &runtimeapi.FilesystemUsage{FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: m}})
	}
	return resp, nil
}

var (
	errDisabled = status.Error(codes.Unimplemented, "unknown service runtime.v1.ImageService")
	errNotYet   = status.Error(codes.Unavailable, "server is not initialized yet")
)

func TestNotVisible(t *testing.T) {
	one, two := digest.FromString("1"), digest.FromString("2")
	ids := map[string]digest.Digest{"a.example/a:1": one, "a.example/b:1": two, "a.example/c:1": two}
	for name, tc := range map[string]struct {
		cri        *fakeCRI
		notVisible []string
		unknown    string // a part of it
		within     time.Duration
	}{
		"at once": {cri: &fakeCRI{ids: ids}},
		"events":  {cri: &fakeCRI{ids: ids, after: map[string]int{"a.example/b:1": 5, "a.example/c:1": 3}}, within: nameWait},
		"one lost": {
			cri:        &fakeCRI{ids: map[string]digest.Digest{"a.example/a:1": one, "a.example/c:1": two}},
			notVisible: []string{"a.example/b:1"}, within: 2 * nameWait,
		},
		"another image": {
			cri:        &fakeCRI{ids: map[string]digest.Digest{"a.example/a:1": two, "a.example/b:1": two, "a.example/c:1": two}},
			notVisible: []string{"a.example/a:1"}, within: 2 * nameWait,
		},
		// Each comes within the wait, all together do not.
		"slow events": {
			cri:    &fakeCRI{ids: ids, after: map[string]int{"a.example/a:1": 14, "a.example/b:1": 25, "a.example/c:1": 36}},
			within: 4 * nameWait,
		},
		"disabled":    {cri: &fakeCRI{fail: errDisabled}, unknown: "does not serve CRI"},
		"starting":    {cri: &fakeCRI{ids: ids, fail: errNotYet, heals: 4}, within: nameWait},
		"never ready": {cri: &fakeCRI{fail: errNotYet}, unknown: "not initialized", within: 2 * nameWait},
		"hanging":     {cri: &fakeCRI{hang: true}, unknown: "deadline", within: 3 * nameWait},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				names, unknown := Client{Images: tc.cri}.NotVisible(t.Context(), ids)
				if !slices.Equal(names, tc.notVisible) || !strings.Contains(unknown, tc.unknown) || (unknown == "") != (tc.unknown == "") {
					t.Errorf("not visible %q, unknown %q", names, unknown)
				}
				if took := time.Since(start); took > tc.within {
					t.Errorf("took %s", took)
				}
			})
		})
	}
}

// Whoever interrupts after the names were published does not wait, and the import stands.
func TestNotVisibleInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := Client{Images: &fakeCRI{hang: true}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		start := time.Now()
		names, unknown := c.NotVisible(ctx, map[string]digest.Digest{"a.example/a:1": "x"})
		if names != nil || !strings.Contains(unknown, "interrupted") {
			t.Errorf("not visible %q, unknown %q", names, unknown)
		}
		if took := time.Since(start); took > 10*time.Millisecond {
			t.Errorf("took %s", took)
		}
	})
}

// pluginList is an introspection service that only lists snapshotters.
type pluginList struct {
	introspection.Service
	roots map[string]string
}

func (p pluginList) Plugins(context.Context, ...string) (*introspectionapi.PluginsResponse, error) {
	resp := &introspectionapi.PluginsResponse{}
	for name, root := range p.roots {
		plugin := &introspectionapi.Plugin{Type: plugins.SnapshotPlugin.String(), ID: name}
		if root != "" {
			plugin.Exports = map[string]string{"root": root}
		}
		resp.Plugins = append(resp.Plugins, plugin)
	}
	return resp, nil
}

func TestSnapshotter(t *testing.T) {
	known := pluginList{roots: map[string]string{
		"overlayfs": "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs", "stargz": "/var/lib/stargz/snapshotter", "nydus": "",
	}}
	for name, tc := range map[string]struct {
		cri  *fakeCRI
		want string
		err  bool
	}{
		"default": {&fakeCRI{mounts: []string{"/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs"}}, "overlayfs", false},
		"several": {
			&fakeCRI{mounts: []string{"/var/lib/stargz/snapshotter", "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs"}},
			"stargz", false,
		},
		"says no root":         {&fakeCRI{mounts: []string{"/var/lib/containerd/io.containerd.snapshotter.v1.nydus"}}, "nydus", false},
		"unknown":              {&fakeCRI{mounts: []string{"/elsewhere"}}, "", false},
		"nothing":              {&fakeCRI{}, "", false},
		"disabled":             {&fakeCRI{fail: errDisabled}, "", true},
		"starting":             {&fakeCRI{fail: errNotYet, heals: 3, mounts: []string{"/var/lib/stargz/snapshotter"}}, "stargz", false},
		"never ready, or dead": {&fakeCRI{fail: errNotYet}, "", true},
		"hanging":              {&fakeCRI{hang: true}, "", true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				got, err := Client{Images: tc.cri, Plugins: known}.Snapshotter(t.Context())
				if got != tc.want || (err != nil) != tc.err {
					t.Errorf("%q, %v", got, err)
				}
				if took := time.Since(start); took > 3*startWait {
					t.Errorf("took %s", took)
				}
			})
		})
	}
}

// fakeRuntime is the other service of CRI.
type fakeRuntime struct {
	runtimeapi.RuntimeServiceClient
	conditions []*runtimeapi.RuntimeCondition
	fail       error
}

func (f fakeRuntime) Version(context.Context, *runtimeapi.VersionRequest, ...grpc.CallOption) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{RuntimeApiVersion: "v1"}, f.fail
}

func (f fakeRuntime) Status(context.Context, *runtimeapi.StatusRequest, ...grpc.CallOption) (*runtimeapi.StatusResponse, error) {
	return &runtimeapi.StatusResponse{Status: &runtimeapi.RuntimeStatus{Conditions: f.conditions}}, nil
}

func TestStatus(t *testing.T) {
	c := Client{Images: &fakeCRI{}, Runtime: fakeRuntime{conditions: []*runtimeapi.RuntimeCondition{
		{Type: runtimeapi.RuntimeReady, Reason: "Broken"},
		{Type: runtimeapi.NetworkReady, Reason: "NetworkPluginNotReady"},
		{Type: "ContainerdHasNoDeprecationWarnings", Reason: "ContainerdHasDeprecationWarnings"},
	}}, Plugins: pluginList{}}
	got, err := c.Status(t.Context())
	if err != nil || !got.Serving || got.Version != "v1" ||
		!slices.Equal(got.NotReady, []string{"RuntimeReady: Broken"}) || got.NetworkNotReady != "NetworkReady: NetworkPluginNotReady" {
		t.Errorf("%+v, %v", got, err)
	}
	c.Runtime = fakeRuntime{fail: errNotYet}
	if got, err := c.Status(t.Context()); err == nil || got.Serving {
		t.Errorf("%+v, %v", got, err)
	}
	c.Runtime = fakeRuntime{fail: errDisabled}
	if got, err := c.Status(t.Context()); err != nil || got.Serving || got.Problem != "its plugin is disabled" {
		t.Errorf("%+v, %v", got, err)
	}
	c = Client{}
	if got, err := c.Status(t.Context()); err != nil || got.Serving || got.Problem == "" {
		t.Errorf("%+v, %v", got, err)
	}
}
