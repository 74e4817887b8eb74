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
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/tarlift/tarlift/api/v1alpha1"
	"github.com/tarlift/tarlift/controllers/condition"
	"github.com/tarlift/tarlift/internal/importer"
)

const (
	// dropInUID is how their UIDs begin, unlike any that an API server gives.
	dropInUID = "drop-in-"
)

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

// dropIns follows the files in the drop-in directory. Each is an archive as if there were an ImageArchive for it.
type dropIns struct {
	archiveDir string

	mu   sync.Mutex
	wake func() // tells the reconciler that the list is another
	list dropInList

	looked  chan struct{} // closed after the first look
	files   map[string]*dropIn
	refused map[string]bool // names that nothing is done about, which the log has told
	trouble string          // that keeps the directory from being read, as the log has told
	device  uint64          // that the files were seen on last
	parent  uint64          // that the archive directory was on then
}

// dropInList is what the directory tells.
type dropInList struct {
	known    bool // it could be read once; what it said last holds until it can be read again
	archives []*v1alpha1.ImageArchive
	unclear  []importer.Owner // of files that are there, but are not imported, or not yet
}

// dropIn is a file in the directory.
type dropIn struct {
	seen    fileVersion // zero: it is gone
	since   time.Time
	archive *v1alpha1.ImageArchive // as of its last version that was complete; nil: none was yet
	taken   bool                   // it is one of maxDropIns
	told    bool                   // that it is not
}

// fileVersion tells whether a file is being written to. Times are in nanoseconds.
type fileVersion struct {
	size, modified, changed int64
	inode                   uint64
}

func newDropIns(archiveDir string) *dropIns {
	return &dropIns{archiveDir: archiveDir, looked: make(chan struct{}), files: map[string]*dropIn{}}
}

// dropInArchive is the archive that stands for a file. The version has no inode: on FAT a file has another one after each
// mount.
func dropInArchive(name string, v fileVersion) *v1alpha1.ImageArchive {
	sum := sha256.Sum256([]byte(name))
	modified := time.Unix(0, v.modified)
	return &v1alpha1.ImageArchive{
		ObjectMeta: metav1.ObjectMeta{
			Name:              v1alpha1.DropInPrefix + name,
			UID:               types.UID(dropInUID + hex.EncodeToString(sum[:16])),
			ResourceVersion:   fmt.Sprintf("%d-%d", v.size, v.modified),
			Generation:        max(1, modified.UnixMilli()), // in nanoseconds it would be too large for a number in JSON
			CreationTimestamp: metav1.NewTime(modified),
		},
		Spec: v1alpha1.ImageArchiveSpec{
			Source:         v1alpha1.Source{File: &v1alpha1.FileSource{Path: v1alpha1.DropInPrefix + name}},
			DeletionPolicy: v1alpha1.DeletionUnpin,
		},
	}
}

// dropInHash is what specHash is for an ImageArchive: here the file decides. It must stay what it is, too.
func dropInHash(a *v1alpha1.ImageArchive) string {
	sum := sha256.Sum256([]byte(a.ResourceVersion))
	return hex.EncodeToString(sum[:16])
}

// Start looks at the directory until ctx ends. It makes dropIns a Runnable.
func (d *dropIns) Start(ctx context.Context) error {
	log := ctrl.LoggerFrom(ctx).WithName("drop-in")
	ticker := time.NewTicker(dropInPoll)
	defer ticker.Stop()
	d.look(log, time.Now())
	close(d.looked)
	for ; ; d.look(log, time.Now()) {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// onWake sets whom to tell.
func (d *dropIns) onWake(wake func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wake = wake
}

// current is what the directory told last.
func (d *dropIns) current() dropInList {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.list
}

func (d *dropIns) look(log logr.Logger, now time.Time) {
	found, err := d.read(log)
	d.complain(log, err)
	if err != nil || !d.follow(found, now) && d.current().known {
		return
	}
	list := d.compile(log)
	d.mu.Lock()
	d.list = list
	wake := d.wake
	d.mu.Unlock()
	if wake != nil {
		wake()
	}
}

// complain tells once why the directory cannot be read. Nothing is taken for removed then.
func (d *dropIns) complain(log logr.Logger, err error) {
	switch {
	case err == nil && d.trouble != "":
		log.Info("The drop-in directory can be read again")
		d.trouble = ""
	case err == nil, errors.Is(err, errNoArchives) && len(d.files) == 0, err.Error() == d.trouble:
	default:
		log.Info("The drop-in directory cannot be read; what it has brought stays", "error", condition.ErrorText(err))
		d.trouble = err.Error()
	}
}

// read lists the files that are archives by their names.
func (d *dropIns) read(log logr.Logger) (map[string]fileVersion, error) {
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
				log.Info("Left alone: the name is too long, or has characters that cannot be printed", "file", strconv.QuoteToASCII(e.Name()))
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

// follow takes in what the directory holds, and says whether that is worth telling. What is written to, or is gone for less
// than a moment, stays what it was. A file that nobody has touched for a while is complete at once.
func (d *dropIns) follow(found map[string]fileVersion, now time.Time) (changed bool) {
	for name, v := range found {
		if d.files[name] == nil {
			since := now // also of a file of the future, by a wrong clock
			if touched := time.Unix(0, max(v.modified, v.changed)); touched.Before(now) {
				since = touched
			}
			d.files[name], changed = &dropIn{seen: v, since: since}, true
		}
	}
	for name, f := range d.files {
		v, there := found[name]
		if v != f.seen {
			f.seen, f.since = v, now
			continue
		}
		if now.Sub(f.since) < dropInSettle {
			continue
		}
		if !there {
			delete(d.files, name)
			changed = true
			continue
		}
		if a := dropInArchive(name, v); f.archive == nil || f.archive.ResourceVersion != a.ResourceVersion {
			f.archive, changed = a, true
		}
	}
	return changed
}

// compile makes the list. Beyond the bound, the oldest files come first, but none that came before them goes.
func (d *dropIns) compile(log logr.Logger) dropInList {
	list := dropInList{known: true}
	var waiting []*dropIn
	for _, name := range slices.Sorted(maps.Keys(d.files)) {
		switch f := d.files[name]; {
		case f.archive == nil:
			list.unclear = append(list.unclear, ownerOf(dropInArchive(name, f.seen)))
		case f.taken:
			list.archives = append(list.archives, f.archive)
		default:
			waiting = append(waiting, f)
		}
	}
	slices.SortStableFunc(waiting, func(x, y *dropIn) int { return cmp.Compare(x.seen.modified, y.seen.modified) })
	for _, f := range waiting {
		if f.taken = len(list.archives) < maxDropIns; f.taken {
			list.archives = append(list.archives, f.archive)
			continue
		}
		list.unclear = append(list.unclear, ownerOf(f.archive))
		if !f.told {
			f.told = true
			log.Info("Left alone until there are fewer files", "file", f.archive.Name, "most", maxDropIns)
		}
	}
	return list
}
