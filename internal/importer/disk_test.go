package importer

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
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
		if err := r.Set(tc.text); err != nil || r.of(total) != tc.want || r.String() != tc.shown || r.none() != (tc.want == 0) {
			t.Errorf("%s: %d bytes, shown as %s, error %v", tc.text, r.of(total), r.String(), err)
		}
	}
	for _, bad := range []string{"", "lots", "15", "0.5", "-1", "100%", "-5%", "NaN%", "%", "9Ei0", "99999999999Gi"} {
		r := Reserve{set: true, bytes: 7}
		if err := r.Set(bad); err == nil || r.bytes != 7 {
			t.Errorf("%q: %+v, error %v", bad, r, err)
		}
	}
	if zero := (Reserve{}); zero.of(total) != 150<<30 || zero.String() != "15%" || zero.none() {
		t.Errorf("by default %d, %s", zero.of(total), zero.String())
	}
}

func TestOverlayUpper(t *testing.T) {
	const pod = `1 0 0:30 / / rw,relatime master:1 - overlay overlay rw,lowerdir=/c/snapshots/3/fs,upperdir=/c/snapshots/55/fs,workdir=/c/snapshots/55/work,uuid=on
2 1 0:31 / /proc rw,nosuid - proc proc rw
3 1 0:32 / /data rw - overlay overlay rw,lowerdir=/x,upperdir=/other/fs,workdir=/y
`
	for name, tc := range map[string]struct{ mounts, want string }{
		"a container's root":  {pod, "/c/snapshots/55/fs"},
		"a machine's root":    {"1 0 254:0 / / rw,relatime - ext4 /dev/vda rw\n" + strings.SplitN(pod, "\n", 2)[1], ""},
		"a read-only overlay": {"1 0 0:30 / / ro - overlay overlay ro,lowerdir=/a:/b\n", ""},
		"mounted over":        {pod + "9 1 0:40 / / rw - overlay overlay rw,upperdir=/top/fs\n", "/top/fs"},
		"nonsense":            {"\n1\n - \n1 0 0:30 / / rw - overlay\n", ""},
	} {
		path := filepath.Join(t.TempDir(), "mountinfo")
		if err := os.WriteFile(path, []byte(tc.mounts), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := overlayUpper(path); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
	if got := overlayUpper("/does/not/exist"); got != "" {
		t.Errorf("without a list: %q", got)
	}
}

// Where a plugin's directory is not to be seen nothing is said of it, rather than something wrong.
func TestInvisibleRootIsUnknown(t *testing.T) {
	dir := t.TempDir()
	for name, tc := range map[string]struct {
		path, containerdRoot string
		unknown              bool
	}{
		"seen":             {dir, "", false},
		"not there":        {"/does/not/exist", "", true},
		"a file":           {"/proc/self/mountinfo", "", true},
		"not told":         {"", "", true},
		"said by the user": {"/does/not/exist", dir, false},
		"said wrongly":     {"/does/not/exist", "/nor/does/this", true},
	} {
		i := &Importer{containerdRoot: tc.containerdRoot}
		d := &Disk{Roots: []string{tc.path}, seenAt: i.visible(root{path: tc.path}, nil)}
		if d.seenAt == "" {
			d.Unknown = "not visible"
		} else if err := d.look(Reserve{}); err != nil {
			d.Unknown = err.Error()
		}
		if (d.Unknown != "") != tc.unknown || (d.Total > 0) == tc.unknown {
			t.Errorf("%s: unknown %q, %d of %d bytes free", name, d.Unknown, d.Free, d.Total)
		}
	}
}

func TestRoom(t *testing.T) {
	const gi = 1 << 30
	for name, tc := range map[string]struct {
		disk Disk
		full bool
		says string
	}{
		"enough":             {Disk{Free: 20 * gi, Total: 100 * gi, Reserve: 15 * gi, Blobs: 1 * gi, Unpacked: 4 * gi}, false, ""},
		"a byte too little":  {Disk{Free: 20 * gi, Total: 100 * gi, Reserve: 15 * gi, Blobs: 1 * gi, Unpacked: 4*gi + 1}, true, "20 GiB free of 100 GiB, of which 15 GiB"},
		"below, and writing": {Disk{Free: 14 * gi, Total: 100 * gi, Reserve: 15 * gi}, true, "what is being written"},
		"no inodes":          {Disk{Free: 90 * gi, Total: 100 * gi, Inodes: Inodes{Free: 60, Total: 1000, Reserve: 50, Needed: 11}}, true, "60 inodes free of 1000"},
		"inodes enough":      {Disk{Free: 90 * gi, Total: 100 * gi, Inodes: Inodes{Free: 60, Total: 1000, Reserve: 50, Needed: 10}}, false, ""},
		"no fixed inodes":    {Disk{Free: 90 * gi, Total: 100 * gi, Inodes: Inodes{Needed: 10}}, false, ""},
		"unknown":            {Disk{Unknown: "not visible"}, false, ""},
	} {
		tc.disk.Roots = []string{"/var/lib/containerd"}
		err := tc.disk.room()
		if errors.Is(err, ErrInsufficientDisk) != tc.full || !strings.Contains(errText(err), tc.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What an earlier attempt left of a blob is on the disk already: the next one needs room for the rest only.
func TestKeptBytesTakeNoRoom(t *testing.T) {
	const size = 8 << 20
	b := build(t, single(layer("a", size)))
	n := newNode(t, "linux/amd64")
	req := wanted(owner)
	req.Keep = true
	src := blobOf(t, b, false)
	src.onBytes = func(int64) error {
		if src.read.Load() > size/2 {
			return errInjected
		}
		return nil
	}
	if _, err := n.Import(t.Context(), src, req); !errors.Is(err, errInjected) {
		t.Fatalf("error %v", err)
	}
	s, ctx, err := n.begin(n.in(t.Context()), req)
	if err != nil {
		t.Fatal(err)
	}
	a, err := openRandom(ctx, blobOf(t, b, false))
	if err != nil {
		t.Fatal(err)
	}
	p, err := n.Plan(ctx, a, req)
	if err != nil {
		t.Fatal(err)
	}
	kept, err := s.kept(ctx, p)
	if err != nil || kept < size/4 || kept > size*3/4 {
		t.Errorf("%d bytes are there, error %v", kept, err)
	}
	if err := s.end(ctx, nil); err != nil {
		t.Error(err)
	}
}
