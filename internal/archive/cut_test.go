package archive_test

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/builder"
)

// TestNoTarIsCutUnnoticed cuts an archive everywhere. Only what lacks no more
// than the end marker may pass, and it must be marked incomplete.
func TestNoTarIsCutUnnoticed(t *testing.T) {
	good := bytesOf(t, simple(builder.First("oci-layout", "index.json")))
	end := len(good) - 1024
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			for n := 101; n < len(good); n += 37 {
				checkCut(t, mode.tree, good, n, end)
			}
			for n := 512; n < len(good); n += 512 { // clean ends for archive/tar
				checkCut(t, mode.tree, good, n, end)
			}
		})
	}
}

// checkCut opens the first n bytes of an archive whose last member ends at end.
func checkCut(t *testing.T, tree func(context.Context, []byte) (*archive.Tree, error), data []byte, n, end int) {
	t.Helper()
	err := open(t.Context(), tree, data[:n])
	switch {
	case n < end:
		if !errors.Is(err, archive.ErrTruncated) {
			t.Errorf("cut at %d: error is %v, want truncated", n, err)
		}
	case n == end:
		if err != nil {
			t.Errorf("without its end marker: %v", err)
		}
		if got, err := tree(t.Context(), data[:n]); err != nil || got.Complete() {
			t.Errorf("without its end marker: complete, or %v", err)
		}
	case n < end+512:
		if !errors.Is(err, archive.ErrTruncated) {
			t.Errorf("cut at %d in the end marker: error is %v, want truncated", n, err)
		}
	default:
		if err != nil {
			t.Errorf("cut at %d in the end marker's second block: %v", n, err)
		}
	}
}

// TestCutHybridIsNotTakenForDocker: without the end a hybrid archive could lack
// only oci-layout, and would become another image by manifest.json.
func TestCutHybridIsNotTakenForDocker(t *testing.T) {
	a := simple(builder.Last("oci-layout"))
	a.Format = builder.Hybrid
	data := bytesOf(t, a)
	cut := data[:len(data)-1024-1024] // end marker, and oci-layout with its header
	for _, mode := range modes {
		wantError(t, open(t.Context(), mode.tree, cut), archive.ErrTruncated)
	}
}

func mustOpen(t *testing.T, f builder.File) io.Reader {
	t.Helper()
	r, err := f.Open()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

var errSource = errors.New("the source's own error")

// failingAt fails from a byte on.
type failingAt struct {
	bytesAt
	from int64
}

func (f *failingAt) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.from {
		return 0, errSource
	}
	return f.bytesAt.ReadAt(p, off)
}

// TestSourceErrorsComeThrough: a connection that breaks is not a bad archive.
func TestSourceErrorsComeThrough(t *testing.T) {
	data := bytesOf(t, simple())
	for n := int64(1); n < int64(len(data))-1024; n += 211 {
		r := &failingAt{*atBytes(data), n}
		_, err := archive.ReadTree(t.Context(), r, r.size)
		wantError(t, err, errSource)
		_, err = archive.StreamTree(t.Context(), io.NewSectionReader(r, 0, r.size), newStore())
		wantError(t, err, errSource)
	}
}

func TestCancelledContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, mode := range modes {
		_, err := mode.tree(ctx, bytesOf(t, simple()))
		wantError(t, err, context.Canceled)
	}
}
