package condition

import (
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/dustin/go-humanize"
)

// MaxText bounds what status and Events say of an error: the note of an Event may have 1 KiB.
const MaxText = 1000

const (
	// MaxSample bounds the JSON of each of the samples of failures that an ImageArchive shows: ten of them, with names of
	// 253 bytes, and two conditions of MaxText stay below 16 KiB.
	MaxSample = 400
)

var (
	urlQuery    = regexp.MustCompile(`(https?://[^\s"'?#]*)[?#][^\s"']*`)
	urlUserinfo = regexp.MustCompile(`(https?://)[^\s"'/?#]*@`)
)

// ErrorText is an error's text as it may appear in status, Events and logs: one line without control characters,
// without user, password and query string of any URL, and not too long. The packages below keep to most of that
// themselves; this is for the libraries under them.
func ErrorText(err error) string {
	s := urlUserinfo.ReplaceAllString(OneLine(err.Error()), "$1")
	return Clip(urlQuery.ReplaceAllString(s, "$1"))
}

// OneLine is a text without control characters, in valid UTF-8.
func OneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
}

// Clip shortens a text to MaxText bytes.
func Clip(s string) string {
	if len(s) <= MaxText {
		return s
	}
	return strings.ToValidUTF8(s[:MaxText-len("…")], "") + "…"
}

// ClipTo shortens a text so that it takes at most this many bytes in JSON, where a character may take six.
func ClipTo(s string, most int) string {
	if 6*len(s) <= most {
		return s
	}
	size, fits := 0, 0 // fits: up to here there is also room for the ellipsis
	for i, r := range s {
		if size += jsonSize(r); size > most {
			return s[:fits] + "…"
		}
		if size+len("…") <= most {
			fits = i + utf8.RuneLen(r)
		}
	}
	return s
}

// jsonSize is how many bytes a character of a valid text takes in a JSON string, as encoding/json writes it.
func jsonSize(r rune) int {
	switch {
	case r == '"' || r == '\\':
		return 2
	case r < ' ' || r == '<' || r == '>' || r == '&' || r == '\u2028' || r == '\u2029':
		return 6
	}
	return utf8.RuneLen(r)
}

// DisplaySize is a number of bytes for the reader's eye, such as 45MiB; empty for none.
func DisplaySize(n int64) string {
	if n <= 0 {
		return ""
	}
	return strings.ReplaceAll(humanize.IBytes(uint64(n)), " ", "")
}

// Count is a number with its noun, such as 1 image or 3 images.
func Count(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return humanize.Comma(int64(n)) + " " + noun
}
