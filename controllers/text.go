package controllers

import (
	"regexp"
	"strings"
	"unicode"

	"github.com/dustin/go-humanize"
)

// maxText bounds what status and Events say of an error: the note of an Event may have 1 KiB.
const maxText = 1000

var (
	urlQuery    = regexp.MustCompile(`(https?://[^\s"'?#]*)[?#][^\s"']*`)
	urlUserinfo = regexp.MustCompile(`(https?://)[^\s"'/?#]*@`)
)

// errorText is an error's text as it may appear in status, Events and logs: one line without control characters,
// without user, password and query string of any URL, and not too long. The packages below keep to most of that
// themselves; this is for the libraries under them.
func errorText(err error) string {
	s := strings.ToValidUTF8(err.Error(), "\uFFFD")
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, s)
	s = urlUserinfo.ReplaceAllString(s, "$1")
	s = urlQuery.ReplaceAllString(s, "$1")
	return clip(s)
}

func clip(s string) string {
	if len(s) <= maxText {
		return s
	}
	return strings.ToValidUTF8(s[:maxText-len("…")], "") + "…"
}

// displaySize is a number of bytes for the reader's eye, such as 45MiB; empty for none.
func displaySize(n int64) string {
	if n <= 0 {
		return ""
	}
	return strings.ReplaceAll(humanize.IBytes(uint64(n)), " ", "")
}

// count is a number with its noun, such as 1 image or 3 images.
func count(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return humanize.Comma(int64(n)) + " " + noun
}
