package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"
)

// PrintJSON prints one object on one line, without HTML's escapes.
func PrintJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("print the result: %w", err)
	}
	return nil
}

// PrintRow prints a line of a table. The cells may come from an archive.
func PrintRow(w io.Writer, cells ...string) {
	for i, c := range cells {
		cells[i] = OneLine(c)
	}
	fmt.Fprintln(w, strings.Join(cells, "\t"))
}

// Size formats a number of bytes for people, such as 45 MiB.
func Size(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

// maxListed is how many of many names a message lists.
const maxListed = 5

// List formats a few of many names, and the number of the others.
func List(names []string) string {
	text := strings.Join(names[:min(len(names), maxListed)], ", ")
	if more := len(names) - maxListed; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// OneLine makes text from outside fit for a terminal and a log: without line breaks and control characters, which a name
// or a server could smuggle in.
func OneLine(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case r == '\n':
			b.WriteString("; ") // errors.Join puts line breaks between errors
		case !strconv.IsPrint(r):
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		default:
			b.WriteRune(r)
		}
		s = s[size:]
	}
	return b.String()
}

// IsTerminal reports whether f is a terminal: only terminals have terminal attributes.
func IsTerminal(f any) bool {
	file, ok := f.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return err == nil
}
