package archive

import (
	"errors"
	"io"
)

// Compression of a whole archive or of a layer.
type Compression int

// The compressions that are read. Of them, Uncompressed means: none that is known.
const (
	Uncompressed Compression = iota
	Gzip
	Zstd
)

// SniffLen is the number of bytes that Sniff wants.
const SniffLen = 10

// Sniff tells the compression by the first bytes.
func Sniff(head []byte) Compression { return Uncompressed }

// Decompress gives the bytes in r without their compression. Errors of r come
// through as they are. Other errors are ErrTruncated, ErrInvalid (wrong
// checksum, not that format) or ErrLimit (MaxExpansion, MaxWindowBytes). Closing it
// does not close r.
func Decompress(r io.Reader, c Compression) (io.ReadCloser, error) {
	return nil, errors.New("not implemented")
}
