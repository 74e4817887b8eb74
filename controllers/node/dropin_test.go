package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
	"github.com/tarlift/tarlift/internal/importer"
)

// text is what the files ask for, such as "a.tar 10-1000; waits b.tar".
func (d *dropIns) text() string {
	var s []string
	wants, waiting := d.wants()
	for _, w := range wants {
		name := strings.TrimPrefix(w.name, v1alpha1.DropInPrefix)
		v := d.files[name].complete
		s = append(s, fmt.Sprintf("%s %d-%d", name, v.size, v.modified))
	}
	for _, o := range waiting {
		s = append(s, "waits "+strings.TrimPrefix(o.Name, v1alpha1.DropInPrefix))
	}
	return strings.Join(s, "; ")
}

func newTestDropIns(dir string, log logr.Logger) *dropIns {
	return newDropIns(dir, &syncer{states: map[string]*archiveState{}}, time.Hour, log)
}

// An archive is what a file was when it was last complete, until it is again.
func TestDropInFollowsAFile(t *testing.T) {
	at := func(ms int64) int64 { return epoch.Add(time.Duration(ms) * time.Millisecond).UnixNano() }
	v := func(size, ms int64, inode uint64) *fileVersion { return &fileVersion{size, at(ms), at(ms), inode} }
	version := func(size, ms int64) string { return fmt.Sprintf("a.tar %d-%d", size, at(ms)) }
	const unclear = "waits a.tar"
	for why, looks := range map[string][]struct {
		file *fileVersion // nil: not there
		want string       // half a second later than the one before
	}{
		"copied within a moment": {{v(9, 0, 1), unclear}, {v(9, 0, 1), unclear}, {v(9, 0, 1), version(9, 0)}},
		"copied for long": {{v(1, 0, 1), unclear}, {v(2, 500, 1), unclear}, {v(3, 1000, 1), unclear}, {v(3, 1000, 1), unclear},
			{v(3, 1000, 1), version(3, 1000)}},
		"stalls": {{v(1, 0, 1), unclear}, {v(1, 0, 1), unclear}, {v(1, 0, 1), version(1, 0)}, {v(2, 1400, 1), version(1, 0)},
			{v(2, 1400, 1), version(1, 0)}, {v(2, 1400, 1), version(2, 1400)}},
		"full size from the start": {{v(9, 0, 1), unclear}, {v(9, 400, 1), unclear}, {v(9, 900, 1), unclear}, {v(9, 900, 1), unclear}},
		"there for long":           {{v(9, -60_000, 1), version(9, -60_000)}},
		"renamed over":             {{v(9, -9000, 1), version(9, -9000)}, {v(8, -8000, 2), version(9, -9000)}, {v(8, -8000, 2), version(9, -9000)}, {v(8, -8000, 2), version(8, -8000)}},
		"replaced by its like":     {{v(9, -9000, 1), version(9, -9000)}, {v(9, -9000, 2), version(9, -9000)}, {v(9, -9000, 2), version(9, -9000)}, {v(9, -9000, 2), version(9, -9000)}},
		"of the future":            {{v(9, 90_000, 1), unclear}, {v(9, 90_000, 1), unclear}, {v(9, 90_000, 1), version(9, 90_000)}},
		"removed":                  {{v(9, -9000, 1), version(9, -9000)}, {nil, version(9, -9000)}, {nil, version(9, -9000)}, {nil, ""}},
		"removed half-copied":      {{v(9, 0, 1), unclear}, {nil, unclear}, {nil, unclear}, {nil, ""}},
		"removed and back":         {{v(9, -9000, 1), version(9, -9000)}, {nil, version(9, -9000)}, {v(9, -9000, 1), version(9, -9000)}, {v(9, -9000, 1), version(9, -9000)}},
	} {
		d := newTestDropIns("", logr.Discard())
		for i, l := range looks {
			found := map[string]fileVersion{}
			if l.file != nil {
				found["a.tar"] = *l.file
			}
			d.follow(found, epoch.Add(time.Duration(i)*dropInPoll))
			if got := d.text(); got != l.want {
				t.Errorf("%s, look %d: %q, want %q", why, i, got, l.want)
			}
		}
	}
}

