package archive_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/builder"
)

// TestRandomAccessReadsHeadersOnly: of 20 MB in 12 layers, only headers and metadata.
func TestRandomAccessReadsHeadersOnly(t *testing.T) {
	var layers []builder.Layer
	for i := range 12 {
		layers = append(layers, builder.Layer{Files: []builder.File{builder.Noise("noise", uint64(i), 20<<20/12)}})
	}
	a := builder.Archive{Images: []builder.Image{{Names: []string{"example.com/a:1"}, Platforms: []builder.PlatformImage{{Platform: builder.Platform("linux/amd64"), Layers: layers}}}}}
	for _, f := range []builder.Format{builder.OCI, builder.Hybrid, builder.Docker, builder.DockerClassic, builder.DockerDigest} {
		a.Format = f
		r := atBytes(bytesOf(t, a))
		tree, err := archive.ReadTree(t.Context(), r, r.size)
		if err != nil {
			t.Fatal(err)
		}
		wantError(t, use(t.Context(), tree), nil)
		if r.read > 64<<10 || r.sections > 0 {
			t.Errorf("format %d: %d bytes were read, %d sections", f, r.read, r.sections)
		}
	}
}

// sparse is a file of zeros but for some runs of bytes.
type sparse struct {
	size int64
	runs map[int64][]byte
}

func (s sparse) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	for at, data := range s.runs {
		if at < off+int64(len(p)) && off < at+int64(len(data)) {
			copy(p[max(0, at-off):], data[max(0, off-at):])
		}
	}
	if left := s.size - off; left < int64(len(p)) {
		return int(max(0, left)), io.EOF
	}
	return len(p), nil
}

// TestHugeMember: the size of 9 GiB does not fit into the octal field of a
// header, and the bytes of the member behind it must be found all the same.
func TestHugeMember(t *testing.T) {
	const huge = 9 << 30
	for _, format := range []tar.Format{tar.FormatPAX, tar.FormatGNU} {
		t.Run(format.String(), func(t *testing.T) {
			var head bytes.Buffer
			tw := tar.NewWriter(&head)
			name := strings.Repeat("long/", 50) + "layer.tar"
			if err := tw.WriteHeader(&tar.Header{Name: name, Size: huge, Mode: 0o644, Format: format}); err != nil {
				t.Fatal(err)
			}
			data := int64(head.Len())
			tail, err := builder.TarBytes(builder.FileMember("oci-layout", []byte("behind")))
			if err != nil {
				t.Fatal(err)
			}
			file := sparse{size: data + huge + int64(len(tail)), runs: map[int64][]byte{0: head.Bytes(), data + huge: tail}}
			r := &bytesAt{ReaderAt: file, size: file.size}
			tree, err := archive.ReadTree(t.Context(), r, r.size)
			if err != nil {
				t.Fatal(err)
			}
			if off, size, ok := tree.Locate(name); off != data || size != huge || !ok {
				t.Errorf("huge member: %d bytes at %d, %v", size, off, ok)
			}
			if got, err := tree.ReadFile(t.Context(), "oci-layout", 100); string(got) != "behind" || err != nil {
				t.Errorf("member behind it: %q, %v", got, err)
			}
			if r.read > 16<<10 {
				t.Errorf("%d bytes were read", r.read)
			}
			r = &bytesAt{ReaderAt: file, size: file.size - 2048}
			_, err = archive.ReadTree(t.Context(), r, data+huge-1)
			wantError(t, err, archive.ErrTruncated)
		})
	}
}

// repeated is one block over and over.
type repeated struct{ block []byte }

func (r repeated) ReadAt(p []byte, off int64) (int, error) {
	for n := 0; n < len(p); {
		n += copy(p[n:], r.block[(off+int64(n))%int64(len(r.block)):])
	}
	return len(p), nil
}

