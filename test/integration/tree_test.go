package integration

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"bytes"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/image-spec/identity"

	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/test/cluster"
)

// Layers as tools write them by hand: the second names files without the directories that they are in, which have
// their modes from the first, and takes some away.
func layersOnEachOther() []builder.Layer {
	return []builder.Layer{
		{Compression: builder.Gzip, Files: []builder.File{
			{Name: "home/", Mode: 0o711}, {Name: "home/app/", Mode: 0o700}, builder.Noise("home/app/kept", 1, 100), builder.Noise("home/app/gone", 2, 100),
			{Name: "tmp/", Mode: 0o1777}, {Name: "opt/", Mode: 0o755}, {Name: "opt/old/", Mode: 0o750}, builder.Noise("opt/old/file", 3, 100),
		}},
		{Compression: builder.Gzip, Files: []builder.File{builder.Noise("home/app/new", 4, 100), builder.Noise("tmp/new", 5, 100), {Name: "home/app/.wh.gone"}}},
		{Compression: builder.Gzip, Files: []builder.File{{Name: "opt/old/.wh..wh..opq"}, builder.Noise("opt/old/new", 6, 100), {Name: ".wh.tmp"}}},
		{Compression: builder.Gzip, Files: []builder.File{builder.Noise("home/app/deep/er/new", 7, 100)}},
	}
}

// Unpacked images look as they do when containerd's client unpacks them by itself.
func TestUnpackedTree(t *testing.T) {
	b, err := builder.Archive{Images: []builder.Image{image(app, layersOnEachOther()...)}}.Build()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	data, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	top := identity.ChainID(slices.Clone(b.Images[0].Platforms[0].DiffIDs)).String()
	theirs := startRuntime(t, cluster.ContainerdOptions{})
	imported, err := theirs.Import(theirs.ctx, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if err := client.NewImage(theirs.Client, imported[0]).Unpack(theirs.ctx, "overlayfs"); err != nil {
		t.Fatal(err)
	}
	ours := startRuntime(t, cluster.ContainerdOptions{})
	if _, err := ours.importer(t).Import(t.Context(), open(t, fileOf(t, data)), request("1")); err != nil {
		t.Fatal(err)
	}
	want := theirs.tree(t, top)
	if len(want) < 9 {
		t.Fatalf("containerd's own tree: %q", want)
	}
	if diff := cmp.Diff(want, ours.tree(t, top)); diff != "" {
		t.Errorf("the tree is another (-containerd's +ours):\n%s", diff)
	}
}

// tree lists what a snapshot shows: path, mode, owner and content of all that is in it.
func (r *runtime) tree(t *testing.T, snapshot string) []string {
	t.Helper()
	s := r.SnapshotService("overlayfs")
	mounts, err := s.View(r.ctx, "look", snapshot)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	err = mount.WithTempMount(r.ctx, mounts, func(root string) error {
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
	if err := s.Remove(r.ctx, "look"); err != nil {
		t.Fatal(err)
	}
	return out
}
