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
)

// output is where an archive is written to: a file beside the one that it shall replace, or a stream.
type output struct {
	path string // of the archive in the end; "" for a stream
	dir  string // where there is room for as much; "" for the system's own choice
	to   io.Writer
	file *os.File
	temp []string // files that are not in their place yet
}

// openOutput looks at the place and makes the temporary file. "-" is out.
func openOutput(path string, out io.Writer) (*output, error) {
	if path == "-" {
		return &output{to: out}, nil
	}
	if resolved, err := filepath.EvalSymlinks(path); err == nil {
		path = resolved // what the link leads to is replaced, not the link
	}
	info, err := os.Stat(path)
	switch {
	case err == nil && !info.Mode().IsRegular():
		return nil, usagef("-o %q: it is there, and not a regular file; use -o - and the shell for devices and pipes", path)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, outputError{fmt.Errorf("write %q: %w", path, err)}
	case filepath.Base(path) == "." || strings.HasSuffix(path, "/"):
		return nil, usagef("-o %q: a file is expected, not a directory", path)
	}
	o := &output{path: path, dir: filepath.Dir(path)}
	if o.file, err = o.create(path); err != nil {
		return nil, err
	}
	o.to = o.file
	return o, nil
}

// create makes a file beside its place, with the mode that any new file has.
func (o *output) create(path string) (*os.File, error) {
	name := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"."+rand.Text()[:8]+".partial")
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666) //nolint:gosec // the umask decides, as for other tools
	if err != nil {
		return nil, outputError{fmt.Errorf("write %q: %w", path, bare(err))}
	}
	o.temp = append(o.temp, name)
	return f, nil
}

// base is the archive's name without directories; "" of a stream.
func (o *output) base() string {
	if o.path == "" {
		return ""
	}
	return filepath.Base(o.path)
}

// reserve takes room for n bytes, where the file system can: a disk that is too small shows before anything is copied.
func (o *output) reserve(n int64) error {
	if o.file == nil || n == 0 {
		return nil
	}
	err := unix.Fallocate(int(o.file.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, n)
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return outputError{fmt.Errorf("write %q: %s are needed: %w", o.path, size(n), err)}
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
		err = outputError{fmt.Errorf("write %q: %w", name, bare(err))}
	}
	return n, err
}

// bare leaves the temporary file's name out of an error.
func bare(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// commit puts the archive in its place, with what is written beside it. Everything is on disk before the first file gets its
// name; the archive is the last, so that whoever sees it may read the others.
func (o *output) commit(r bundled) error {
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
		return outputError{fmt.Errorf("write %q: %w", o.path, bare(err))}
	}
	for i := len(places) - 1; i >= 0; i-- {
		if err := os.Rename(o.temp[i], places[i]); err != nil {
			return outputError{fmt.Errorf("write %q: %w", places[i], err)}
		}
		o.temp = o.temp[:i]
	}
	dir, err := os.Open(o.dir)
	if err != nil {
		return nil //nolint:nilerr // it need not be readable
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
		return outputError{fmt.Errorf("write %q: %w", path, bare(err))}
	}
	return nil
}

// sumLine is a line as sha256sum writes it, which marks names that would break it by a backslash in front.
func sumLine(r bundled) string {
	mark := ""
	name := strings.NewReplacer(`\`, `\\`, "\n", `\n`, "\r", `\r`).Replace(r.File)
	if name != r.File {
		mark = `\`
	}
	return mark + strings.TrimPrefix(r.Digest, "sha256:") + "  " + name + "\n"
}

// discard removes what is not in its place.
func (o *output) discard() {
	if o.file != nil {
		o.file.Close() //nolint:gosec // closed already, or of no use
	}
	for _, name := range o.temp {
		os.Remove(name) //nolint:gosec // nothing can be done
	}
}