// logged collects what is logged, a line a message.
func logged(lines *[]string) logr.Logger {
	return funcr.New(func(_, args string) { *lines = append(*lines, args) }, funcr.Options{})
}

func TestDropInDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "archives")
	at := func(path ...string) string { return filepath.Join(append([]string{dir}, path...)...) }
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	put := func(names ...string) {
		t.Helper()
		for _, name := range names {
			do(os.WriteFile(at("drop-in", name), []byte("x"), 0o600))
		}
	}
	var lines []string
	d, now := newTestDropIns(dir, logged(&lines)), time.Now()
	// expect looks often enough.
	expect := func(known bool, lineCount int, names ...string) {
		t.Helper()
		for range 4 {
			now = now.Add(dropInPoll)
			d.look(now)
		}
		got := []string{}
		wants, _ := d.wants()
		for _, w := range wants {
			got = append(got, strings.TrimPrefix(w.name, v1alpha1.DropInPrefix))
		}
		if slices.Sort(names); !slices.Equal(got, names) || d.known != known || len(lines) != lineCount {
			t.Fatalf("files %q, known %v, logged %q", got, d.known, lines)
		}
	}
	expect(false, 1) // no archive directory
	do(os.Mkdir(dir, 0o700))
	expect(false, 1) // nothing in it
	do(os.WriteFile(at("other.tar"), nil, 0o600))
	expect(true, 2) // no drop-in directory; the log says that it can be read again
	do(os.MkdirAll(at("drop-in", "directory.tar"), 0o700))
	put("a.tar", "b.tar.gz", "c.tgz", "d d.tar.zst", "ü.tar", ".hidden.tar", "e.txt", "f.tar.part")
	do(os.Symlink(at("drop-in", "a.tar"), at("drop-in", "link.tar")))
	all := []string{"a.tar", "b.tar.gz", "c.tgz", "d d.tar.zst", "ü.tar"}
	expect(true, 2, all...)
	put("line\nfeed.tar", "\xff.tar", strings.Repeat("x", maxDropInName)+".tar")
	expect(true, 5, all...)
	do(os.Remove(at("drop-in", "a.tar")))
	expect(true, 5, all[1:]...)

	do(os.Rename(dir, dir+"-away"))
	expect(true, 6, all[1:]...)
	do(os.Mkdir(dir, 0o700))
	expect(true, 7, all[1:]...)
	do(os.Remove(dir))
	do(os.Rename(dir+"-away", dir))
	expect(true, 8, all[1:]...)
	do(os.Rename(at("drop-in"), at("elsewhere")))
	do(os.WriteFile(at("drop-in"), nil, 0o600))
	expect(true, 9, all[1:]...)
	do(os.Remove(at("drop-in")))
	d.parent++ // as if what lies below the mount had something in it
	expect(true, 10, all[1:]...)
	d.parent--
	expect(true, 11) // removed, not unmounted
	if !strings.Contains(lines[5], "stays") || strings.Contains(strings.Join(lines, ""), "\n") {
		t.Errorf("logged %q", lines)
	}
}

