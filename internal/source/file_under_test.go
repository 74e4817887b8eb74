package source_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tarlift/tarlift/internal/source"
	"github.com/tarlift/tarlift/test/userns"
)

// layOut makes an archive directory with all that must and must not be opened below it.
func layOut(t *testing.T) (dir, outside string) {
	t.Helper()
	outside = writeFile(t, filepath.Join(t.TempDir(), "secret"), []byte("secret"))
	dir = t.TempDir()
	writeFile(t, filepath.Join(dir, "a.tar"), []byte("a"))
	if err := os.MkdirAll(filepath.Join(dir, "sub", "deeper"), 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "sub", "b.tar"), []byte("b"))
	writeFile(t, filepath.Join(dir, "sub", "deeper", "c.tar"), []byte("c"))
	if err := os.Link(filepath.Join(dir, "sub", "b.tar"), filepath.Join(dir, "hard.tar")); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{
		"inside": "sub/b.tar", "sub/up": "../a.tar", "absolute": outside, "within": filepath.Join(dir, "a.tar"),
		"out": "../" + filepath.Base(filepath.Dir(outside)) + "/secret", "dirout": "..", "dangling": "nothing",
		"dirin": "sub", "sub/magic": "/proc/self/root", "..data": "sub", "loop": "loop",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir, outside
}

// Whoever writes the path of a spec must not read other files of the node with it.
func TestOpenUnder(t *testing.T) {
	dir, _ := layOut(t)
	for name, tc := range map[string]struct {
		path string
		why  string
		want error
	}{
		"file":                {"a.tar", "what it is for", nil},
		"dotted":              {"./sub/../a.tar", "stays inside", nil},
		"below":               {"sub/b.tar", "any depth", nil},
		"further below":       {"sub//deeper/c.tar", "any depth", nil},
		"hard link":           {"hard.tar", "a file as any other", nil},
		"absent":              {"absent", "may still come", source.ErrNotFound},
		"in absent directory": {"absent/a.tar", "may still come", source.ErrNotFound},
		"below something":     {"a.tar/x", "no directory", source.ErrNotFound},
		"absolute":            {"/etc/passwd", "not below the directory", source.ErrInvalid},
		"up":                  {"../secret", "leaves", source.ErrInvalid},
		"up and down":         {"sub/../../secret", "leaves", source.ErrInvalid},
		"link inside":         {"inside", "no link is followed", source.ErrInvalid},
		"link up inside":      {"sub/up", "no link is followed", source.ErrInvalid},
		"link to directory":   {"dirin/b.tar", "no link is followed on the way either", source.ErrInvalid},
		"projected volume":    {"..data/b.tar", "Kubernetes' own links neither", source.ErrInvalid},
		"link outside":        {"out", "leaves by a link", source.ErrInvalid},
		"absolute link":       {"absolute", "leaves by a link", source.ErrInvalid},
		"absolute inside":     {"within", "no link is followed", source.ErrInvalid},
		"directory link":      {"dirout/a.tar", "leaves by a link", source.ErrInvalid},
		"magic link":          {"sub/magic/etc/passwd", "leaves by a link", source.ErrInvalid},
		"link and up again":   {"dirout/../a.tar", "cleaned, it leads through no link", nil},
		"dangling":            {"dangling", "no link is followed", source.ErrInvalid},
		"loop":                {"loop", "no link is followed", source.ErrInvalid},
		"directory":           {"sub", "no archive", source.ErrInvalid},
		"itself":              {".", "no archive", source.ErrInvalid},
		"pipe":                {"pipe", "would block for ever", source.ErrInvalid},
		"empty":               {"", "names nothing", source.ErrInvalid},
		"NUL":                 {"a.tar\x00", "names nothing", source.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := source.OpenUnder(t.Context(), dir, tc.path)
			if !errors.Is(err, tc.want) {
				t.Fatalf("error %v, want %v: %s", err, tc.want, tc.why)
			}
			if b != nil {
				defer closeBlob(t, b)
				if got, err := readSection(t, b, 0, -1); err != nil || len(got) != 1 {
					t.Errorf("read %q, %v", got, err)
				}
			}
		})
	}
	if _, err := source.OpenUnder(t.Context(), filepath.Join(dir, "no directory"), "a.tar"); !errors.Is(err, source.ErrNotFound) {
		t.Errorf("without a directory: %v", err)
	}
	if b, err := source.OpenUnder(t.Context(), filepath.Join(dir, "dirin"), "b.tar"); err != nil {
		t.Errorf("the operator's own directory may be a link: %v", err)
	} else {
		closeBlob(t, b)
	}
}

// While somebody exchanges a directory for a link, what lies behind the link is never read. Looking first and
// opening then would.
func TestOpenUnderWhileLinksAreExchanged(t *testing.T) {
	dir, outside := layOut(t)
	writeFile(t, filepath.Join(dir, "sub", "secret"), []byte("inside"))
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var exchanging sync.WaitGroup
	defer exchanging.Wait()
	defer close(stop)
	exchanging.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			err := unix.Renameat2(unix.AT_FDCWD, filepath.Join(dir, "sub"), unix.AT_FDCWD, filepath.Join(dir, "link"), unix.RENAME_EXCHANGE)
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	if !lookThenOpen(t, filepath.Join(dir, "sub"), "secret") {
		t.Fatal("the fault does not happen: looking first and opening then was never deceived")
	}
	opened := 0
	for range 3000 {
		b, err := source.OpenUnder(t.Context(), dir, "sub/secret")
		if err != nil {
			if !errors.Is(err, source.ErrInvalid) {
				t.Fatal(err)
			}
			continue
		}
		opened++
		got := make([]byte, b.Size())
		_, err = b.ReadAt(got, 0)
		b.Close()
		if err != nil && !errors.Is(err, io.EOF) || !bytes.Equal(got, []byte("inside")) {
			t.Fatalf("read %q, %v", got, err)
		}
	}
	if opened == 0 {
		t.Error("never opened")
	}
}

// lookThenOpen tells whether a file behind a link was read although no link was seen.
func lookThenOpen(t *testing.T, dir, name string) bool {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		if info, err := os.Lstat(dir); err != nil || !info.IsDir() {
			continue
		}
		if got, err := os.ReadFile(filepath.Join(dir, name)); err == nil && string(got) == "secret" {
			return true
		}
	}
	return false
}

// A medium that is mounted below the directory is part of it. A device is no archive: to open one may do things.
func TestOpenUnderMount(t *testing.T) {
	if !userns.Inside(t) {
		return
	}
	dir := t.TempDir()
	stick := filepath.Join(dir, "stick")
	if err := os.Mkdir(stick, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("tmpfs", stick, "tmpfs", 0, ""),
		os.WriteFile(filepath.Join(stick, "a.tar"), []byte("medium"), 0o600),
		os.WriteFile(filepath.Join(stick, "null"), nil, 0o600),
		unix.Mount("/dev/null", filepath.Join(stick, "null"), "", unix.MS_BIND, ""),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := source.OpenUnder(t.Context(), dir, "stick/null"); !errors.Is(err, source.ErrInvalid) {
		t.Errorf("device: %v, want %v", err, source.ErrInvalid)
	}
	b, err := source.OpenUnder(t.Context(), dir, "stick/a.tar")
	if err != nil {
		t.Fatal(err)
	}
	wantSection(t, b, 0, -1, []byte("medium"))
	closeBlob(t, b)
	for _, mount := range []string{filepath.Join(stick, "null"), stick} {
		if err := unix.Unmount(mount, 0); err != nil {
			t.Error(err)
		}
	}
}
