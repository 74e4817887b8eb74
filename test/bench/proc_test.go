package main

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"
)

const mib = 1 << 20

func TestRunOrphan(t *testing.T) {
	e, err := runOrphan([]string{"cat"}, stdin(3*mib))
	if err != nil {
		t.Fatal(err)
	}
	if len(e.stdout) != 3*mib {
		t.Errorf("cat gave %s of 3 MiB", size(int64(len(e.stdout))))
	}
	if e.read < 3*mib || e.read > 4*mib {
		t.Errorf("cat read %s, want 3 MiB and its libraries", size(e.read))
	}
	if e, err = runOrphan([]string{"cat"}, nil); err != nil || len(e.stdout) != 0 {
		t.Errorf("without standard input cat gave %q, %v", e.stdout, err)
	}
	if e, err = runOrphan([]string{"dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"}, nil); err != nil || e.peak < 64*mib || e.peak > 80*mib {
		t.Errorf("dd with a buffer of 64 MiB had a peak of %s, %v", size(e.peak), err)
	}
}

// What does not end well is no run; but the end of standard input may be left unread.
func TestRunOrphanEnds(t *testing.T) {
	broken := errors.New("broken")
	for name, tc := range map[string]struct {
		command string
		stdin   io.Reader
		ok      bool
	}{
		"stops reading":          {"head -c 10 >/dev/null", endless{}, true},
		"fails":                  {"false", nil, false},
		"fails while it is fed":  {"head -c 10 >/dev/null; exit 3", endless{}, false},
		"is killed":              {"kill -9 $$", nil, false},
		"is not there":           {"exec /no/such/program 2>&1", nil, false},
		"is fed a broken stream": {"cat >/dev/null", io.MultiReader(strings.NewReader("x"), failing{broken}), false},
	} {
		var in io.ReadCloser
		if tc.stdin != nil {
			in = io.NopCloser(tc.stdin)
		}
		if _, err := runOrphan([]string{"/bin/sh", "-c", tc.command}, in); (err == nil) != tc.ok {
			t.Errorf("a command that %s: %v", name, err)
		}
	}
}

func stdin(n int64) io.ReadCloser { return io.NopCloser(io.LimitReader(endless{}, n)) }

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// What a daemon writes is counted each time, what it needed for a while is remembered.
func TestDaemon(t *testing.T) {
	d := daemon(os.Getpid())
	if err := d.resetPeak(); err != nil {
		t.Fatal(err)
	}
	before, err := d.written()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	chunk := make([]byte, mib)
	for range 3 {
		if _, err := f.WriteAt(chunk, 0); err != nil {
			t.Fatal(err)
		}
	}
	after, err := d.written()
	if err != nil {
		t.Fatal(err)
	}
	if wrote := after - before; wrote < 3*mib || wrote > 4*mib {
		t.Errorf("%s written, want 3 MiB", size(wrote))
	}
	if peak, err := d.peak(); err != nil || peak < mib {
		t.Errorf("a peak of %s, %v", size(peak), err)
	}
}