// Beyond the bound the oldest files come first. One that is older than they are takes the place of none.
func TestDropInBound(t *testing.T) {
	found := map[string]fileVersion{}
	for i := range maxDropIns + 2 {
		found[fmt.Sprintf("%03d.tar", i)] = fileVersion{size: 1, modified: epoch.Add(-time.Duration(i) * time.Hour).UnixNano()}
	}
	var lines []string
	d := newTestDropIns("", logged(&lines))
	has := func(left ...string) {
		t.Helper()
		d.follow(found, epoch.Add(time.Minute))
		wants, waiting := d.wants()
		var names []string
		for _, o := range waiting {
			names = append(names, strings.TrimPrefix(o.Name, v1alpha1.DropInPrefix))
		}
		slices.Sort(names)
		if len(wants) != maxDropIns || !slices.Equal(names, left) {
			t.Errorf("%d wanted, left %q", len(wants), names)
		}
	}
	has("000.tar", "001.tar")
	found["old.tar"] = fileVersion{size: 1, modified: 1}
	has("000.tar", "001.tar", "old.tar")
	if len(lines) != 3 {
		t.Errorf("logged %q", lines)
	}
	for name, f := range d.files { // as if they had been gone for a while
		if name == "050.tar" {
			delete(found, name)
			f.seen, f.since = fileVersion{}, epoch
		}
	}
	has("000.tar", "001.tar")
	if len(lines) != 3 {
		t.Errorf("logged %q", lines)
	}
}

// What decides whether a file was imported already must not change from version to version.
func TestDropInIdentity(t *testing.T) {
	w := fileWant("a.tar", fileVersion{size: 10240, modified: 1_900_000_000_123_456_789, changed: 5, inode: 7})
	want := importer.Owner{
		Name: "drop-in/a.tar", UID: "drop-in-6c6180db4b25f66c277092b87cdcde6f", Created: time.Unix(0, 1_900_000_000_123_456_789),
		SpecHash: "cfe9c3022f9441c4b39ba1a7f761ea78", Deletion: importer.DeletionUnpin,
	}
	if got := w.owner(); got != want {
		t.Errorf("owner %+v, want %+v", got, want)
	}
	if w.generation != 1_900_000_000_123 || fileWant("a.tar", fileVersion{modified: -1}).generation != 1 {
		t.Errorf("generation %d", w.generation)
	}
	if r := w.request; !r.Pin || !r.Unpack || !r.Selection.DigestReferences || r.Replace || !r.Keep {
		t.Errorf("request %+v", r)
	}
}

// Without an API server files are imported, and what those that are gone brought is released: of ImageArchives, which nobody
// can tell of, nothing is.
func TestDropInsWithoutAnAPIServer(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "drop-in"), 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "drop-in", "a.tar")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.f.swept = func(_ []importer.Owner, known func(string) bool) ([]importer.Released, error) {
			if !known("drop-in-x") || known("a0000000-0000-0000-0000-000000000000") {
				t.Error("the sweep is not of files alone")
			}
			return nil, nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		d := newDropIns(dir, r.syncer, time.Hour, logr.Discard())
		over := make(chan error)
		go func() { over <- d.Start(ctx) }()
		// synctest's clock begins in 2000: the file is of the future, and complete when it has not changed for a while.
		time.Sleep(time.Minute)
		synctest.Wait()
		r.expect("drop-in/a.tar", "ready")
		if at := r.f.ended["a.tar"]; at == 0 || at > 4*time.Second {
			t.Errorf("imported after %s", at)
		}
		r.did("sweep drop-in/a.tar Unpin", "check drop-in/a.tar", "import a.tar")
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		r.did("sweep")
		if len(r.states) > 0 {
			t.Errorf("%d states", len(r.states))
		}
		cancel()
		if err := <-over; err != nil {
			t.Error(err)
		}
	})
}

// The report on drop-ins has no bound but theirs; a full one is far below what an API server takes.
func TestDropInReportSize(t *testing.T) {
	s := &syncer{states: map[string]*archiveState{}}
	for i := range maxDropIns {
		st := stateOf(i, func(s *archiveState) {
			s.name = v1alpha1.DropInPrefix + strings.Repeat("\"", maxDropInName-3) + fmt.Sprint(i)
			s.entry.Name = s.name
			s.failure = &failure{v1alpha1.ImportError{Reason: "Truncated", Message: condition.Clip(longTexts["escaped"])}, true}
		})
		s.states[st.name] = st
	}
	status, _, _ := s.report("v1", nil, epoch)
	if n := jsonLen(t, status); n > 160<<10 {
		t.Errorf("%d bytes", n)
	}
}
