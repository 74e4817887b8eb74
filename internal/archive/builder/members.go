package builder

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"slices"
	"time"
)

// Member is one member of the archive. A regular file has Size bytes from Open.
type Member struct {
	Name     string
	Typeflag byte // tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink …
	Linkname string
	Mode     int64
	Size     int64
	Open     func() io.Reader
	// Format of the header; zero lets archive/tar choose.
	Format tar.Format
	// PAXRecords are written as they are.
	PAXRecords map[string]string
}

// FileMember is a regular member with these bytes.
func FileMember(name string, data []byte) Member {
	return bytesBlob(data).member(name)
}

// LinkMember is a symlink.
func LinkMember(name, target string) Member {
	return Member{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}
}

// DirMember is a directory; its name ends in a slash.
func DirMember(name string) Member {
	return Member{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}
}

func (b blob) member(name string) Member {
	return Member{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: b.size, Open: b.open}
}

// Edit makes other members of an archive's members: the hook for archives that
// are unusual or broken.
type Edit func([]Member) []Member

// Omit leaves out the members with these names.
func Omit(names ...string) Edit {
	return func(ms []Member) []Member {
		return slices.DeleteFunc(slices.Clone(ms), func(m Member) bool { return slices.Contains(names, m.Name) })
	}
}

// Replace gives the member of this name other bytes.
func Replace(name string, data []byte) Edit {
	return func(ms []Member) []Member {
		out := slices.Clone(ms)
		for i, m := range out {
			if m.Name == name {
				b := bytesBlob(data)
				out[i].Size, out[i].Open = b.size, b.open
			}
		}
		return out
	}
}

// Corrupt changes the last byte of the member of this name; its size stays.
func Corrupt(name string) Edit {
	return func(ms []Member) []Member {
		out := slices.Clone(ms)
		for i, m := range out {
			if m.Name == name && m.Size > 0 {
				out[i].Open = func() io.Reader { return &corruptReader{r: m.Open(), left: m.Size} }
			}
		}
		return out
	}
}

// corruptReader flips the bits of the byte with which left becomes 0.
type corruptReader struct {
	r    io.Reader
	left int64
}

func (c *corruptReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.left -= int64(n)
	if n > 0 && c.left == 0 {
		p[n-1] ^= 0xff
	}
	return n, err
}

// Rename gives the member another name.
func Rename(from, to string) Edit {
	return func(ms []Member) []Member {
		out := slices.Clone(ms)
		for i, m := range out {
			if m.Name == from {
				out[i].Name = to
			}
		}
		return out
	}
}

// Prefix puts p, such as "./", before all names.
func Prefix(p string) Edit {
	return func(ms []Member) []Member {
		out := slices.Clone(ms)
		for i := range out {
			out[i].Name = p + out[i].Name
		}
		return out
	}
}

// First moves the members of these names to the front, in this order.
func First(names ...string) Edit {
	return func(ms []Member) []Member {
		front, rest := split(ms, names)
		return append(front, rest...)
	}
}

// Last moves the members of these names to the end, in this order.
func Last(names ...string) Edit {
	return func(ms []Member) []Member {
		back, rest := split(ms, names)
		return append(rest, back...)
	}
}

func split(ms []Member, names []string) (picked, rest []Member) {
	for _, n := range names {
		for _, m := range ms {
			if m.Name == n {
				picked = append(picked, m)
			}
		}
	}
	return picked, Omit(names...)(ms)
}

// Add appends members.
func Add(add ...Member) Edit {
	return func(ms []Member) []Member { return append(slices.Clone(ms), add...) }
}

// WriteTo writes the archive, compressed when it shall be. It may be called again.
func (b *Built) WriteTo(w io.Writer) (int64, error) {
	cw := &countingWriter{w: w}
	zw, err := compressor(cw, b.archive.Compression, b.archive.Level)
	if err != nil {
		return 0, err
	}
	if err := WriteMembers(zw, b.Members); err != nil {
		return cw.n, withClose(err, zw)
	}
	return cw.n, zw.Close()
}

// WriteMembers writes a tar of these members with its end marker.
func WriteMembers(w io.Writer, ms []Member) error {
	tw := tar.NewWriter(w)
	for _, m := range ms {
		if err := writeMember(tw, m); err != nil {
			return fmt.Errorf("member %q: %w", m.Name, err)
		}
	}
	return tw.Close()
}

// TarBytes is a tar of these members in memory.
func TarBytes(ms ...Member) ([]byte, error) {
	var buf bytes.Buffer
	err := WriteMembers(&buf, ms)
	return buf.Bytes(), err
}

func writeMember(tw *tar.Writer, m Member) error {
	h := &tar.Header{
		Name: m.Name, Typeflag: m.Typeflag, Linkname: m.Linkname, Mode: m.Mode, Size: m.Size,
		ModTime: time.Unix(0, 0), Format: m.Format, PAXRecords: m.PAXRecords,
	}
	if err := tw.WriteHeader(h); err != nil || m.Open == nil {
		return err
	}
	_, err := io.Copy(tw, m.Open())
	return err
}
