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
	if want := int64(300_000 + 10 + 10 + 10 + 5); b.BytesRead() != want {
		t.Errorf("BytesRead is %d, want %d", b.BytesRead(), want)
	}
	if _, err := b.Section(t.Context(), -1, 1); !errors.Is(err, source.ErrInvalid) {
		t.Errorf("negative offset: %v", err)
	}
}

func TestFileChangesWhileRead(t *testing.T) {
	for name, tc := range map[string]struct {
		why    string
		change func(t *testing.T, path string)
	}{
		"cut short": {"its end cannot be read", func(t *testing.T, path string) {
			if err := os.Truncate(path, 100_000); err != nil {
				t.Fatal(err)
			}
		}},
		"rewritten": {"half of it is something else", func(t *testing.T, path string) {
			writeFile(t, path, make([]byte, 200_000))
			// The file system's clock may not have ticked since the file was made.
			if err := os.Chtimes(path, time.Time{}, time.Now().Add(time.Hour)); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			path := writeFile(t, filepath.Join(t.TempDir(), "a.tar"), randomBytes(200_000))
			b, err := source.OpenFile(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			defer closeBlob(t, b)
			tc.change(t, path)
			if _, err := readSection(t, b, 0, -1); !errors.Is(err, source.ErrChanged) {
				t.Errorf("error %v: %s", err, tc.why)
			}
		})
	}
}

// A file that is replaced by renaming another over it is still the one that was opened.
func TestFileReplacedByRename(t *testing.T) {
	dir, data := t.TempDir(), randomBytes(1000)
	path := writeFile(t, filepath.Join(dir, "a.tar"), data)
	b, err := source.OpenFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer closeBlob(t, b)
	if err := os.Rename(writeFile(t, filepath.Join(dir, "b.tar"), nil), path); err != nil {
		t.Fatal(err)
	}
	wantSection(t, b, 0, -1, data)
}

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

// Whoever writes the path of a spec must not read other files of the node with it.
func TestOpenUnder(t *testing.T) {
	outside := writeFile(t, filepath.Join(t.TempDir(), "secret"), []byte("secret"))
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "a.tar"), []byte("a"))
	writeFile(t, filepath.Join(dir, "sub", "b.tar"), []byte("b"))
	links := map[string]string{
		"inside": "sub/b.tar", "sub/up": "../a.tar", "absolute": outside, "within": filepath.Join(dir, "a.tar"),
		"out": "../" + filepath.Base(filepath.Dir(outside)) + "/secret", "dirout": "..", "dangling": "nothing",
	}
	for name, target := range links {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mknod(filepath.Join(dir, "null"), syscall.S_IFCHR|0o600, 1<<8|3); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		path string
		why  string
		want error
	}{
		"file":            {"a.tar", "what it is for", nil},
		"dotted":          {"./sub/../a.tar", "stays inside", nil},
		"below":           {"sub/b.tar", "any depth", nil},
		"link inside":     {"inside", "links may help order", nil},
		"link up inside":  {"sub/up", "does not leave", nil},
		"absent":          {"absent", "may still come", source.ErrNotFound},
		"dangling":        {"dangling", "may still come", source.ErrNotFound},
		"absolute":        {"/etc/passwd", "not below the directory", source.ErrInvalid},
		"up":              {"../secret", "leaves", source.ErrInvalid},
		"up and down":     {"sub/../../secret", "leaves", source.ErrInvalid},
		"link outside":    {"out", "leaves by a link", source.ErrInvalid},
		"absolute link":   {"absolute", "leaves by a link", source.ErrInvalid},
		"link home":       {"within", "absolute links are not followed at all", source.ErrInvalid},
		"directory link":  {"dirout/a.tar", "leaves by a link", source.ErrInvalid},
		"directory":       {"sub", "no archive", source.ErrInvalid},
		"itself":          {".", "no archive", source.ErrInvalid},
		"pipe":            {"pipe", "would block for ever", source.ErrInvalid},
		"device":          {"null", "opening one may do things", source.ErrInvalid},
		"empty":           {"", "names nothing", source.ErrInvalid},
		"NUL":             {"a.tar\x00", "names nothing", source.ErrInvalid},
		"below something": {"a.tar/x", "no directory", source.ErrNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := source.OpenUnder(dir, tc.path)
			if !errors.Is(err, tc.want) {
				t.Fatalf("error %v, want %v: %s", err, tc.want, tc.why)
			}
			if err == nil {
				defer closeBlob(t, b)
				if got, err := readSection(t, b, 0, -1); err != nil || len(got) != 1 {
					t.Errorf("read %q, %v", got, err)
				}
			}
		})
	}
	if _, err := source.OpenUnder(filepath.Join(dir, "no directory"), "a.tar"); !errors.Is(err, source.ErrNotFound) {
		t.Errorf("without a directory: %v", err)
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

// A pipe that nobody writes into must not keep an interrupted import from ending.
func TestNamedPipeCancelledWithoutWriter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := source.OpenFile(ctx, path); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	// This waits for the reader in the background, which then ends.
	w, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
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
