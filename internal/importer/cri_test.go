package importer

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/containerd/containerd/v2/client"
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

func (f *fakeCRI) ImageStatus(ctx context.Context, r *runtimeapi.ImageStatusRequest, _ ...grpc.CallOption) (*runtimeapi.ImageStatusResponse, error) {
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

func (f *fakeCRI) ImageFsInfo(ctx context.Context, _ *runtimeapi.ImageFsInfoRequest, _ ...grpc.CallOption) (*runtimeapi.ImageFsInfoResponse, error) {
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

func TestUnseen(t *testing.T) {
	one, two := digest.FromString("1"), digest.FromString("2")
	ids := map[string]digest.Digest{"a.example/a:1": one, "a.example/b:1": two, "a.example/c:1": two}
	for name, tc := range map[string]struct {
		cri       *fakeCRI
		namespace string
		unseen    []string
		unknown   string // a part of it
		within    time.Duration
		asks      bool
	}{
		"at once":  {cri: &fakeCRI{ids: ids}, asks: true},
		"events":   {cri: &fakeCRI{ids: ids, after: map[string]int{"a.example/b:1": 5, "a.example/c:1": 3}}, asks: true, within: criNameWait},
		"one lost": {cri: &fakeCRI{ids: map[string]digest.Digest{"a.example/a:1": one, "a.example/c:1": two}}, unseen: []string{"a.example/b:1"}, asks: true, within: 2 * criNameWait},
		"another image": {
			cri: &fakeCRI{ids: map[string]digest.Digest{"a.example/a:1": two, "a.example/b:1": two, "a.example/c:1": two}}, unseen: []string{"a.example/a:1"}, asks: true, within: 2 * criNameWait,
		},
		// Each comes within the wait, all together do not.
		"slow events":       {cri: &fakeCRI{ids: ids, after: map[string]int{"a.example/a:1": 14, "a.example/b:1": 25, "a.example/c:1": 36}}, asks: true, within: 4 * criNameWait},
		"disabled":          {cri: &fakeCRI{fail: errDisabled}, unknown: "does not serve CRI", asks: true},
		"starting":          {cri: &fakeCRI{ids: ids, fail: errNotYet, heals: 4}, asks: true, within: criNameWait},
		"never ready":       {cri: &fakeCRI{fail: errNotYet}, unknown: "not initialized", asks: true, within: 2 * criNameWait},
		"hanging":           {cri: &fakeCRI{hang: true}, unknown: "deadline", asks: true, within: 3 * criNameWait},
		"another namespace": {cri: &fakeCRI{}, namespace: "other"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i := &Importer{namespace: kubeletNamespace, cri: cri{images: tc.cri}}
				if tc.namespace != "" {
					i.namespace = tc.namespace
				}
				start := time.Now()
				unseen, unknown := i.unseen(t.Context(), ids)
				if !slices.Equal(unseen, tc.unseen) || !strings.Contains(unknown, tc.unknown) || (unknown == "") != (tc.unknown == "") {
					t.Errorf("unseen %q, unknown %q", unseen, unknown)
				}
				if took := time.Since(start); took > tc.within {
					t.Errorf("took %s", took)
				}
				if tc.cri.asked > 0 != tc.asks {
					t.Errorf("asked %d times", tc.cri.asked)
				}
			})
		})
	}
}

// Whoever interrupts after the names were published does not wait, and the import stands.
func TestUnseenInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &Importer{namespace: kubeletNamespace, cri: cri{images: &fakeCRI{hang: true}}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		start := time.Now()
		if unseen, unknown := i.unseen(ctx, map[string]digest.Digest{"a.example/a:1": "x"}); unseen != nil || !strings.Contains(unknown, "interrupted") {
			t.Errorf("unseen %q, unknown %q", unseen, unknown)
		}
		if took := time.Since(start); took > 10*time.Millisecond {
			t.Errorf("took %s", took)
		}
	})
}

// What CRI says reaches the result, under the name and under name@digest, and is compared with the right image.
func TestImportAsksCRI(t *testing.T) {
	built := version(t, "one")
	img := built.Images[0]
	config := img.Platforms[0].Config.Digest
	ref := strings.TrimSuffix(appName, ":1") + "@" + img.Target.Digest.String()
	for name, tc := range map[string]struct {
		known  map[string]digest.Digest
		unseen []string
	}{
		"both":         {map[string]digest.Digest{appName: config, ref: config}, nil},
		"no reference": {map[string]digest.Digest{appName: config}, []string{ref}},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, "linux/amd64")
			n.cri = cri{images: &fakeCRI{ids: tc.known}}
			r, err := n.Import(t.Context(), blobOf(t, built, false), wanted(named("a", "1")))
			if err != nil || r.CRI != "" || !slices.Equal(r.Unseen, tc.unseen) {
				t.Errorf("unseen %q, unknown %q, error %v; want %q", r.Unseen, r.CRI, err, tc.unseen)
			}
			if n.image(t, appName) == nil {
				t.Error("the image is not there")
			}
		})
	}
	n := newNode(t, "linux/amd64")
	if r, err := n.Import(t.Context(), blobOf(t, built, false), wanted(named("a", "1"))); err != nil || r.CRI == "" {
		t.Errorf("without CRI: unknown %q, error %v", r.CRI, err)
	}
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

func TestCRISnapshotter(t *testing.T) {
	c, err := client.New("", client.WithServices(client.WithIntrospectionService(pluginList{roots: map[string]string{
		"overlayfs": "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs", "stargz": "/var/lib/stargz/snapshotter", "nydus": "",
	}})))
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		cri  *fakeCRI
		want string
		err  bool
	}{
		"default":              {&fakeCRI{mounts: []string{"/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs"}}, "overlayfs", false},
		"several":              {&fakeCRI{mounts: []string{"/var/lib/stargz/snapshotter", "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs"}}, "stargz", false},
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
				i := &Importer{client: c, namespace: kubeletNamespace, cri: cri{images: tc.cri}}
				got, err := i.criSnapshotter(t.Context())
				if got != tc.want || (err != nil) != tc.err {
					t.Errorf("%q, %v", got, err)
				}
				if took := time.Since(start); took > 3*criStartWait {
					t.Errorf("took %s", took)
				}
			})
		})
	}
}
