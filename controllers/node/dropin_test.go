package node

import (
	"context"
	"encoding/json"
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
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/internal/source"
)

// text is what a list says, such as "a.tar 10-1000; unclear b.tar".
func (l dropInList) text() string {
	var s []string
	for _, a := range l.archives {
		s = append(s, strings.TrimPrefix(a.Name, v1alpha1.DropInPrefix)+" "+a.ResourceVersion)
	}
	for _, o := range l.unclear {
		s = append(s, "unclear "+strings.TrimPrefix(o.Name, v1alpha1.DropInPrefix))
	}
	return strings.Join(s, "; ")
}

// An archive is what a file was when it was last complete, until it is again.
func TestDropInFollowsAFile(t *testing.T) {
	at := func(ms int64) int64 { return epoch.Add(time.Duration(ms) * time.Millisecond).UnixNano() }
	v := func(size, ms int64, inode uint64) *fileVersion { return &fileVersion{size, at(ms), at(ms), inode} }
	version := func(size, ms int64) string { return fmt.Sprintf("a.tar %d-%d", size, at(ms)) }
	const unclear = "unclear a.tar"
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
		d := newDropIns("")
		for i, l := range looks {
			found := map[string]fileVersion{}
			if l.file != nil {
				found["a.tar"] = *l.file
			}
			before := d.compile(logr.Discard()).text()
			changed := d.follow(found, epoch.Add(time.Duration(i)*dropInPoll))
			if got := d.compile(logr.Discard()).text(); got != l.want || changed != (got != before) {
				t.Errorf("%s, look %d: %q, changed %v, want %q", why, i, got, changed, l.want)
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
	d, now := newDropIns(dir), time.Now()
	// expect looks often enough.
	expect := func(known bool, lineCount int, names ...string) {
		t.Helper()
		for range 4 {
			now = now.Add(dropInPoll)
			d.look(logged(&lines), now)
		}
		got := []string{}
		for _, a := range d.current().archives {
			got = append(got, strings.TrimPrefix(a.Name, v1alpha1.DropInPrefix))
		}
		if slices.Sort(names); !slices.Equal(got, names) || d.current().known != known || len(lines) != lineCount {
			t.Fatalf("files %q, known %v, logged %q", got, d.current().known, lines)
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
	d := newDropIns("")
	has := func(left ...string) {
		t.Helper()
		d.follow(found, epoch.Add(time.Minute))
		list := d.compile(logged(&lines))
		var unclear []string
		for _, o := range list.unclear {
			unclear = append(unclear, strings.TrimPrefix(o.Name, v1alpha1.DropInPrefix))
		}
		slices.Sort(unclear)
		if len(list.archives) != maxDropIns || !slices.Equal(unclear, left) {
			t.Errorf("%d taken, left %q", len(list.archives), unclear)
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
	a := dropInArchive("a.tar", fileVersion{size: 10240, modified: 1_900_000_000_123_456_789, changed: 5, inode: 7})
	want := importer.Owner{
		Name: "drop-in/a.tar", UID: "drop-in-6c6180db4b25f66c277092b87cdcde6f", Created: time.Unix(0, 1_900_000_000_123_456_789),
		SpecHash: "cfe9c3022f9441c4b39ba1a7f761ea78", Deletion: importer.DeletionUnpin,
	}
	if got := ownerOf(a); got != want {
		t.Errorf("owner %+v, want %+v", got, want)
	}
	if a.Generation != 1_900_000_000_123 || dropInArchive("a.tar", fileVersion{modified: -1}).Generation != 1 {
		t.Errorf("generation %d", a.Generation)
	}
	if r := requestFor(a); !r.Pin || !r.Unpack || !r.Selection.DigestReferences || r.Replace {
		t.Errorf("request %+v", r)
	}
}

// The report on drop-ins has no bound but theirs; a full one is far below what an API server takes.
func TestDropInReportSize(t *testing.T) {
	s := &v1alpha1.NodeImageStateStatus{}
	for i := range maxDropIns {
		e := failing(i, strings.Repeat("<", 5*condition.MaxText), true)
		e.Name = v1alpha1.DropInPrefix + strings.Repeat("\"", maxDropInName)
		e.UID = types.UID(dropInUID + strings.Repeat("0", 32))
		s.Archives = append(s.Archives, e)
	}
	fitTexts(s)
	b, err := json.Marshal(s)
	if err != nil || len(b) > 160<<10 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// While nobody has told of ImageArchives, what they have brought is left alone; then all is looked at again.
func TestUnknownArchives(t *testing.T) {
	d, a := dropInArchive("a.tar", fileVersion{size: 1, modified: 1}), newArchive("a", 0)
	name := string(d.UID)[len("uid-"):]
	b := &bench{t: t, agenda: newAgenda(noJitter), now: epoch}
	b.recognise(unknown{true, true})
	b.see()
	b.expect("wait 0s")
	b.recognise(unknown{archives: true})
	b.see(d)
	if j := b.expect("sweep"); j.unknown != (unknown{archives: true}) || len(j.wanted) != 2 {
		t.Errorf("sweeps %+v", j)
	}
	b.end(absent)
	b.expect("check " + name)
	b.end(absent)
	b.expect("import " + name)
	b.recognise(unknown{})
	b.see(d, a)
	if j := b.expect("sweep"); j.unknown != (unknown{}) || len(j.wanted) != 4 {
		t.Errorf("sweeps %+v", j)
	}
	b.end(absent)
	b.expect("check a")
	b.end(whole)
	b.expect("wait 0s")
	b.end(good)
	b.see(a)
	b.expect("sweep")
	b.end(absent)
	b.expect("wait 0s")
}

// A sweep has not taken care of archives that came to be known while it ran.
func TestKnownMeanwhile(t *testing.T) {
	b := &bench{t: t, agenda: newAgenda(noJitter), now: epoch}
	b.recognise(unknown{archives: true})
	b.expect("sweep")
	b.recognise(unknown{})
	b.end(absent)
	b.expect("sweep")
	b.recognise(unknown{dropIns: true})
	b.end(absent)
	b.firstSweep()
	b.expect("wait 0s")
}

// A restart with everything done writes nothing, though drop-ins were looked at before the API server has told anything.
func TestDropInRestart(t *testing.T) {
	d := dropInArchive("a.tar", fileVersion{size: 1, modified: 1})
	name := string(d.UID)[len("uid-"):]
	b := newBench(t, d)
	b.expect("check " + name)
	b.end(absent)
	b.expect("import " + name)
	b.end(good)
	written := b.status(nil, b.now)
	if e := written.Archives[0]; e.Name != "drop-in/a.tar" || e.Attempts != 1 {
		t.Fatalf("entry %+v", e)
	}

	n := &bench{t: t, agenda: newAgenda(noJitter), now: b.now.Add(time.Hour)}
	n.recognise(unknown{archives: true})
	n.see(d)
	n.firstSweep()
	n.expect("check " + name)
	n.end(whole)
	n.restore(written)
	n.recognise(unknown{})
	n.see(d)
	if c := compare(written, n.status(nil, n.now)); c != noChange {
		t.Errorf("would write %v", c)
	}
	n.firstSweep()
	n.expect("check " + name)
	n.end(whole)
	if c := compare(written, n.status(nil, n.now)); c != noChange {
		t.Errorf("would write %v", c)
	}
	n.expect("wait 0s")
}

// The whole without an API server, and then with one.
func TestDropInAlone(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "drop-in"), 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "drop-in", "quick.tar")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		lo := newLoop(t, defaultLimits, "quick")
		lo.worker.open = func(_ context.Context, s v1alpha1.Source) (source.Blob, error) {
			return openPlayed(t.Context(), v1alpha1.Source{File: &v1alpha1.FileSource{Path: filepath.Base(s.File.Path)}})
		}
		lo.f.importing = func(ctx context.Context, b source.Blob, r importer.Request) (importer.Result, error) {
			r.Owner.Name = strings.TrimPrefix(r.Owner.Name, v1alpha1.DropInPrefix)
			return lo.importArchive(ctx, b, r)
		}
		lo.now, lo.poked, lo.dropIns = time.Now, make(chan struct{}, 1), newDropIns(dir)
		lo.onWake(lo.poke)
		ctx, cancel := context.WithCancel(ctrl.LoggerInto(t.Context(), logr.Discard()))
		defer cancel()
		over := make(chan error, 2)
		go func() { over <- lo.dropIns.Start(ctx) }()
		go func() { over <- lo.alone(ctx) }()
		// synctest's clock begins in 2000: the file is of the future, and complete when it has not changed for a while.
		time.Sleep(time.Minute)
		synctest.Wait()
		lo.mu.Lock()
		importedAt := lo.ended["quick.tar"]
		lo.mu.Unlock()
		if importedAt == 0 || importedAt > 4*time.Second {
			t.Errorf("imported after %s", importedAt)
		}
		only := "archives false, drop-ins true"
		if known, _ := lo.f.asked(); !slices.Equal(known, []string{only}) {
			t.Errorf("sweeps knew %q", known)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if known, wanted := lo.f.asked(); !slices.Equal(known, []string{only, only}) || len(wanted) != 0 {
			t.Errorf("sweeps knew %q, the last swept all but %v", known, wanted)
		}

		lo.Reconciler.mu.Lock()
		lo.taken = true
		lo.Reconciler.mu.Unlock()
		lo.poke()
		if err := <-over; err != nil {
			t.Error(err)
		}
		lo.onWake(func() { lo.wakes <- struct{}{} })
		lo.run(time.Minute)
		lo.mu.Lock()
		if lo.ended["quick"] == 0 {
			t.Error("the ImageArchive is not imported")
		}
		lo.mu.Unlock()
		all := "archives true, drop-ins true"
		if known, _ := lo.f.asked(); !slices.Equal(known, []string{only, only, all}) {
			t.Errorf("sweeps knew %q", known)
		}
		cancel()
		if err := <-over; err != nil {
			t.Error(err)
		}
	})
}
