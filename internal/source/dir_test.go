package source_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tarlift/tarlift/internal/source"
)

func makeDir(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func openDir(t *testing.T, dir string) source.Blob {
	t.Helper()
	b, err := source.OpenDir(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// A directory is a tar that any reader takes, with all of its files, whatever their names and sizes.
func TestDirIsTar(t *testing.T) {
	want := map[string]string{
		"oci-layout":                               "{}",
		"blobs/sha256/empty":                       "",
		"blobs/sha256/block":                       strings.Repeat("b", 512),
		"blobs/sha256/odd":                         strings.Repeat("0123456789", 10_001),
		"blobs/sha512/" + strings.Repeat("c", 128): "a name that needs an extended header",
	}
	dir := makeDir(t, want)
	if err := os.Symlink("oci-layout", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	b := openDir(t, dir)
	if !b.RandomAccess() || b.Remote() || b.String() != dir {
		t.Errorf("random access %t, remote %t, name %q", b.RandomAccess(), b.Remote(), b)
	}
	rc, err := b.Section(t.Context(), 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(rc)
	if err != nil || int64(len(data)) != b.Size() {
		t.Fatalf("%d bytes of %d: %v", len(data), b.Size(), err)
	}
	got, links := map[string]string{}, 0
	tr := tar.NewReader(bytes.NewReader(data))
	last := ""
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Name <= last {
			t.Errorf("%q is behind %q", h.Name, last)
		}
		last = h.Name
		text, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeSymlink {
			links++
			continue
		}
		got[h.Name] = string(text)
	}
	if diff := cmp.Diff(want, got); diff != "" || links != 1 {
		t.Errorf("%d links (-want +got):\n%s", links, diff)
	}
	if err := iotest.TestReader(io.NewSectionReader(b, 0, b.Size()), data); err != nil {
		t.Error(err)
	}
}

// What a directory may not be, and what must not happen to it.
func TestDirErrors(t *testing.T) {
	file := filepath.Join(makeDir(t, map[string]string{"f": ""}), "f")
	fifo := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(fifo, "p"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		path string
		want error
	}{
		"nothing":     {file + "-not", source.ErrNotFound},
		"a file":      {file, source.ErrInvalid},
		"with a FIFO": {fifo, source.ErrInvalid},
	} {
		if _, err := source.OpenDir(t.Context(), tc.path); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := source.OpenDir(canceled, filepath.Dir(file)); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	for name, change := range map[string]func(path string) error{
		"removed":  os.Remove,
		"longer":   func(path string) error { return os.WriteFile(path, []byte("longer than before"), 0o600) },
		"replaced": func(path string) error { return os.WriteFile(path, []byte("befOre"), 0o600) },
	} {
		dir := makeDir(t, map[string]string{"f": "before"})
		past := time.Unix(1000, 0)
		if err := os.Chtimes(filepath.Join(dir, "f"), past, past); err != nil {
			t.Fatal(err)
		}
		b := openDir(t, dir)
		if err := change(filepath.Join(dir, "f")); err != nil {
			t.Fatal(err)
		}
		if _, err := b.ReadAt(make([]byte, 6), 512); !errors.Is(err, source.ErrChanged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// An empty directory is an empty tar.
func TestEmptyDir(t *testing.T) {
	b := openDir(t, t.TempDir())
	data := make([]byte, 2000)
	n, err := b.ReadAt(data, 0)
	if n != 1024 || !errors.Is(err, io.EOF) || !bytes.Equal(data, make([]byte, 2000)) {
		t.Errorf("%d bytes: %v", n, err)
	}
}
