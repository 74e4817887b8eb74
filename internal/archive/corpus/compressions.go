package corpus

import (
	"archive/tar"
	"bytes"
	"encoding/binary"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

func gzipped(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	must(w.Write(b))
	must(0, w.Close())
	return out.Bytes()
}

func zstandard(b []byte, o ...zstd.EOption) []byte {
	return must(zstd.NewWriter(nil, append(o, zstd.WithEncoderConcurrency(1))...)).EncodeAll(b, nil)
}

// changed has other bits in the byte at k, counted from the end.
func changed(b []byte, k int) []byte {
	out := bytes.Clone(b)
	out[len(out)-k] ^= 0xff
	return out
}

// compressions are around whole archives.
func compressions() []Case {
	k := usual()
	gz, zs := gzipped(k.tar), zstandard(k.tar)
	wide := bytes.Clone(zs[:4])
	// A frame without its content's size, and a window of 64 MiB (RFC 8878, 3.1.1.1): what --long=26 makes.
	wide = append(wide, 0x00, (26-10)<<3, 0x03, 0x00, 0x00, 'x')
	return []Case{
		accepted(of("", "gzip", gz), k.Image),
		accepted(of("", "zstd", zs), k.Image),
		of(Truncated, "gzip, cut", gz[:len(gz)/2], "gzip data ends early"),
		of(Truncated, "gzip, cut in its checksum", gz[:len(gz)-5], "gzip data ends early"),
		of(Truncated, "gzip, cut behind its header", gz[:11], "gzip data ends early"),
		of(Truncated, "zstd, cut", zs[:len(zs)/2], "zstd data ends early"),
		of(Invalid, "gzip with a wrong checksum", changed(gz, 8), "gzip data", "checksum"),
		of(Invalid, "zstd with a wrong checksum", changed(zs, 1), "zstd data"),
		of(Invalid, "gzip with something behind it", append(bytes.Clone(gz), "something that is no gzip"...), "gzip data"),
		of(Invalid, "gzip twice", gzipped(gz), "gzip data", "once"),
		of(Invalid, "zstd in gzip", gzipped(zs), "zstd data", "once"),
		of(Invalid, "an HTML page in gzip", gzipped([]byte("<html>Sign in</html>")), "an HTML page"),
		of(LimitExceeded, "zstd with a window of 64 MiB", wide, "--long=25"),
		lazy(LimitExceeded, "gzip, 1000 times as large when expanded", gzipBomb, "expand", "200 times"),
		lazy(LimitExceeded, "8 GiB of zeros in zstd", func() *Data { return zstdBomb(nil) }, "zeros after the end"),
		lazy(LimitExceeded, "8 GiB of a blob of zeros in zstd", func() *Data {
			return zstdBomb(header(tar.Header{Name: "blobs/sha256/" + zerosDigest, Size: 8 << 30, Format: tar.FormatGNU}))
		}, "expand", "200 times"),
	}
}

// zerosDigest is that of nothing: what is behind it is never read to its end.
const zerosDigest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// gzipBomb is a blob of a GiB: members of gzip with a MiB of zeros each, which make a KiB.
func gzipBomb() *Data {
	const size = 1 << 30
	head := gzipped(header(tar.Header{Name: "blobs/sha256/" + zerosDigest, Size: size, Format: tar.FormatUSTAR}))
	mib := gzipped(make([]byte, 1<<20))
	return join(data(head), repeat(mib, size>>20*int64(len(mib))), data(gzipped(make([]byte, 2*blockSize))))
}

// zstdBomb has a block of a tar, or nothing, and then 8 GiB of zeros, a frame of which each block says how often its byte comes (RFC 8878,
// 3.1.1.2).
func zstdBomb(head []byte) *Data {
	const (
		blockMax = 128 << 10
		rle      = 1 << 1
		last     = 1
	)
	var frame []byte
	frame = binary.LittleEndian.AppendUint32(frame, 0xfd2fb528)
	frame = append(frame, 0x00, (17-10)<<3) // no checksum, a window of 128 KiB
	block := func(flags uint32) []byte {
		h := binary.LittleEndian.AppendUint32(nil, blockMax<<3|rle|flags)
		return append(h[:3], 0)
	}
	if len(head) > 0 {
		raw := binary.LittleEndian.AppendUint32(nil, blockSize<<3)
		frame = append(append(frame, raw[:3]...), head...)
	}
	return join(data(frame), repeat(block(0), (8<<30/blockMax-1)*4), data(block(last)))
}