func TestMembersAreBounded(t *testing.T) {
	block, err := builder.TarBytes(builder.DirMember("d/"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		members int64
		want    error
	}{{archive.MaxMembers, nil}, {archive.MaxMembers + 1, archive.ErrLimit}} {
		r := &bytesAt{ReaderAt: repeated{block[:512]}, size: tc.members * 512}
		_, err := archive.ReadTree(t.Context(), r, r.size)
		wantError(t, err, tc.want)
		_, err = archive.StreamTree(t.Context(), io.NewSectionReader(r, 0, r.size), newStore())
		wantError(t, err, tc.want)
	}
}

func TestTarHeadersAreBounded(t *testing.T) {
	pax := func(n int) builder.Member {
		m := builder.FileMember("oci-layout", []byte("{}"))
		m.PAXRecords = map[string]string{"VENDOR.x": strings.Repeat("x", n)}
		return m
	}
	names := make([]builder.Member, 0, 5000)
	for i := range 5000 {
		names = append(names, builder.FileMember(fmt.Sprintf("%s/%d", strings.Repeat("n", 4000), i), nil))
	}
	for _, tc := range []struct {
		name    string
		members []builder.Member
		want    error
	}{
		{"a large PAX header", []builder.Member{pax(1 << 19)}, nil},
		{"many long names: 20 MB in memory", names, archive.ErrLimit},
	} {
		data, err := builder.TarBytes(tc.members...)
		if err != nil {
			t.Fatal(err)
		}
		for _, mode := range modes {
			t.Run(tc.name+"/"+mode.name, func(t *testing.T) {
				_, err := mode.tree(t.Context(), data)
				wantError(t, err, tc.want)
			})
		}
	}
}

// TestOneTarHeaderIsBounded: archive/tar itself gives up, in its own words.
func TestOneTarHeaderIsBounded(t *testing.T) {
	m := builder.FileMember("x", nil)
	m.PAXRecords = map[string]string{"VENDOR.x": "y"}
	data, err := builder.TarBytes(m)
	if err != nil {
		t.Fatal(err)
	}
	copy(data[124:], "00010000000\x00") // the extended header's size: 2 MiB
	setChecksum(data[:512])
	data = append(data, make([]byte, 3<<20)...)
	for _, mode := range modes {
		_, err := mode.tree(t.Context(), data)
		wantError(t, err, archive.ErrLimit)
	}
}

func setChecksum(block []byte) {
	copy(block[148:156], "        ")
	sum := 0
	for _, b := range block {
		sum += int(b)
	}
	copy(block[148:], fmt.Sprintf("%06o\x00 ", sum))
}

// TestChainedTarHeadersAreBounded: each header is small, but no member comes.
func TestChainedTarHeadersAreBounded(t *testing.T) {
	m := builder.FileMember("x", nil)
	m.PAXRecords = map[string]string{"VENDOR.x": strings.Repeat("x", 1<<19)}
	data, err := builder.TarBytes(m)
	if err != nil {
		t.Fatal(err)
	}
	header := data[:len(data)-1024-512] // without end marker and the member's own header
	chain := append(bytes.Repeat(header, 3), data...)
	for _, mode := range modes {
		_, err := mode.tree(t.Context(), chain)
		wantError(t, err, archive.ErrLimit)
	}
}

func TestSparseFilesAreRefused(t *testing.T) {
	m := builder.FileMember("blob", []byte("x"))
	pax, err := builder.TarBytes(m)
	if err != nil {
		t.Fatal(err)
	}
	// The old GNU format: type S, and a checksum that fits.
	old := bytes.Clone(pax)
	old[156] = 'S'
	copy(old[257:], "ustar  \x00")
	old[483] = '1' // real size 1
	setChecksum(old[:512])
	// PAX version 0.1: archive/tar refuses to write the records, so they take the place of others.
	m.PAXRecords = map[string]string{"VENDORxxxxxxxxx": "1"}
	if pax, err = builder.TarBytes(m); err != nil {
		t.Fatal(err)
	}
	pax = bytes.Replace(pax, []byte("VENDORxxxxxxxxx"), []byte("GNU.sparse.size"), 1)
	for name, data := range map[string][]byte{"old": old, "pax": pax} {
		for _, mode := range modes {
			t.Run(name+"/"+mode.name, func(t *testing.T) {
				_, err := mode.tree(t.Context(), data)
				wantError(t, err, archive.ErrInvalid)
			})
		}
	}
}

// TestDataOffsets: bytes are found whatever headers stand before them.
func TestDataOffsets(t *testing.T) {
	long := strings.Repeat("d/", 120)
	var members []builder.Member
	for i, f := range []tar.Format{tar.FormatUSTAR, tar.FormatPAX, tar.FormatGNU} {
		short, deep := builder.FileMember(fmt.Sprintf("f%d", i), fmt.Appendf(nil, "short %d", i)), builder.FileMember(fmt.Sprintf("%s%d", long, i), fmt.Appendf(nil, "deep %d", i))
		short.Format, deep.Format = f, f
		if f == tar.FormatPAX {
			short.PAXRecords = map[string]string{"VENDOR.x": strings.Repeat("y", 1000)}
		}
		members = append(members, short)
		if f != tar.FormatUSTAR {
			members = append(members, deep)
		}
	}
	data, err := builder.TarBytes(members...)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := archive.ReadTree(t.Context(), atBytes(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range members {
		want, err := io.ReadAll(m.Open())
		if err != nil {
			t.Fatal(err)
		}
		off, size, ok := tree.Locate(m.Name)
		if !ok || string(data[off:off+size]) != string(want) {
			t.Errorf("%.20q: %d bytes at %d, %v", m.Name, size, off, ok)
		}
	}
}

// TestStreamIsReadToItsEnd: the checksum of an outer compression is behind the tar.
func TestStreamIsReadToItsEnd(t *testing.T) {
	data := bytesOf(t, simple())
	r := io.MultiReader(bytes.NewReader(append(data, make([]byte, 9216)...)), failing{})
	_, err := archive.StreamTree(t.Context(), r, newStore())
	wantError(t, err, errSource)
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errSource }

// TestSinkErrorsComeThrough, and a sink that hides a cut does not hide it.
func TestSinkErrorsComeThrough(t *testing.T) {
	data := bytesOf(t, simple())
	sink := &brokenSink{store: newStore(), err: errors.New("disk full")}
	_, err := archive.StreamTree(t.Context(), bytes.NewReader(data), sink)
	wantError(t, err, sink.err)
	_, err = archive.StreamTree(t.Context(), bytes.NewReader(data[:600]), sink)
	wantError(t, err, archive.ErrTruncated)
}
