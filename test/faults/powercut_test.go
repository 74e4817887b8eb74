package faults

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/test/cluster"
)

// A machine that loses its power has every image that was acknowledged, and no name of one that is not whole.
func TestPowerIsCut(t *testing.T) {
	disk, err := cluster.NewDisk(t.Context(), t.TempDir(), cluster.DiskSize)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := disk.Unmount(); err != nil {
			t.Error(err)
		}
	})
	former := application(1)
	s := newScenario(t, "power cut under agent import", newRig(t, cluster.ContainerdOptions{Root: disk.Dir}), application(2), &former)
	dice := dice(t)
	for k := range pick(8, 120) {
		// One in three is cut when it has been acknowledged.
		c := &crash{after: time.Duration(dice.Int64N(int64(s.usual * 3 / 2)))}
		s.restore(t)
		s.flush(t)
		p := s.blackout(t, disk, s.client(t, s.material.path), c)
		s.kills++
		s.aftermath(t, c, p)
		s.sound(t, c, "right after the power cut")
		s.attempts(t, c, k%2 == 0)
		s.sound(t, c, "after the next attempts")
	}
	damaged, cuts := 0, pick(2, 10)
	for range cuts {
		s.restore(t)
		s.flush(t)
		if p := s.blackout(t, disk, ctrImport(t, s.material.path), &crash{after: patience}); p.code() != 0 {
			t.Errorf("ctr: %s", p.err.String())
		}
		if len(s.rig.incomplete(t))+len(s.damaged(t)) > 0 {
			damaged++
		}
		s.scrub(t)
		s.reset(t, func(images.Image) bool { return false })
	}
	s.control = fmt.Sprintf("ctr acknowledged %d times: damaged %d", cuts, damaged)
	if damaged == 0 {
		t.Errorf("the control shows nothing: %s", s.control)
	}
}

// flush makes what there is outlast a power cut.
func (s *scenario) flush(t *testing.T) {
	t.Helper()
	root, err := os.Open(s.root)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := unix.Syncfs(int(root.Fd())); err != nil {
		t.Fatal(err)
	}
}

// blackout runs an import until it has ended or a time has come, cuts the power, and starts containerd again.
func (s *scenario) blackout(t *testing.T, disk *cluster.Disk, run program, c *crash) *process {
	t.Helper()
	p := start(t, run(s.ContainerdAddress))
	select {
	case <-p.ended:
	case <-time.After(c.after):
	}
	if err := disk.CutPower(); err != nil {
		t.Fatal(err)
	}
	p.kill()
	s.Containerd.Kill()
	if err := errors.Join(disk.Unmount(), disk.Mount(t.Context())); err != nil {
		t.Fatal(err)
	}
	s.revive(t)
	return p
}

// sound reads every byte that a name leads to, and every blob.
func (s *scenario) sound(t *testing.T, c fmt.Stringer, when string) {
	t.Helper()
	for _, d := range s.damaged(t) {
		s.blame(t, &s.row.incomplete, c, "%s, damaged: %s", when, d)
	}
}

func (s *scenario) damaged(t *testing.T) (out []string) {
	t.Helper()
	err := s.ContentStore().Walk(s.ctx, func(i content.Info) error {
		data, err := content.ReadBlob(s.ctx, s.ContentStore(), ocispec.Descriptor{Digest: i.Digest, Size: i.Size})
		if err != nil || digest.FromBytes(data) != i.Digest {
			out = append(out, fmt.Sprintf("blob %s of %d bytes: error %v", i.Digest, len(data), err))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []*material{s.material, s.former, s.other} {
		for name, files := range m.files {
			img, err := s.GetImage(s.ctx, name)
			if errdefs.IsNotFound(err) || err == nil && img.Target().Digest != m.targets[name] {
				continue
			}
			if err == nil {
				err = s.look(img, files)
			}
			if err != nil {
				out = append(out, fmt.Sprintf("%s: %v", name, err))
			}
		}
	}
	return out
}

// look reads the files that a container of an image would find.
func (s *scenario) look(img client.Image, files []builder.File) (err error) {
	diffIDs, err := img.RootFS(s.ctx)
	if err != nil {
		return err
	}
	ctx, release, err := s.WithLease(s.ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release(s.ctx)) }()
	mounts, err := s.SnapshotService("overlayfs").View(ctx, "look", identity.ChainID(slices.Clone(diffIDs)).String())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.SnapshotService("overlayfs").Remove(ctx, "look")) }()
	return mount.WithReadonlyTempMount(ctx, mounts, func(root string) error {
		for _, f := range files {
			r, err := f.Open()
			if err != nil {
				return err
			}
			want, err := io.ReadAll(r)
			if err != nil {
				return err
			}
			got, err := os.ReadFile(filepath.Join(root, f.Name))
			if err != nil || !bytes.Equal(got, want) {
				return fmt.Errorf("%s has %d bytes that are not the %d it should have: %w", f.Name, len(got), len(want), err)
			}
		}
		return nil
	})
}
