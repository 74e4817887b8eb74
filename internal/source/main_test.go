package source_test

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"

	"go.uber.org/goleak"

	"github.com/tarlift/tarlift/internal/source"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// randomBytes gives n bytes that are the same in every run and nowhere repeat.
func randomBytes(n int) []byte {
	data := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{1})
	rng.Read(data) //nolint:errcheck // never fails
	return data
}

// readSection reads a section to its end.
func readSection(t *testing.T, b source.Blob, off, n int64) ([]byte, error) {
	t.Helper()
	r, err := b.Section(t.Context(), off, n)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// wantSection checks that a section holds exactly want.
func wantSection(t *testing.T, b source.Blob, off, n int64, want []byte) {
	t.Helper()
	got, err := readSection(t, b, off, n)
	if err != nil {
		t.Fatalf("section %d+%d: %v", off, n, err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("section %d+%d: %d bytes that differ from the %d that lie there", off, n, len(got), len(want))
	}
}

func closeBlob(t *testing.T, b source.Blob) {
	t.Helper()
	if err := b.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}
