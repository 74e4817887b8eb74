package store

import (
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"

	"github.com/tarlift/tarlift/test/inprocess"
)

// A layer that takes longer to be unpacked than a lease can live, and the layers below it, stay.
func TestLeaseIsHandedOverWhileUnpacking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		layers, err := native.NewSnapshotter(filepath.Join(t.TempDir(), "native"))
		if err != nil {
			t.Fatal(err)
		}
		defer layers.Close()
		n := node{inprocess.NewWith(t, map[string]snapshots.Snapshotter{"native": layers})}
		ctx := inNamespace(t)
		session := open(t, n.process(), archiveA)
		s := session.Snapshotter(n.DB.Snapshotter("native"))
		d, data := blob("b", 1)
		pass := func() { // most of a lease's life, in which the session does something else
			time.Sleep(leaseExpiry * 2 / 3)
			if err := session.EnsureBlob(ctx, d, (&feed{data: data}).open); err != nil {
				t.Error(err)
			}
			n.Collect(t)
		}
		parent := ""
		for _, layer := range []string{"one", "two"} {
			key := snapshots.UnpackKeyPrefix + "-" + layer
			if _, err := s.Prepare(ctx, key, parent); err != nil {
				t.Fatal(err)
			}
			pass()
			pass()
			if err := s.Commit(ctx, layer, key); err != nil {
				t.Fatal(err)
			}
			pass()
			parent = layer
		}
		if leaseIDs, _, _ := n.left(t); len(leaseIDs) != 1 {
			t.Errorf("leases %q", leaseIDs)
		}
		if err := session.Close(ctx, false); err != nil {
			t.Error(err)
		}
		n.nothingLeft(t)
		if _, err := s.Stat(ctx, "one"); err == nil {
			t.Error("a snapshot is left")
		}
	})
}
