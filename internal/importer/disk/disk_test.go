package disk

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/containerd/containerd/v2/core/introspection"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tarlift/tarlift/internal/importer/daemon"
)

func TestReserve(t *testing.T) {
	const total = 1000 << 30
	for _, tc := range []struct {
		text, shown string
		want        int64 // of total
	}{
		{"15%", "15%", 150 << 30},
		{"0.5%", "0.5%", 5 << 30},
		{"10Gi", "10GiB", 10 << 30},
		{"1500M", "1.4GiB", 1500e6},
		{"0", "0", 0},
		{"0%", "0", 0},
	} {
		var r Reserve
		if err := r.Set(tc.text); err != nil || r.bytesOf(total) != tc.want || r.String() != tc.shown || r.None() != (tc.want == 0) {
			t.Errorf("%s: %d bytes, shown as %s, error %v", tc.text, r.bytesOf(total), r.String(), err)
		}
	}
	for _, bad := range []string{"", "lots", "15", "0.5", "-1", "100%", "-5%", "NaN%", "%", "9Ei0", "99999999999Gi"} {
		r := Reserve{set: true, bytes: 7}
		if err := r.Set(bad); err == nil || r.bytes != 7 {
			t.Errorf("%q: %+v, error %v", bad, r, err)
		}
	}
	if zero := (Reserve{}); zero.bytesOf(total) != 150<<30 || zero.String() != "15%" || zero.None() {
		t.Errorf("by default %d, %s", zero.bytesOf(total), zero.String())
	}
}

