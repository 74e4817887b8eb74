package main

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tarlift/tarlift/internal/cli"
)

// output is where an archive is written: to a temporary file beside its destination, or to a stream.
type output struct {
	path string // the destination; "" for a stream
	dir  string // for temporary files of the same size; "" for the system's default
	to   io.Writer
	file *os.File
	temp []string // files that are not renamed yet
}

// openOutput checks the destination and creates the temporary file. Path "-" stands for out.
func openOutput(path string, out io.Writer) (*output, error) {
	if path == "-" {
		return &output{to: out}, nil
	}
	if resolved, err := filepath.EvalSymlinks(path); err == nil {
		path = resolved // replace the link's target, not the link
	}
	info, err := os.Stat(path)
	switch {
	case err == nil && !info.Mode().IsRegular():
		return nil, cli.Usagef("-o %q: exists and is no regular file; use -o - and the shell for devices and pipes", path)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, outputError{fmt.Errorf("write %q: %w", path, err)}
	case filepath.Base(path) == "." || strings.HasSuffix(path, "/"):
		return nil, cli.Usagef("-o %q: a file is expected, not a directory", path)
	}
	o := &output{path: path, dir: filepath.Dir(path)}
	if o.file, err = o.create(path); err != nil {
		return nil, err
	}
	o.to = o.file
	return o, nil
}

// create creates a temporary file beside path, with the mode of any new file.
func (o *output) create(path string) (*os.File, error) {
	name := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"."+rand.Text()[:8]+".partial")
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666) //nolint:gosec // the umask decides, as for other tools
	if err != nil {
		return nil, outputError{fmt.Errorf("write %q: %w", path, withoutPath(err))}
	}
	o.temp = append(o.temp, name)
	return f, nil
}

// base is the archive's name without directories; "" for a stream.
func (o *output) base() string {
	if o.path == "" {
		return ""
	}
	return filepath.Base(o.path)
}

// reserve allocates n bytes where the file system supports that, so that a disk that is too small fails the command before
// it copies anything.
func (o *output) reserve(n int64) error {
	if o.file == nil || n == 0 {
		return nil
	}
	err := unix.Fallocate(int(o.file.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, n)
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return outputError{fmt.Errorf("write %q: %s are needed: %w", o.path, cli.Size(n), err)}
	}
	return nil
}

// Write writes to the temporary file or the stream.
func (o *output) Write(p []byte) (int, error) {
	n, err := o.to.Write(p)
	if err != nil {
		name := "standard output"
		if o.path != "" {
			name = o.path
		}
		err = outputError{fmt.Errorf("write %q: %w", name, withoutPath(err))}
	}
	return n, err
}

// withoutPath removes the temporary file's name from an error.
func withoutPath(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// commit renames the archive and the files beside it to their destinations. All of them are synced before the first rename.
// The archive is renamed last, so that whoever sees it finds the other files too.
func (o *output) commit(r result) error {
	if o.file == nil {
		return nil
	}
	record, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return outputError{fmt.Errorf("write %q: %w", o.path, err)}
	}
	places := []string{o.path, o.path + ".json", o.path + ".sha256"}
	for i, text := range []string{string(record) + "\n", sumLine(r)} {
		if err := o.writeBeside(places[i+1], text); err != nil {
			return err
		}
	}
	if err := errors.Join(o.file.Sync(), o.file.Close()); err != nil {
		return outputError{fmt.Errorf("write %q: %w", o.path, withoutPath(err))}
	}
	for i := len(places) - 1; i >= 0; i-- {
		if err := os.Rename(o.temp[i], places[i]); err != nil {
			return outputError{fmt.Errorf("write %q: %w", places[i], err)}
		}
		o.temp = o.temp[:i]
	}
	dir, err := os.Open(o.dir)
	if err != nil {
		return nil //nolint:nilerr // it may be unreadable, and the sync is only a precaution
	}
	defer dir.Close()
	_ = dir.Sync() // not every file system can
	return nil
}

func (o *output) writeBeside(path, text string) error {
	f, err := o.create(path)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return outputError{fmt.Errorf("write %q: %w", path, withoutPath(err))}
	}
	return nil
}

// sumLine is a line as sha256sum writes it: a backslash in front marks a name with escapes.
func sumLine(r result) string {
	mark := ""
	name := strings.NewReplacer(`\`, `\\`, "\n", `\n`, "\r", `\r`).Replace(r.File)
	if name != r.File {
		mark = `\`
	}
	return mark + r.Digest.Encoded() + "  " + name + "\n"
}

// discard removes the files that are not renamed.
func (o *output) discard() {
	if o.file != nil {
		o.file.Close() //nolint:gosec // closed already, or to be removed
	}
	for _, name := range o.temp {
		os.Remove(name) //nolint:gosec // nothing can be done
	}
}
