package source_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tarlift/tarlift/internal/source"
)

func writeFile(t *testing.T, path string, data []byte) string {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFile(t *testing.T) {
	data := randomBytes(300_000)
	path := writeFile(t, filepath.Join(t.TempDir(), "a.tar"), data)
	b, err := source.OpenFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer closeBlob(t, b)
	if !b.RandomAccess() || b.Size() != 300_000 || b.Validator() == "" || b.String() != path || source.WhyStream(b) != "" {
		t.Errorf("random access %v, size %d, validator %q, name %q", b.RandomAccess(), b.Size(), b.Validator(), b)
	}
	wantSection(t, b, 0, -1, data)
	wantSection(t, b, 1000, 10, data[1000:1010])
	wantSection(t, b, 299_990, 100, data[299_990:])
	wantSection(t, b, 300_001, -1, nil)
	buf := make([]byte, 10)
	if n, err := b.ReadAt(buf, 5); n != 10 || err != nil || !bytes.Equal(buf, data[5:15]) {
		t.Errorf("ReadAt: %d, %v", n, err)
	}
	if n, err := b.ReadAt(buf, 299_995); n != 5 || err != io.EOF { //nolint:errorlint // io.ReaderAt gives it bare
		t.Errorf("ReadAt over the end: %d, %v", n, err)
	}
	if want := int64(300_000 + 10 + 10 + 4096 + 5); b.BytesRead() != want {
		t.Errorf("BytesRead is %d, want %d", b.BytesRead(), want)
	}
	if _, err := b.Section(t.Context(), -1, 1); !errors.Is(err, source.ErrInvalid) {
		t.Errorf("negative offset: %v", err)
	}
}

// Each of these happens after the file was opened, and half of it was read.
func TestFileChangesWhileRead(t *testing.T) {
	data := randomBytes(200_000)
	for name, tc := range map[string]struct {
		why    string
		change func(path string, before os.FileInfo) error
	}{
		"cut short": {"its end cannot be read", func(path string, _ os.FileInfo) error {
			return os.Truncate(path, 150_000)
		}},
		"grown": {"it was not complete", func(path string, _ os.FileInfo) error {
			return os.Truncate(path, 250_000)
		}},
		"rewritten": {"half of it is something else", func(path string, _ os.FileInfo) error {
			return os.WriteFile(path, make([]byte, 200_000), 0o600)
		}},
		"rewritten, its time set back": {"the time of change cannot be set", func(path string, before os.FileInfo) error {
			err := os.WriteFile(path, make([]byte, 200_000), 0o600)
			return errors.Join(err, os.Chtimes(path, before.ModTime(), before.ModTime()))
		}},
		"replaced by rename": {"the archive is another one now", func(path string, _ os.FileInfo) error {
			err := os.WriteFile(path+".new", data, 0o600)
			return errors.Join(err, os.Rename(path+".new", path))
		}},
		"removed": {"it is not to be imported any more", func(path string, _ os.FileInfo) error {
			return os.Remove(path)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			path := writeFile(t, filepath.Join(t.TempDir(), "a.tar"), data)
			before, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			b, err := source.OpenFile(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			defer closeBlob(t, b)
			r, err := b.Section(t.Context(), 0, -1)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			half := make([]byte, 100_000)
			if _, err := io.ReadFull(r, half); err != nil {
				t.Fatal(err)
			}
			time.Sleep(tick)
			if err := tc.change(path, before); err != nil {
				t.Fatal(err)
			}
			if rest, err := io.ReadAll(r); !errors.Is(err, source.ErrChanged) || len(rest) > 0 {
				t.Errorf("%d bytes, error %v: %s", len(rest), err, tc.why)
			}
			if n, err := b.ReadAt(make([]byte, 10), 5); !errors.Is(err, source.ErrChanged) || n > 0 {
				t.Errorf("ReadAt: %d bytes, error %v: %s", n, err, tc.why)
			}
		})
	}
}

// tick is longer than the clock of file systems needs to go on: 10 ms with CONFIG_HZ=100.
const tick = 20 * time.Millisecond

func TestFileCancelled(t *testing.T) {
	b, err := source.OpenFile(t.Context(), writeFile(t, filepath.Join(t.TempDir(), "a.tar"), randomBytes(1000)))
	if err != nil {
		t.Fatal(err)
	}
	defer closeBlob(t, b)
	ctx, cancel := context.WithCancel(t.Context())
	r, err := b.Section(ctx, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cancel()
	if _, err := io.ReadAll(r); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestOpenFileErrors(t *testing.T) {
	dir := t.TempDir()
	listener, err := net.Listen("unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if err := os.Symlink("loop", filepath.Join(dir, "loop")); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "file"), nil)
	for name, tc := range map[string]struct {
		path string
		want error
	}{
		"absent":            {filepath.Join(dir, "absent"), source.ErrNotFound},
		"below a file":      {filepath.Join(dir, "file", "x"), source.ErrNotFound},
		"directory":         {dir, source.ErrInvalid},
		"device":            {"/dev/zero", source.ErrInvalid},
		"socket":            {filepath.Join(dir, "socket"), source.ErrInvalid},
		"link to itself":    {filepath.Join(dir, "loop"), source.ErrInvalid},
		"empty":             {"", source.ErrInvalid},
		"name too long":     {filepath.Join(dir, strings.Repeat("x", 300)), source.ErrInvalid},
		"control character": {"a\x00b", source.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := source.OpenFile(t.Context(), tc.path); !errors.Is(err, tc.want) {
				t.Errorf("error %v, want %v", err, tc.want)
			}
		})
	}
}

func TestStream(t *testing.T) {
	data := randomBytes(600_000)
	b := source.OpenStream(bytes.NewReader(data), "standard input")
	defer closeBlob(t, b)
	if b.RandomAccess() || b.Size() != -1 || b.Validator() != "" || source.WhyStream(b) == "" {
		t.Error("a stream knows nothing of itself")
	}
	for _, bad := range [][2]int64{{1, -1}, {0, 5}} {
		if _, err := b.Section(t.Context(), bad[0], bad[1]); !errors.Is(err, source.ErrInvalid) {
			t.Errorf("section %v: %v", bad, err)
		}
	}
	wantSection(t, b, 0, -1, data)
	if b.BytesRead() != int64(len(data)) {
		t.Errorf("BytesRead is %d", b.BytesRead())
	}
	if _, err := b.Section(t.Context(), 0, -1); !errors.Is(err, source.ErrInvalid) {
		t.Errorf("a second time: %v", err)
	}
	if _, err := b.ReadAt(make([]byte, 1), 0); !errors.Is(err, source.ErrInvalid) {
		t.Errorf("ReadAt: %v", err)
	}
}

func TestStreamOfNamedPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	data := randomBytes(200_000)
	go func() {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Error(err)
		}
	}()
	b, err := source.OpenFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer closeBlob(t, b)
	if b.RandomAccess() {
		t.Error("random access to a pipe")
	}
	wantSection(t, b, 0, -1, data)
}

// A pipe whose writer is silent must not keep an interrupted import from ending.
func TestStreamCancelledWhileSilent(t *testing.T) {
	pr, pw := io.Pipe()
	defer pw.Close()
	b := source.OpenStream(pr, "standard input")
	defer closeBlob(t, b)
	ctx, cancel := context.WithCancel(t.Context())
	r, err := b.Section(ctx, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		pw.Write([]byte("one"))
		cancel()
	}()
	got, err := io.ReadAll(r)
	if !errors.Is(err, context.Canceled) || len(got) > 3 {
		t.Errorf("read %q, %v", got, err)
	}
}

func TestStreamBreaks(t *testing.T) {
	pr, pw := io.Pipe()
	b := source.OpenStream(pr, "standard input")
	defer closeBlob(t, b)
	go func() {
		pw.Write([]byte("one"))
		pw.CloseWithError(syscall.EIO)
	}()
	got, err := readSection(t, b, 0, -1)
	if !errors.Is(err, source.ErrUnavailable) || string(got) != "one" {
		t.Errorf("read %q, %v", got, err)
	}
}
