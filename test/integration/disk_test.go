package integration

import (
	"bytes"
	"compress/gzip"
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/internal/source"
	"github.com/tarlift/tarlift/test/cluster"
)

// smallDisk is too small for a large image, and has room for a small one.
const smallDisk = 64 << 20

// startOnDisk starts a containerd whose root is a file system of its own.
func startOnDisk(t *testing.T, size int64) (*runtime, *cluster.Disk) {
	t.Helper()
	disk, err := cluster.NewDisk(t.Context(), t.TempDir(), size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := disk.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return startRuntime(t, cluster.ContainerdOptions{Root: disk.Dir}), disk
}

// free is how many bytes of a disk are free.
func free(t *testing.T, d *cluster.Disk) (free, total int64) {
	t.Helper()
	var s unix.Statfs_t
	if err := unix.Statfs(d.Dir, &s); err != nil {
		t.Fatal(err)
	}
	return int64(s.Bavail) * s.Bsize, int64(s.Blocks) * s.Bsize
}

// incompressible is an image that nothing makes smaller.
func incompressible(name string, size int64) builder.Archive {
	return builder.Archive{Images: []builder.Image{{Names: []string{name}, Platforms: []builder.PlatformImage{{
		Platform: builder.Platform("linux/amd64"),
		Layers:   []builder.Layer{{Compression: builder.Gzip, Files: []builder.File{builder.Noise(name, 1, size)}}},
	}}}}}
}

// stream hides a size and its compression from the plan: what does not fit shows while it is written.
func stream(t *testing.T, data []byte) source.Blob {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return source.OpenStream(&b, "a stream")
}

// A disk that fills up in the middle of an import is as it was before within two seconds, and what was there is untouched.
func TestFullDisk(t *testing.T) {
	r, disk := startOnDisk(t, smallDisk)
	r.bystander(t)
	large := tarOf(t, incompressible("large.example/app:1", smallDisk))
	for name, tc := range map[string]struct {
		reserve string
		src     func() source.Blob
		begins  bool // it is found out only when something has been written
		keeps   int64
	}{
		"no reserve: the disk is full":  {"0", func() source.Blob { return open(t, fileOf(t, large)) }, true, 0},
		"streamed: the disk is full":    {"0", func() source.Blob { return stream(t, large) }, true, 0},
		"the plan does not fit":         {"15%", func() source.Blob { return open(t, fileOf(t, large)) }, false, 15},
		"streamed: the reserve is used": {"60%", func() source.Blob { return stream(t, large) }, true, 60},
	} {
		t.Run(name, func(t *testing.T) {
			before := r.state(t)
			was, total := free(t, disk)
			req := request("large")
			req.Keep = true
			lowest := total
			written := int64(0)
			req.Progress = func(importer.Progress) {
				now, _ := free(t, disk)
				lowest, written = min(lowest, now), max(written, was-now)
			}
			_, err := r.importerWith(t, importer.Options{Reserve: reserve(t, tc.reserve)}).Import(t.Context(), tc.src(), req)
			ended := time.Now()
			if !errors.Is(err, importer.ErrInsufficientDisk) {
				t.Fatalf("error %v", err)
			}
			t.Log(err)
			if tc.keeps > 0 && (!strings.Contains(err.Error(), disk.Dir) || !strings.Contains(err.Error(), "MiB free of")) {
				t.Errorf("the message names neither place nor size: %v", err)
			}
			if tc.begins != (written > 1<<20) {
				t.Errorf("%d bytes were written", written)
			}
			if lowest < total*tc.keeps/200 { // some time passes between two looks
				t.Errorf("%d of %d bytes were left free", lowest, total)
			}
			for {
				if now, _ := free(t, disk); now >= was-1<<20 {
					break
				} else if time.Since(ended) > 2*time.Second {
					t.Fatalf("%d bytes are free, %d were before", now, was)
				}
				time.Sleep(10 * time.Millisecond)
			}
			unchanged(t, before, r.state(t))
			small := incompressible("small.example/app:1", 100<<10)
			if _, err := r.importerWith(t, importer.Options{Reserve: reserve(t, "0")}).Import(t.Context(), open(t, fileOf(t, tarOf(t, small))), request("small")); err != nil {
				t.Errorf("the next import: %v", err)
			}
		})
	}
}

// Images that are there need no room: a node below its reserve still says that they are complete.
func TestFullDiskNeedsNoRoomForWhatIsThere(t *testing.T) {
	r, disk := startOnDisk(t, smallDisk)
	data := tarOf(t, incompressible("app.example/app:1", 5<<20))
	if _, err := r.importer(t).Import(t.Context(), open(t, fileOf(t, data)), request("1")); err != nil {
		t.Fatal(err)
	}
	i := r.importerWith(t, importer.Options{Reserve: reserve(t, "99%")})
	if _, err := i.Import(t.Context(), open(t, fileOf(t, data)), request("1")); err != nil {
		t.Error(err)
	}
	if _, err := i.Import(t.Context(), open(t, fileOf(t, tarOf(t, incompressible("new.example/app:1", 1<<20)))), request("2")); !errors.Is(err, importer.ErrInsufficientDisk) {
		t.Errorf("%s: new content below the reserve: error %v", disk.Dir, err)
	}
}
