package integration

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"golang.org/x/sys/unix"

	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/test/cluster"
)

// A file of a layer, with what only a header says.
func owned(f builder.File, uid int) builder.File {
	f.Header = func(h *tar.Header) { h.Uid, h.Gid = uid, uid+1 }
	return f
}

func labelled(f builder.File, value string) builder.File {
	f.Header = func(h *tar.Header) { h.PAXRecords = map[string]string{"SCHILY.xattr.trusted.tarlift": value} }
	return f
}

func hardlink(name, to string) builder.File {
	return builder.File{Name: name, Header: func(h *tar.Header) { h.Typeflag, h.Linkname = tar.TypeLink, to }}
}

func layer(files ...builder.File) builder.Layer {
	return builder.Layer{Compression: builder.Gzip, Files: files}
}

func dir(name string, mode int64) builder.File { return builder.File{Name: name, Mode: mode} }

func file(name string) builder.File { return builder.Noise(name, uint64(len(name)), 100) }

func whiteout(name string) builder.File { return builder.File{Name: name} }

// lowest has what others change, none of it as a directory would be that comes into being by itself.
var lowest = layer(
	dir("home/", 0o711), owned(dir("home/app/", 0o700), 1000), file("home/app/kept"), file("home/app/gone"), dir("tmp/", 0o777), dir("opt/", 0o755),
	labelled(dir("opt/old/", 0o750), "old"), file("opt/old/file"), dir("usr/", 0o750), owned(dir("usr/lib/", 0o711), 7), builder.File{Name: "lib", Link: "usr/lib"},
)

// stacks are layers as `tar` writes them by hand, which name files without the directories that they are in, and as build
// tools write them, with all directories above what they hold.
var stacks = map[string][]builder.Layer{
	"handmade": {
		lowest,
		layer(file("home/app/new"), file("tmp/new"), whiteout("home/app/.wh.gone")),
		layer(whiteout("opt/old/.wh..wh..opq"), file("opt/old/new"), whiteout(".wh.tmp")),
		layer(file("home/app/deep/er/new")),
	},
	"built": {
		lowest,
		layer(dir("home/", 0o711), dir("home/app/", 0o700), file("home/app/new"), whiteout("home/app/.wh.gone"), whiteout(".wh.tmp")),
		layer(dir("opt/", 0o755), dir("opt/old/", 0o750), whiteout("opt/old/.wh..wh..opq"), file("opt/old/new")),
	},
	"one handmade between built ones": {
		lowest,
		layer(dir("home/", 0o711), owned(dir("home/app/", 0o500), 2), file("home/app/new")),
		layer(dir("opt/", 0o755), file("opt/first"), file("home/app/late")), // of which something was applied before
		layer(owned(dir("home/", 0o700), 3), file("home/newer")),
		layer(dir("tmp/", 0o777), file("tmp/last")),
	},
	"replaced": {
		lowest,
		layer(file("home"), dir("tmp/", 0o700), file("tmp/x"), whiteout("opt/.wh.old")), // opt is not listed
		layer(owned(dir("home/", 0o710), 4), file("home/new"), file("tmp/x/y"), dir("opt/", 0o711), file("opt/old")),
		layer(file("home/other"), file("opt/other")),
	},
	"above what is gone": {
		lowest,
		layer(whiteout(".wh.home"), dir("opt/", 0o755), whiteout("opt/.wh.old")),
		layer(file("home/new"), file("opt/old/new")),
	},
	"deep above what is gone": { // which containerd refuses
		lowest,
		layer(whiteout(".wh.home")),
		layer(file("home/app/new")),
	},
	"links": {
		lowest,
		layer(dir("usr/", 0o750), dir("usr/lib/", 0o711), file("usr/lib/one"), hardlink("usr/lib/two", "usr/lib/one"), hardlink("three", "usr/lib/one")),
		layer(file("lib/through")), // beside the link, as nothing of it is here
		layer(builder.File{Name: "home", Link: "usr"}, file("home/lib/through")),
	},
	"root": {
		layer(owned(dir("./", 0o700), 5), file("a")),
		layer(labelled(dir("./", 0o711), "root"), dir("./b/", 0o711), file("./b/c")),
		layer(file("./b/d"), dir("../e/", 0o700), file("../e/f")),
	},
}

