package archive

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"unicode"
)

const blockSize = 512 // of a tar

// scanner reads a tar's headers. Unlike archive/tar alone it knows where bytes lie, bounds what it reads, and notices
// a cut.
type scanner struct {
	in *tarInput
	tr *tar.Reader
	// so far: members, and bytes of names and links
	members int
	text    int64
	name    string // of the current member
	err     error  // of reading its bytes
	// complete is known at the end: there was an end marker.
	complete bool
}

// entry is a member's header.
type entry struct {
	name string // clean
	kind byte   // tar.TypeReg, tar.TypeDir, tar.TypeSymlink or tar.TypeLink
	link string // clean, relative to the archive's root; "" when the target is outside of it
	data int64  // offset of the bytes
	size int64
}

// newScanner reads a tar from r. Of an io.Seeker it does not read bodies.
func newScanner(r io.Reader) *scanner {
	in := &tarInput{r: r}
	if seeker, ok := r.(io.Seeker); ok {
		return &scanner{in: in, tr: tar.NewReader(&seekInput{in, seeker})}
	}
	return &scanner{in: in, tr: tar.NewReader(in)}
}

// next returns the next member, or io.EOF at the end of the tar.
func (s *scanner) next(ctx context.Context) (entry, error) {
	for {
		if err := ctx.Err(); err != nil {
			return entry{}, err //nolint:wrapcheck // the caller's own
		}
		s.in.header, s.in.headerBytes = true, 0
		h, err := s.tr.Next()
		s.in.header = false
		if err != nil {
			return entry{}, s.explain(err)
		}
		if s.members++; s.members > MaxMembers {
			return entry{}, fmt.Errorf("more than %d members: %w", MaxMembers, ErrLimit)
		}
		e, err := s.check(h)
		if err != nil {
			return entry{}, err
		}
		if s.members > smallMembers || s.text > SmallMetadataBytes {
			if err := Reserve(ctx); err != nil {
				return entry{}, err
			}
		}
		s.in.end = (s.in.off + e.size + blockSize - 1) / blockSize * blockSize
		s.in.nonZero, s.name = false, e.name
		if h.Typeflag != tar.TypeXGlobalHeader {
			return e, nil
		}
	}
}

// check turns a header into an entry.
func (s *scanner) check(h *tar.Header) (entry, error) {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return entry{}, nil
	}
	name, err := cleanName(h.Name)
	if err != nil {
		return entry{}, err
	}
	e := entry{name: name, kind: h.Typeflag, data: s.in.off, size: h.Size}
	switch h.Typeflag {
	case tar.TypeReg:
		for key := range h.PAXRecords {
			if strings.HasPrefix(key, "GNU.sparse.") { // archive/tar would expand the holes
				return entry{}, fmt.Errorf("member %.200q is a sparse file: %w", name, ErrInvalid)
			}
		}
		if name == "." {
			return entry{}, fmt.Errorf("member %.200q is a regular file: %w", h.Name, ErrInvalid)
		}
	case tar.TypeDir:
		e.size = 0
	case tar.TypeSymlink:
		e.size, e.link = 0, linkTarget(path.Dir(name), h.Linkname)
	case tar.TypeLink:
		e.size, e.link = 0, linkTarget(".", h.Linkname)
	default:
		kind := cmp.Or(typeNames[h.Typeflag], fmt.Sprintf("of tar type %q", h.Typeflag))
		return entry{}, fmt.Errorf("member %.200q is %s: %w", name, kind, ErrInvalid)
	}
	if len(h.Linkname) > MaxMemberName {
		return entry{}, fmt.Errorf("member %.200q: its link has more than %d bytes: %w", name, MaxMemberName, ErrLimit)
	}
	if s.text += int64(len(name) + len(e.link)); s.text > MaxMetadataBytes {
		return entry{}, fmt.Errorf("more than %d MiB of member names: %w", MaxMetadataBytes>>20, ErrLimit)
	}
	// Every size fits after the offset: archive/tar refuses negative ones, and one more block must not overflow.
	if e.size > 1<<62 {
		return entry{}, fmt.Errorf("member %.200q: size %d: %w", name, e.size, ErrInvalid)
	}
	return e, nil
}

// cleanName is a member's name without "./" and trailing slash.
func cleanName(name string) (string, error) {
	if len(name) > MaxMemberName {
		return "", fmt.Errorf("member %.200q: its name has more than %d bytes: %w", name, MaxMemberName, ErrLimit)
	}
	if strings.ContainsFunc(name, unicode.IsControl) {
		return "", fmt.Errorf("member %.200q has a control character in its name: %w", name, ErrInvalid)
	}
	if fs.ValidPath(name) {
		return name, nil // as nearly all are
	}
	if strings.HasPrefix(name, "/") {
		return "", fmt.Errorf("member %.200q has an absolute name: %w", name, ErrInvalid)
	}
	if slices.Contains(strings.Split(name, "/"), "..") {
		return "", fmt.Errorf("member %.200q has .. in its name: %w", name, ErrInvalid)
	}
	return path.Clean(name), nil
}

