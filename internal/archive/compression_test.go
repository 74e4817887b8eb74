package archive_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/builder"
)

func compressed(t *testing.T, c builder.Compression, a builder.Archive) []byte {
	t.Helper()
	a.Compression = c
	return bytesOf(t, a)
}

func decompress(r io.Reader, c archive.Compression) ([]byte, error) {
	d, err := archive.Decompress(r, c, archive.MaxWindowBytes)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(d)
	return data, errors.Join(err, d.Close())
}

func TestDecompress(t *testing.T) {
	plain := bytesOf(t, simple())
	skippable := []byte{0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4}
	gz, zs := compressed(t, builder.Gzip, simple()), compressed(t, builder.Zstd, simple())
	for _, tc := range []struct {
		name string
		data []byte
		kind archive.Compression
		size int // in copies of plain
	}{
		{"none", plain, archive.Uncompressed, 1},
		{"gzip", gz, archive.Gzip, 1},
		{"zstd", zs, archive.Zstd, 1},
		{"gzip in two parts, as pigz and estargz write", append(bytes.Clone(gz), gz...), archive.Gzip, 2},
		{"zstd in two frames", append(bytes.Clone(zs), zs...), archive.Zstd, 2},
		{"zstd behind a skippable frame, as pzstd writes", append(skippable, zs...), archive.Zstd, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := archive.Sniff(tc.data[:archive.SniffLen]); got != tc.kind {
				t.Errorf("sniffed %s, want %s", got, tc.kind)
			}
			got, err := decompress(bytes.NewReader(tc.data), tc.kind)
			if err != nil || !bytes.Equal(got, bytes.Repeat(plain, tc.size)) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
}

func TestSniffShort(t *testing.T) {
	for _, head := range []string{"", "\x1f", "\x1f\x8b\x08"} {
		if got := archive.Sniff([]byte(head)); got != archive.Uncompressed {
			t.Errorf("%q is %s", head, got)
		}
	}
}

func TestDecompressDefects(t *testing.T) {
	plain := bytesOf(t, simple())
	gz, zs := compressed(t, builder.Gzip, simple()), compressed(t, builder.Zstd, simple())
	flip := func(data []byte, i int) []byte {
		out := bytes.Clone(data)
		out[i] ^= 0xff
		return out
	}
	wide := zstdWindow(t, 64<<20)
	for _, tc := range []struct {
		name string
		data []byte
		kind archive.Compression
		want error
	}{
		{"gzip cut", gz[:len(gz)/2], archive.Gzip, archive.ErrTruncated},
		{"gzip cut in its checksum", gz[:len(gz)-3], archive.Gzip, archive.ErrTruncated},
		{"gzip cut in its header", gz[:5], archive.Gzip, archive.ErrTruncated},
		{"no gzip at all", nil, archive.Gzip, archive.ErrTruncated},
		{"gzip with a wrong checksum", flip(gz, len(gz)-6), archive.Gzip, archive.ErrInvalid},
		{"gzip with something behind it", append(bytes.Clone(gz), "something else"...), archive.Gzip, archive.ErrInvalid},
		{"not gzip", plain, archive.Gzip, archive.ErrInvalid},
		{"zstd cut", zs[:len(zs)/2], archive.Zstd, archive.ErrTruncated},
		{"zstd cut in its checksum", zs[:len(zs)-3], archive.Zstd, archive.ErrTruncated},
		{"zstd with a wrong checksum", flip(zs, len(zs)-1), archive.Zstd, archive.ErrInvalid},
		{"not zstd", plain, archive.Zstd, archive.ErrInvalid},
		{"zstd with the largest window", zstdWindow(t, archive.MaxWindowBytes), archive.Zstd, nil},
		{"zstd with a larger window", wide, archive.Zstd, archive.ErrLimit},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := decompress(bytes.NewReader(tc.data), tc.kind)
			wantError(t, err, tc.want)
		})
	}
}

// zstdWindow compresses a little more than the window, so that the frame needs all of it.
func zstdWindow(t *testing.T, window int) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := zstd.NewWriter(&buf, zstd.WithWindowSize(window), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(w, mustOpen(t, builder.Noise("", 1, 1<<62)), int64(window)+1); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// TestDecompressKeepsSourceErrors: a broken connection is not a bad file.
func TestDecompressKeepsSourceErrors(t *testing.T) {
	for kind, data := range map[archive.Compression][]byte{
		archive.Gzip: compressed(t, builder.Gzip, simple()),
		archive.Zstd: compressed(t, builder.Zstd, simple()),
	} {
		for _, n := range []int{0, 3, 20, len(data) - 2} {
			_, err := decompress(io.MultiReader(bytes.NewReader(data[:n]), failing{}), kind)
			wantError(t, err, errSource)
		}
	}
}

// TestExpansionIsBounded: zeros shrink by gzip to a thousandth.
func TestExpansionIsBounded(t *testing.T) {
	for _, tc := range []struct {
		name  string
		zeros int64
		noise int64
		want  error
	}{
		{"zeros below the grace", archive.ExpansionGraceBytes - 1<<20, 0, nil},
		{"zeros above it", archive.ExpansionGraceBytes + 1<<20, 0, archive.ErrLimit},
		{"as many, with enough real content", archive.ExpansionGraceBytes + 1<<20, 1 << 20, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var buf bytes.Buffer
			w, err := gzip.NewWriterLevel(&buf, gzip.BestSpeed)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.CopyN(w, mustOpen(t, builder.Noise("", 1, tc.noise+1)), tc.noise); err != nil {
				t.Fatal(err)
			}
			if _, err := io.CopyN(w, zeros{}, tc.zeros); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			d, err := archive.Decompress(&buf, archive.Gzip, archive.MaxWindowBytes)
			if err != nil {
				t.Fatal(err)
			}
			n, err := io.Copy(io.Discard, d)
			wantError(t, err, tc.want)
			if n > archive.ExpansionGraceBytes+1<<20+tc.noise {
				t.Errorf("%d bytes came out", n)
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
