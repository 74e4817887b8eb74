package importer

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/tarlift/tarlift/internal/source"
)

// What is done never passes the total and ends there, in a stream and in what follows it. The first bytes of a
// compressed file are read twice.
func TestDoneEndsAtTheTotal(t *testing.T) {
	plain, err := build(t, twoImages()).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		data       []byte
		compressed bool // the archive: it is read as a stream
	}{
		"plain": {plain, false},
		"gzip":  {gzipped(t, plain), true},
		"zstd":  {zstandard(t, plain), true},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "archive.tar")
			if err := os.WriteFile(path, tc.data, 0o600); err != nil {
				t.Fatal(err)
			}
			src, err := source.OpenFile(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			defer src.Close()
			whole := int64(len(tc.data))
			var stream, last Progress
			req := wanted(owner)
			req.Progress = func(p Progress) {
				if p.Total > 0 && p.Done+p.Skipped > p.Total {
					t.Errorf("%+v is more than the total", p)
				}
				if p.Phase == PhaseTransferring && p.Total == whole {
					stream = p
				}
				last = p
			}
			if _, err := newNode(t, "linux/amd64").Import(t.Context(), src, req); err != nil {
				t.Fatal(err)
			}
			if (stream.Total > 0) != tc.compressed || stream.Done != stream.Total {
				t.Errorf("the stream of %d bytes ended with %+v", whole, stream)
			}
			if last.Total == 0 || last.Done+last.Skipped != last.Total {
				t.Errorf("ended with %+v", last)
			}
		})
	}
}
