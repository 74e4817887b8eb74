package unpack

import (
	"context"
	"errors"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
)

// failing is a snapshotter that commits nothing on top of others.
type failing struct{ snapshots.Snapshotter }

func (failing) Commit(context.Context, string, string, ...snapshots.Opt) error {
	return errors.New("no commit")
}

// A layer that waits for one below it that cannot be committed does not wait for ever.
func TestLayersBelowFail(t *testing.T) {
	var failed error
	ctx, cancel := context.WithCancel(t.Context())
	s := newParallelUnpack(failing{}, []digest.Digest{"sha256:one", "sha256:two"}, func(err error) {
		failed = err
		cancel()
	})
	if err := s.Commit(ctx, "sha256:one", "extract-one"); err == nil || failed == nil {
		t.Errorf("error %v, the import's %v", err, failed)
	}
	if err := s.committed.Wait(ctx, "sha256:one"); !errors.Is(err, context.Canceled) {
		t.Errorf("who waits gets %v", err)
	}
}
