package source_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tarlift/tarlift/internal/source"
)

// kernels are the ways in which a kernel, or a container's seccomp profile, answers to openat2.
var kernels = map[string]unix.Errno{
	"openat2":           0,
	"kernel before 5.6": unix.ENOSYS, // and seccomp profiles of today that do not know it
	"seccomp profile":   unix.EPERM,  // older ones
}

// withOpenat2 runs f on a thread of its own, where openat2 fails with errno unless it is 0.
func withOpenat2(t *testing.T, errno unix.Errno, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever: a thread with a filter ends with its goroutine
		if errno != 0 {
			if err := refuseOpenat2(errno); err != nil {
				done <- err
				return
			}
		}
		done <- f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// refuseOpenat2 installs a seccomp filter in this thread.
func refuseOpenat2(errno unix.Errno) error {
	const callNumber = 0 // offset in struct seccomp_data
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: callNumber},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_OPENAT2, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(errno)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no new privileges: %w", err)
	}
	filter := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&filter)), 0, 0); err != nil {
		return fmt.Errorf("seccomp filter: %w", err)
	}
	if _, err := unix.Openat2(unix.AT_FDCWD, "/", &unix.OpenHow{Flags: unix.O_PATH}); !errors.Is(err, errno) {
		return fmt.Errorf("openat2 gives %w, want %w", err, errno)
	}
	return nil
}

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
	if err := unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o600, 1<<8|3); err != nil {
		t.Fatal(err)
	}
	return dir, outside
}

// Whoever writes the path of a spec must not read other files of the node with it.
func TestOpenUnder(t *testing.T) {
	dir, _ := layOut(t)
	for kernel, errno := range kernels {
		t.Run(kernel, func(t *testing.T) {
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
				"device":              {"null", "opening one may do things", source.ErrInvalid},
				"empty":               {"", "names nothing", source.ErrInvalid},
				"NUL":                 {"a.tar\x00", "names nothing", source.ErrInvalid},
			} {
				t.Run(name, func(t *testing.T) {
					var b source.Blob
					withOpenat2(t, errno, func() (err error) {
						if b, err = source.OpenUnder(dir, tc.path); !errors.Is(err, tc.want) {
							return fmt.Errorf("error %w, want %w: %s", err, tc.want, tc.why)
						}
						return nil
					})
					if b != nil {
						defer closeBlob(t, b)
						if got, err := readSection(t, b, 0, -1); err != nil || len(got) != 1 {
							t.Errorf("read %q, %v", got, err)
						}
					}
				})
			}
		})
	}
	if _, err := source.OpenUnder(filepath.Join(dir, "no directory"), "a.tar"); !errors.Is(err, source.ErrNotFound) {
		t.Errorf("without a directory: %v", err)
	}
	if b, err := source.OpenUnder(filepath.Join(dir, "dirin"), "b.tar"); err != nil {
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
	for kernel, errno := range kernels {
		opened := 0
		withOpenat2(t, errno, func() error {
			for range 3000 {
				b, err := source.OpenUnder(dir, "sub/secret")
				if err != nil {
					if !errors.Is(err, source.ErrInvalid) {
						return err
					}
					continue
				}
				opened++
				got := make([]byte, b.Size())
				_, err = b.ReadAt(got, 0)
				b.Close()
				if err != nil && !errors.Is(err, io.EOF) || !bytes.Equal(got, []byte("inside")) {
					return fmt.Errorf("%s: read %q, %w", kernel, got, err)
				}
			}
			return nil
		})
		if opened == 0 {
			t.Errorf("%s: never opened", kernel)
		}
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

// A medium that is mounted below the directory is part of it.
func TestOpenUnderMount(t *testing.T) {
	dir := t.TempDir()
	stick := filepath.Join(dir, "stick")
	if err := os.Mkdir(stick, 0o700); err != nil {
		t.Fatal(err)
	}
	for kernel, errno := range kernels {
		var got []byte
		withOpenat2(t, errno, func() error {
			// The thread's own mounts, which go with it.
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				return err
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return err
			}
			if err := unix.Mount("tmpfs", stick, "tmpfs", 0, ""); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(stick, "a.tar"), []byte("medium"), 0o600); err != nil {
				return err
			}
			b, err := source.OpenUnder(dir, "stick/a.tar")
			if err != nil {
				return err
			}
			defer b.Close()
			got = make([]byte, b.Size())
			_, err = b.ReadAt(got, 0)
			return err
		})
		if string(got) != "medium" {
			t.Errorf("%s: read %q", kernel, got)
		}
	}
}
