// Command still draws text from a terminal, on standard input, as an SVG picture on standard output: for the pictures
// of real runs in the documentation. It keeps bold text, and drops every other escape sequence.
//
//	make demo | tee demo.txt   # and cut demo.txt to what is to be seen
//	go run ./hack/still <demo.txt >docs/demo.svg
package main

import (
	"bufio"
	"fmt"
	"html"
	"io"
	"os"
	"regexp"
	"strings"
	"unicode/utf8"
)

const (
	fontSize   = 13
	charWidth  = 7.83 // of the monospace fonts named below, at that size
	lineHeight = 18
	margin     = 16
)

func main() {
	if err := draw(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "still:", err)
		os.Exit(1)
	}
}

// escape matches the sequences that programs print to a terminal.
var escape = regexp.MustCompile("\x1b\\[[0-9;?]*[A-Za-z]")

const bold = "\x1b[1m"

func draw(in io.Reader, out io.Writer) error {
	var lines []string
	columns := 0
	scanner := bufio.NewScanner(in)
	for scanner.Scan() {
		lines = append(lines, strings.TrimRight(scanner.Text(), " \r"))
		columns = max(columns, utf8.RuneCountInString(escape.ReplaceAllString(scanner.Text(), "")))
	}
	if err := scanner.Err(); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	width, height := int(float64(columns)*charWidth)+2*margin, len(lines)*lineHeight+2*margin
	w := bufio.NewWriter(out)
	fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %[1]d %[2]d" width="%[1]d" height="%[2]d">
<rect width="100%%" height="100%%" rx="8" fill="#0d1117"/>
<g font-family="ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace" font-size="%[3]d" fill="#c9d1d9" xml:space="preserve">
`, width, height, fontSize)
	for k, line := range lines {
		attributes := ""
		switch {
		case strings.Contains(line, bold):
			attributes = ` font-weight="bold" fill="#ffffff"`
		case strings.HasPrefix(line, "$ "):
			attributes = ` fill="#7ee787"`
		}
		text := escape.ReplaceAllString(line, "")
		if text == "" {
			continue
		}
		fmt.Fprintf(w, "<text x=\"%d\" y=\"%d\"%s>%s</text>\n", margin, margin+fontSize+k*lineHeight, attributes, html.EscapeString(text))
	}
	fmt.Fprintln(w, "</g>\n</svg>")
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}
