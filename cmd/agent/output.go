package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/dustin/go-humanize"
)

// printJSON prints one object on one line, with the characters that names and messages really have.
func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("print the result: %w", err)
	}
	return nil
}

// printRow prints a line of a table. The cells may come from an archive.
func printRow(w io.Writer, cells ...string) {
	for i, c := range cells {
		cells[i] = oneLine(c)
	}
	fmt.Fprintln(w, strings.Join(cells, "\t"))
}

// size is a number of bytes for the reader's eye, such as 45 MiB.
func size(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }
