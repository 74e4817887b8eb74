package archive

import (
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"
)

// magics of files that people take for an archive, or that servers send instead of one.
var magics = []struct{ magic, what string }{
	{"\x1f\x8b", "gzip data (compress an archive once only)"},
	{"\x28\xb5\x2f\xfd", "zstd data (compress an archive once only)"},
	{"\xfd7zXZ\x00", "xz data (recompress it with zstd or gzip)"},
	{"BZh", "bzip2 data (recompress it with zstd or gzip)"},
	{"\x04\x22\x4d\x18", "lz4 data (recompress it with zstd or gzip)"},
	{"PK\x03\x04", "a zip file"},
	{"7z\xbc\xaf\x27\x1c", "a 7z file"},
	{"!<arch>\n", "an ar archive"},
	{"hsqs", "a squashfs image"},
	{"\x7fELF", "an ELF file"},
	{"%PDF-", "a PDF"},
	{"-----BEGIN ", "a PEM file"},
	{"version https://git-lfs", "a Git LFS pointer"},
}

// describe says what a file that is not a tar seems to be, by its first bytes.
func describe(head []byte) string {
	for _, m := range magics {
		if bytes.HasPrefix(head, []byte(m.magic)) {
			return m.what
		}
	}
	text := strings.ToLower(strings.TrimSpace(strings.TrimPrefix(string(head), "\ufeff")))
	switch {
	case strings.HasPrefix(text, "<!doctype html"), strings.HasPrefix(text, "<html"), strings.HasPrefix(text, "<head"):
		return "an HTML page"
	case strings.HasPrefix(text, "<"):
		return "an XML document"
	case strings.HasPrefix(text, "{"), strings.HasPrefix(text, "["):
		return "a JSON document"
	case isText(head):
		return "a text"
	case isZero(head):
		return fmt.Sprintf("%d zero bytes", len(head))
	default:
		return "binary data of an unknown kind"
	}
}

// isText allows for a character that is cut at the end.
func isText(head []byte) bool {
	for len(head) > 0 {
		r, n := utf8.DecodeRune(head)
		if r == utf8.RuneError && len(head) >= utf8.UTFMax || r < ' ' && r != '\n' && r != '\r' && r != '\t' {
			return false
		}
		head = head[n:]
	}
	return true
}

// isTarStart says whether less than a block may begin a tar header: a name, then zeros to the end of its field.
func isTarStart(head []byte) bool {
	const nameLen = 100
	name := head[:min(len(head), nameLen)]
	end := bytes.IndexByte(name, 0)
	return end > 0 && isText(name[:end]) && isZero(name[end:])
}
