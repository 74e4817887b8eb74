package node

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/importer"
)

// fileOwner is how the UIDs of owners that are files begin, unlike any that an API server gives.
const fileOwner = "drop-in-"

func isFileOwner(uid string) bool { return strings.HasPrefix(uid, fileOwner) }

const (
	// dropInPoll is how often the directory is read. inotify tells nothing of what others write to a network file system,
	// and a watch on a directory does not see what is mounted over it later; reading a short directory costs microseconds.
	dropInPoll = 500 * time.Millisecond
	// dropInSettle is how long a file has to be the same: a second, less what a tick may be late. With the poll, an import
	// begins within two seconds of the last write.
	dropInSettle = 900 * time.Millisecond
	// maxDropIns bounds what one directory costs: some hundred bytes each in the NodeImageState.
	maxDropIns = 100
	// maxDropInEntries bounds what is read of a directory that is not meant for this.
	maxDropInEntries = 10_000
	// maxDropInName leaves room in an Event's note and in containerd's labels, and more than anybody likes to type.
	maxDropInName = 200
)

// errNoArchives is an archive directory without anything in it, as a place is where something may be mounted.
var errNoArchives = errors.New("the archive directory is empty, as one is that is not mounted")

// dropIns imports the files in the drop-in directory, also without an API server. It is a Runnable.
type dropIns struct {
	archiveDir string
	syncer     *syncer
	sweeper    sweeper
	log        logr.Logger

	files   map[string]*dropIn
	known   bool            // the directory could be read once; what it said last holds until it can be read again
	refused map[string]bool // names that are skipped, and logged
	trouble string          // why the directory cannot be read, as logged
	device  uint64          // that the files were seen on last
	parent  uint64          // that the archive directory was on then
}

// dropIn is a file in the directory.
type dropIn struct {
	seen     fileVersion // zero: it is gone
	since    time.Time
	complete fileVersion // its last version that was complete; zero: none was yet
	admitted bool        // it is one of maxDropIns
	logged   bool        // that it is not
}

// fileVersion tells whether a file is being written to. Times are in nanoseconds.
type fileVersion struct {
	size, modified, changed int64
	inode                   uint64
}

func newDropIns(archiveDir string, s *syncer, interval time.Duration, log logr.Logger) *dropIns {
	return &dropIns{
		archiveDir: archiveDir, syncer: s, log: log, files: map[string]*dropIn{},
		sweeper: sweeper{interval: interval, now: time.Now, jitter: rand.Float64},
	}
}

// fileWant is what a file in the directory asks for. Its identity has no inode: on FAT a file has another one after each
// mount. The spec hash is recorded in containerd and must stay what it is in every later version, or each node would import
// everything again.
func fileWant(name string, v fileVersion) *want {
	sum, version := sha256.Sum256([]byte(name)), sha256.Sum256(fmt.Appendf(nil, "%d-%d", v.size, v.modified))
	uid, modified := fileOwner+hex.EncodeToString(sum[:16]), time.Unix(0, v.modified)
	return &want{
		name: v1alpha1.DropInPrefix + name, uid: types.UID(uid),
		generation: max(1, modified.UnixMilli()), // in nanoseconds it would be too large for a number in JSON
		source:     v1alpha1.Source{File: &v1alpha1.FileSource{Path: v1alpha1.DropInPrefix + name}},
		request: importer.Request{
			Owner: importer.Owner{
				Name: v1alpha1.DropInPrefix + name, UID: uid, Created: modified, SpecHash: hex.EncodeToString(version[:16]),
				Deletion: importer.Deletion(v1alpha1.DeletionUnpin),
			},
			Selection: archive.Selection{DigestReferences: true}, Unpack: true, Pin: true, Keep: true,
		},
	}
}