func TestIsContainersRoot(t *testing.T) {
	const options = "rw,lowerdir=/c/overlayfs/3/fs,upperdir=/c/overlayfs/55/fs,workdir=/c/overlayfs/55/work,uuid=on"
	for name, tc := range map[string]struct {
		options, layers string
		want            bool
	}{
		"this snapshotter's":  {options, "/c/overlayfs", true},
		"another one's":       {options, "/c/over", false},
		"another engine's":    {options, "/d/overlayfs", false},
		"a read-only overlay": {"ro,lowerdir=/c/overlayfs/3/fs:/c/overlayfs/2/fs", "/c/overlayfs", false},
	} {
		if got := isContainersRoot(tc.options, tc.layers); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// Where a plugin's directory is not to be seen nothing is said of it, rather than something wrong.
func TestInvisibleRootIsUnknown(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "io.containerd.metadata.v1.bolt"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		path, containerdRoot string
		unknown              bool
	}{
		"seen":                  {dir, "", false},
		"not there":             {"/does/not/exist", "", true},
		"not written to so far": {dir + "/io.containerd.content.v1.content", "", false}, // as before containerd 2.3
		"of another system":     {t.TempDir() + "/io.containerd.content.v1.content", "", true},
		"a file":                {"/proc/self/mountinfo", "", true},
		"not reported":          {"", "", true},
		"said by the user":      {"/does/not/exist", dir, false},
		"said wrongly":          {"/does/not/exist", "/nor/does/this", true},
	} {
		f := Options{Root: tc.containerdRoot}.fileSystem("the content store", tc.path, "/some/snapshotter")
		if (f.Unknown != "") != tc.unknown || (f.Total > 0) == tc.unknown {
			t.Errorf("%s: unknown %q, %d of %d bytes free", name, f.Unknown, f.Free, f.Total)
		}
	}
}

// containerd is an introspection service that knows where plugins write to.
type containerd struct {
	introspection.Service
	content, overlayfs string
}

func (c containerd) Plugins(context.Context, ...string) (*introspectionapi.PluginsResponse, error) {
	return &introspectionapi.PluginsResponse{Plugins: []*introspectionapi.Plugin{
		{Type: string(plugins.ContentPlugin), ID: "content", Exports: map[string]string{"root": c.content}},
		{Type: string(plugins.SnapshotPlugin), ID: "overlayfs", Exports: map[string]string{"root": c.overlayfs}},
	}}, nil
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	for name, tc := range map[string]struct {
		daemon containerd
		want   []FileSystem // Roots, Blobs and Unpacked only
	}{
		"one": {containerd{content: dir, overlayfs: dir}, []FileSystem{{Roots: []string{dir, dir}, Blobs: 1, Unpacked: 2}}},
		"two": {
			containerd{content: "/proc", overlayfs: dir},
			[]FileSystem{{Roots: []string{"/proc"}, Blobs: 1}, {Roots: []string{dir}, Unpacked: 2}},
		},
		"two that are not visible": {
			containerd{content: "/does/not", overlayfs: "/not/either"},
			[]FileSystem{{Roots: []string{"/does/not"}, Blobs: 1}, {Roots: []string{"/not/either"}, Unpacked: 2}},
		},
	} {
		all, err := Find(t.Context(), tc.daemon, Options{Snapshotter: "overlayfs"})
		if err != nil {
			t.Fatal(err)
		}
		var got []FileSystem
		for _, f := range all {
			f.Plan(1, 2)
			got = append(got, FileSystem{Roots: f.Roots, Blobs: f.Blobs, Unpacked: f.Unpacked})
		}
		if diff := cmp.Diff(tc.want, got, cmpopts.IgnoreUnexported(FileSystem{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestRoom(t *testing.T) {
	const gi = 1 << 30
	for name, tc := range map[string]struct {
		disk FileSystem
		full bool
		says string
	}{
		"enough": {FileSystem{Free: 20 * gi, Total: 100 * gi, Reserve: 15 * gi, Blobs: 1 * gi, Unpacked: 4 * gi}, false, ""},
		"a byte too little": {
			FileSystem{Free: 20 * gi, Total: 100 * gi, Reserve: 15 * gi, Blobs: 1 * gi, Unpacked: 4*gi + 1},
			true, "20 GiB free of 100 GiB, of which 15 GiB",
		},
		"below, and writing": {FileSystem{Free: 14 * gi, Total: 100 * gi, Reserve: 15 * gi}, true, "what is being written"},
		"no inodes": {
			FileSystem{Free: 90 * gi, Total: 100 * gi, Inodes: Inodes{Free: 60, Total: 1000, Reserve: 50, Needed: 11}},
			true, "60 inodes free of 1000",
		},
		"inodes enough": {
			FileSystem{Free: 90 * gi, Total: 100 * gi, Inodes: Inodes{Free: 60, Total: 1000, Reserve: 50, Needed: 10}},
			false, "",
		},
		"no fixed inodes": {FileSystem{Free: 90 * gi, Total: 100 * gi, Inodes: Inodes{Needed: 10}}, false, ""},
		"unknown":         {FileSystem{Unknown: "not visible"}, false, ""},
	} {
		tc.disk.Roots = []string{"/var/lib/containerd"}
		err := tc.disk.room("what is being written")
		if errors.Is(err, daemon.ErrNoSpace) != tc.full || tc.full && !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWatch(t *testing.T) {
	var nearlyAll Reserve
	if err := nearlyAll.Set("99.9999%"); err != nil {
		t.Fatal(err)
	}
	daemonAt := containerd{content: t.TempDir(), overlayfs: "/does/not/exist"}
	all, err := Find(t.Context(), daemonAt, Options{Snapshotter: "overlayfs", Reserve: nearlyAll})
	if err != nil {
		t.Fatal(err)
	}
	asked, full := make(chan bool), make(chan error, 1)
	go func() { full <- Watch(t.Context(), all, func() bool { return <-asked }) }()
	for range 3 {
		asked <- false
	}
	select {
	case err := <-full:
		t.Errorf("while nothing is written: %v", err)
	default:
	}
	asked <- true
	if err := <-full; !errors.Is(err, daemon.ErrNoSpace) {
		t.Errorf("error %v", err)
	}
}

// A watch ends with its context.
func TestWatchEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Watch(ctx, nil, func() bool { return true }); err != nil {
		t.Errorf("error %v", err)
	}
}
