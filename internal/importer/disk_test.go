package importer

import (
	"errors"
	"testing"
)

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
	attempt, ctx, err := n.begin(n.in(t.Context()), src, req)
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
	kept, err := attempt.kept(ctx, p)
	if err != nil || kept < size/4 || kept > size*3/4 {
		t.Errorf("%d bytes are there, error %v", kept, err)
	}
	if err := attempt.end(ctx, nil); err != nil {
		t.Error(err)
	}
}