// Start reads the directory, and syncs its files, until ctx ends.
func (d *dropIns) Start(ctx context.Context) error {
	ctx = ctrl.LoggerInto(ctx, d.log)
	ticker := time.NewTicker(dropInPoll)
	defer ticker.Stop()
	for ctx.Err() == nil {
		if d.look(time.Now()); d.known {
			d.sync(ctx)
		}
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
	return nil
}

// look takes over what the directory has, if it can be read.
func (d *dropIns) look(now time.Time) {
	found, err := d.read()
	d.complain(err)
	if err == nil {
		d.follow(found, now)
		d.known = true
	}
}

// sync syncs the files that are complete, and releases what those that are gone have brought. Of a file that is still
// written to, or beyond the bound, nothing is imported, and what it brought before stays.
func (d *dropIns) sync(ctx context.Context) {
	wants, waiting := d.wants()
	gone := false
	for _, name := range d.syncer.files() {
		if !slices.ContainsFunc(wants, func(w *want) bool { return w.name == name }) {
			if !d.syncer.remove(name) {
				return // its job ends soon; it may be publishing
			}
			gone = true
		}
	}
	for _, w := range wants {
		d.syncer.sync(ctx, w, nil)
	}
	now := time.Now()
	if gone {
		d.sweeper.reset()
	}
	if d.sweeper.readyAt.After(now) {
		return
	}
	owners := waiting
	for _, w := range wants {
		owners = append(owners, w.owner())
	}
	_, err := d.syncer.sweep(ctx, true, owners)
	d.sweeper.readyAt = now.Add(d.sweeper.ended(ctx, 0, err))
}

// complain tells once why the directory cannot be read. Nothing is taken for removed then.
func (d *dropIns) complain(err error) {
	switch {
	case err == nil && d.trouble != "":
		d.log.Info("The drop-in directory can be read again")
		d.trouble = ""
	case err == nil, errors.Is(err, errNoArchives) && len(d.files) == 0, err.Error() == d.trouble:
	default:
		d.log.Error(nil, "Could not read the drop-in directory; what it has brought stays", "error", condition.ErrorText(err))
		d.trouble = err.Error()
	}
}

// read lists the files that are archives by their names.
func (d *dropIns) read() (map[string]fileVersion, error) {
	path := filepath.Join(d.archiveDir, v1alpha1.DropInPrefix)
	dir, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, d.absent()
	case err != nil:
		return nil, err
	case !dir.IsDir(): // links are not followed either where the files are opened
		return nil, fmt.Errorf("%q is not a directory", path)
	}
	entries, err := readSome(path, maxDropInEntries+1)
	if err == nil && len(entries) > maxDropInEntries {
		err = fmt.Errorf("%q has more than %d entries", path, maxDropInEntries)
	}
	if err != nil {
		return nil, err
	}
	found, refused := map[string]fileVersion{}, map[string]bool{}
	for _, e := range entries {
		info, err := e.Info()
		switch {
		case !isArchiveName(e.Name()), errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, err
		case !info.Mode().IsRegular():
		case !isPlainName(e.Name()):
			if refused[e.Name()] = true; !d.refused[e.Name()] {
				d.log.Info("Skipped: the name is too long, or has characters that cannot be printed", "file", strconv.QuoteToASCII(e.Name()))
			}
		default:
			st := stat(info)
			found[e.Name()] = fileVersion{info.Size(), info.ModTime().UnixNano(), st.Ctim.Nano(), st.Ino}
		}
	}
	d.refused = refused
	switch device := uint64(stat(dir).Dev); {
	case len(found) > 0:
		d.device, d.parent = device, deviceOf(d.archiveDir)
	case d.device != 0 && d.device != device:
		return nil, fmt.Errorf("%q is empty, and on another file system than before", path)
	}
	return found, nil
}

// absent says whether there is an archive directory, though not this one in it.
func (d *dropIns) absent() error {
	entries, err := readSome(d.archiveDir, 1)
	switch {
	case err == nil && len(entries) == 0:
		return errNoArchives
	case err == nil && d.parent != 0 && d.parent != deviceOf(d.archiveDir):
		return fmt.Errorf("%q is on another file system than before", d.archiveDir)
	}
	return err
}

// deviceOf is the file system that a directory is on, 0 for unknown.
func deviceOf(path string) uint64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return uint64(stat(info).Dev)
}

func readSome(path string, n int) ([]fs.DirEntry, error) {
	dir, err := os.Open(path) //nolint:gosec // the operator's own choice
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	entries, err := dir.ReadDir(n)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return entries, err
}

func stat(info fs.FileInfo) *syscall.Stat_t {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st
	}
	return &syscall.Stat_t{}
}

// isArchiveName leaves out what copying tools call a file until it is whole: a dot in front, or another ending.
func isArchiveName(name string) bool {
	return !strings.HasPrefix(name, ".") && slices.ContainsFunc([]string{".tar", ".tar.gz", ".tgz", ".tar.zst"}, func(ending string) bool {
		return strings.HasSuffix(name, ending)
	})
}

func isPlainName(name string) bool {
	return len(name) <= maxDropInName && utf8.ValidString(name) &&
		!strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) })
}

// follow takes over what the directory has. What is written to, or is gone for less than a moment, stays what it was. A file
// that nobody has touched for a while is complete at once.
func (d *dropIns) follow(found map[string]fileVersion, now time.Time) {
	for name, v := range found {
		if d.files[name] == nil {
			since := now // also of a file of the future, by a wrong clock
			if touched := time.Unix(0, max(v.modified, v.changed)); touched.Before(now) {
				since = touched
			}
			d.files[name] = &dropIn{seen: v, since: since}
		}
	}
	for name, f := range d.files {
		v, there := found[name]
		switch {
		case v != f.seen:
			f.seen, f.since = v, now
		case now.Sub(f.since) < dropInSettle:
		case !there:
			delete(d.files, name)
		default:
			f.complete = v
		}
	}
}

// wants is what the files ask for, and the owners of those of which nothing is imported now. Beyond the bound, the oldest
// files come first, but none that came before them goes.
func (d *dropIns) wants() (wants []*want, waiting []importer.Owner) {
	var rest []string
	for _, name := range slices.Sorted(maps.Keys(d.files)) {
		switch f := d.files[name]; {
		case f.complete == fileVersion{}:
			waiting = append(waiting, fileWant(name, f.seen).owner())
		case f.admitted:
			wants = append(wants, fileWant(name, f.complete))
		default:
			rest = append(rest, name)
		}
	}
	slices.SortStableFunc(rest, func(x, y string) int { return cmp.Compare(d.files[x].seen.modified, d.files[y].seen.modified) })
	for _, name := range rest {
		f := d.files[name]
		w := fileWant(name, f.complete)
		if f.admitted = len(wants) < maxDropIns; f.admitted {
			wants = append(wants, w)
			continue
		}
		waiting = append(waiting, w.owner())
		if !f.logged {
			f.logged = true
			d.log.Info("Skipped until there are fewer files", "file", w.name, "most", maxDropIns)
		}
	}
	return wants, waiting
}
