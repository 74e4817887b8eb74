package importer

import (
	"errors"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/image-spec/identity"
)

// A snapshot that a killed process had begun to fill has a name that nobody finds again: the next process does not hold it,
// so that it goes with the killed one's lease. What is committed is held by the next one.
func TestKilledExtractionIsNotAdopted(t *testing.T) {
	begin := make(chan struct{})
	close(begin)
	n, snapshotter := newUnpackingNode(t, &hashingApplier{begin: begin})
	b := build(t, single(layer("a", 8<<20), layer("b", 24<<20)))
	req := wanted(owner)
	req.Unpack, req.Keep = true, true
	fail := func() (leases []string) {
		t.Helper()
		src := blobOf(t, b, false)
		src.onBytes = func(int64) error {
			if src.read.Load() > 4<<20 {
				return errInjected
			}
			return nil
		}
		if _, err := n.Import(t.Context(), src, req); !errors.Is(err, errInjected) {
			t.Fatalf("error %v", err)
		}
		return n.state(t).Leases
	}
	kept := fail()[0]
	ctx := leases.WithLease(n.in(t.Context()), kept)
	chain := identity.ChainID(b.Images[0].Platforms[0].DiffIDs[:1]).String()
	begun, done := snapshots.UnpackKeyPrefix+"-1-begun "+chain, snapshots.UnpackKeyPrefix+"-2-done "+chain
	for _, key := range []string{begun, done} {
		if _, err := snapshotter.Prepare(ctx, key, ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := snapshotter.Commit(ctx, chain, done); err != nil {
		t.Fatal(err)
	}
	n.connect() // the next process
	if again := fail(); len(again) != 2 || !slices.Contains(again, kept) {
		t.Fatalf("lease %s, then %s", kept, again)
	}
	if err := n.services.leases.Delete(n.in(t.Context()), leases.Lease{ID: kept}); err != nil { // it expires
		t.Fatal(err)
	}
	if _, err := n.db.GarbageCollect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := snapshotter.Stat(n.in(t.Context()), begun); !errdefs.IsNotFound(err) {
		t.Errorf("the snapshot that was begun: %v", err)
	}
	if _, err := snapshotter.Stat(n.in(t.Context()), chain); err != nil {
		t.Errorf("the snapshot that was committed: %v", err)
	}
}