func linkTarget(dir, link string) string {
	target := path.Join(dir, link)
	if path.IsAbs(link) || target == ".." || strings.HasPrefix(target, "../") {
		return ""
	}
	return target
}

// typeNames are those of members that no image archive needs.
var typeNames = map[byte]string{
	tar.TypeChar: "a device", tar.TypeBlock: "a device", tar.TypeFifo: "a FIFO", tar.TypeGNUSparse: "a sparse file",
}

// Read reads the bytes of the member that next returned last.
func (s *scanner) Read(p []byte) (int, error) {
	n, err := s.tr.Read(p)
	switch {
	case err == nil || err == io.EOF:
		return n, err //nolint:wrapcheck // a reader hands errors on
	case s.in.err != nil:
		s.err = s.in.err
	case errors.Is(err, io.ErrUnexpectedEOF):
		s.err = fmt.Errorf("the tar ends at byte %d within member %.200q: %w", s.in.off, s.name, ErrTruncated)
	default:
		s.err = fmt.Errorf("read member %.200q: %w: %w", s.name, err, ErrInvalid)
	}
	return n, s.err
}

// fault is the error of Read, or else what a sink made of the member's bytes.
func (s *scanner) fault(err error) error {
	if s.err != nil {
		return s.err
	}
	return fmt.Errorf("member %.200q: %w", s.name, err)
}

// explain turns an error of archive/tar into one of this package. archive/tar reports the end marker and a cut between
// two members in the same way.
func (s *scanner) explain(err error) error {
	in := s.in
	ended := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
	behind := in.off - in.end // bytes that were read behind the last member
	switch {
	case in.err != nil:
		return in.err
	case errors.Is(err, errHeaderTooLong), errors.Is(err, tar.ErrFieldTooLong):
		return fmt.Errorf("tar headers at byte %d have more than %d bytes: %w", in.end, MaxTarHeaderBytes, ErrLimit)
	case in.off == 0:
		return fmt.Errorf("an empty file: %w", ErrInvalid)
	case ended && behind >= blockSize && !in.nonZero:
		s.complete = true
		return io.EOF
	case ended && behind == 0:
		return io.EOF
	case s.members == 0 && !isTarStart(in.head):
		return fmt.Errorf("%s, not a tar archive: %w", describe(in.head), ErrInvalid)
	case ended:
		return fmt.Errorf("the tar ends at byte %d within a member: %w", in.off, ErrTruncated)
	default:
		return fmt.Errorf("tar header at byte %d: %w: %w", in.end, err, ErrInvalid)
	}
}

// errHeaderTooLong ends archive/tar's reading of one member's headers.
var errHeaderTooLong = errors.New("tar headers too long")

// tarInput counts what archive/tar reads, and keeps what errors need.
type tarInput struct {
	r   io.Reader
	off int64
	// end of the last member, its padding included.
	end int64
	// nonZero: a byte that is not zero was read after end.
	nonZero bool
	// header: archive/tar reads headers now; headerBytes of them so far.
	header      bool
	headerBytes int64
	head        []byte // the first block
	err         error  // of r itself
}

// maxHeaderRead leaves room for the header blocks around the extended ones, and for the last byte and the padding of the
// member before, which archive/tar reads with them.
const maxHeaderRead = MaxTarHeaderBytes + 8*blockSize

// Read fills p unless r ends, so that a block comes at once.
func (t *tarInput) Read(p []byte) (int, error) {
	if t.header {
		if t.headerBytes += int64(len(p)); t.headerBytes > maxHeaderRead {
			return 0, errHeaderTooLong
		}
	}
	n, err := io.ReadFull(t.r, p)
	if t.off < blockSize {
		t.head = append(t.head, p[:min(n, blockSize-int(t.off))]...)
	}
	if t.header && t.off >= t.end && !t.nonZero {
		t.nonZero = !isZero(p[:n])
	}
	t.off += int64(n)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return n, nil // io.EOF follows
	}
	if err != nil && !errors.Is(err, io.EOF) {
		t.err = err
	}
	return n, err //nolint:wrapcheck // a reader hands errors on
}

// seekInput lets archive/tar skip bodies.
type seekInput struct {
	*tarInput
	seeker io.Seeker
}

func (s *seekInput) Seek(offset int64, whence int) (int64, error) {
	n, err := s.seeker.Seek(offset, whence)
	if err == nil {
		s.off = n
	}
	return n, err
}

func isZero(p []byte) bool { return len(bytes.TrimLeft(p, "\x00")) == 0 }
