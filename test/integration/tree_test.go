package integration

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/image-spec/identity"

	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/test/cluster"
)

// handmadeLayers are as `tar` writes them by hand: the later ones name files without the directories that they are in,
// which have their modes from the first, and take some away.
var handmadeLayers = []builder.Layer{
	{Compression: builder.Gzip, Files: []builder.File{
		{Name: "home/", Mode: 0o711}, {Name: "home/app/", Mode: 0o700}, builder.Noise("home/app/kept", 1, 100), builder.Noise("home/app/gone", 2, 100),
		{Name: "tmp/", Mode: 0o777}, {Name: "opt/", Mode: 0o755}, {Name: "opt/old/", Mode: 0o750}, builder.Noise("opt/old/file", 3, 100),
	}},
	{Compression: builder.Gzip, Files: []builder.File{builder.Noise("home/app/new", 4, 100), builder.Noise("tmp/new", 5, 100), {Name: "home/app/.wh.gone"}}},
	{Compression: builder.Gzip, Files: []builder.File{{Name: "opt/old/.wh..wh..opq"}, builder.Noise("opt/old/new", 6, 100), {Name: ".wh.tmp"}}},
	{Compression: builder.Gzip, Files: []builder.File{builder.Noise("home/app/deep/er/new", 7, 100)}},
}

// builtLayers are as build tools write them: with all directories above what they hold.
var builtLayers = []builder.Layer{
	handmadeLayers[0],
	{Compression: builder.Gzip, Files: []builder.File{
		{Name: "home/", Mode: 0o711}, {Name: "home/app/", Mode: 0o700}, builder.Noise("home/app/new", 4, 100), {Name: "home/app/.wh.gone"}, {Name: ".wh.tmp"},
	}},
	{Compression: builder.Gzip, Files: []builder.File{{Name: "opt/"}, {Name: "opt/old/", Mode: 0o750}, {Name: "opt/old/.wh..wh..opq"}, builder.Noise("opt/old/new", 6, 100)}},
}

// Unpacked images look as they do when containerd's client unpacks them by itself. Side by side, this is so for layers
// with all their directories only: which is why that has to be asked for.
func TestUnpackedTree(t *testing.T) {
	for name, tc := range map[string]struct {
		layers   []builder.Layer
		parallel bool
		same     bool
	}{
		"handmade":               {handmadeLayers, false, true},
		"built":                  {builtLayers, false, true},
		"built, side by side":    {builtLayers, true, true},
		"handmade, side by side": {handmadeLayers, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			b, data := built(t, builder.Archive{Images: []builder.Image{image(app, tc.layers...)}})
			theirs, ours := startRuntime(t, cluster.ContainerdOptions{}), startRuntime(t, cluster.ContainerdOptions{})
			imported, err := theirs.Import(theirs.ctx, bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			if err := client.NewImage(theirs.Client, imported[0]).Unpack(theirs.ctx, "overlayfs"); err != nil {
				t.Fatal(err)
			}
			i := ours.importerWith(t, importer.Options{ParallelUnpack: tc.parallel})
			if _, err := i.Import(t.Context(), open(t, fileOf(t, data)), request("1")); err != nil {
				t.Fatal(err)
			}
			top := identity.ChainID(slices.Clone(b.Images[0].Platforms[0].DiffIDs)).String()
			want := theirs.tree(t, top)
			if len(want) < 8 {
				t.Fatalf("containerd's own tree: %q", want)
			}
			if diff := cmp.Diff(want, ours.tree(t, top)); (diff == "") != tc.same {
				t.Errorf("the same tree: %v (-containerd's +ours):\n%s", diff == "", diff)
			}
		})
	}
}

// tree lists what a snapshot shows: path, mode, owner and content of all that is in it.
func (r *runtime) tree(t *testing.T, snapshot string) []string {
	t.Helper()
	// Without a lease the garbage collector may take the view while it is mounted.
	ctx, release, err := r.WithLease(r.ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := release(r.ctx); err != nil {
			t.Error(err)
		}
	}()
	s := r.SnapshotService("overlayfs")
	mounts, err := s.View(ctx, "look", snapshot)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	err = mount.WithTempMount(ctx, mounts, func(root string) error {
		return filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := e.Info()
			if err != nil {
				return err
			}
			var content []byte
			if e.Type().IsRegular() {
				if content, err = os.ReadFile(path); err != nil {
					return err
				}
			}
			owner := info.Sys().(*syscall.Stat_t)
			out = append(out, fmt.Sprintf("%s %s %d:%d %x", path[len(root):], info.Mode(), owner.Uid, owner.Gid, sha256.Sum256(content)))
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(ctx, "look"); err != nil {
		t.Fatal(err)
	}
	return out
}