// Unpacked images look as they do when containerd's client unpacks them by itself, one layer on top of the other.
func TestUnpackedTree(t *testing.T) {
	theirs, ours := startRuntime(t, cluster.ContainerdOptions{}), startRuntime(t, cluster.ContainerdOptions{})
	i := ours.importer(t)
	for name, layers := range stacks {
		t.Run(name, func(t *testing.T) {
			// Each has its own name: containerd's client loses layers of former images that are collected while it looks at them.
			ref := "tree.example/" + strings.ReplaceAll(name, " ", "-") + ":1"
			b, data := built(t, builder.Archive{Images: []builder.Image{image(ref, layers...)}})
			imported, err := theirs.Import(theirs.ctx, bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			theirErr := client.NewImage(theirs.Client, imported[0]).Unpack(theirs.ctx, "overlayfs")
			_, err = i.Import(t.Context(), open(t, fileOf(t, data)), importer.Request{Unpack: true, Replace: true})
			if (theirErr == nil) != (err == nil) {
				t.Fatalf("containerd's error: %v, ours: %v", theirErr, err)
			}
			if err != nil {
				return
			}
			top := identity.ChainID(slices.Clone(b.Images[0].Platforms[0].DiffIDs)).String()
			want := theirs.tree(t, top)
			if len(want) < 4 {
				t.Fatalf("containerd's own tree: %q", want)
			}
			if diff := cmp.Diff(want, ours.tree(t, top)); diff != "" {
				t.Errorf("another tree (-containerd's +ours):\n%s", diff)
			}
		})
	}
}

// A layer that needs nothing of those below it is applied before they are there.
func TestLayersAreAppliedBeforeThoseBelow(t *testing.T) {
	r := startRuntime(t, cluster.ContainerdOptions{})
	b, data := built(t, builder.Archive{Images: []builder.Image{image(app, lowest, stacks["built"][1])}})
	p := b.Images[0].Platforms[0]
	src := holding(t, fileOf(t, data), p.Layers[0].Digest)
	done := make(chan error, 1)
	go func() {
		_, err := r.importer(t).Import(t.Context(), src, request("1"))
		done <- err
	}()
	chain := identity.ChainIDs(slices.Clone(p.DiffIDs))
	for deadline := time.Now().Add(20 * time.Second); r.filled(t, chain[1]) == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no layer was applied early")
		}
	}
	close(src.release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	r.snapshot(t, "overlayfs", chain[1])
}

// filled is how many inodes a layer's snapshot has below its directory that is not committed yet.
func (r *runtime) filled(t *testing.T, chain digest.Digest) (inodes int64) {
	t.Helper()
	s := r.SnapshotService("overlayfs")
	err := s.Walk(r.ctx, func(ctx context.Context, i snapshots.Info) error {
		if i.Kind != snapshots.KindActive || !strings.HasSuffix(i.Name, chain.String()) {
			return nil
		}
		u, err := s.Usage(ctx, i.Name)
		inodes = max(inodes, u.Inodes-1)
		return err
	})
	if err != nil && !errdefs.IsNotFound(err) {
		t.Fatal(err)
	}
	return inodes
}

// tree lists what a snapshot shows: path, mode, owner, number of links, an attribute and content of all that is in it.
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
			stat := info.Sys().(*syscall.Stat_t)
			label := make([]byte, 16)
			n, err := unix.Lgetxattr(path, "trusted.tarlift", label)
			if err != nil && !errors.Is(err, unix.ENODATA) {
				return err
			}
			out = append(out, fmt.Sprintf("%s %s %d:%d %d %q %x", path[len(root):], info.Mode(), stat.Uid, stat.Gid, stat.Nlink, label[:max(n, 0)], sha256.Sum256(content)))
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
