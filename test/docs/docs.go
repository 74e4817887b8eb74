// Package docs reads the documentation for tests: what its pages show is what the tests run, apply and look up.
package docs

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Page is a file of Markdown.
type Page struct {
	Path  string // relative to the module's root
	Lines []string
}

// Pages reads the module's pages: README and its neighbours, and docs. root is the module's, as the test sees it.
func Pages(root string) ([]Page, error) {
	var pages []Page
	for _, pattern := range []string{"*.md", "docs/*.md"} {
		files, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil || len(files) == 0 {
			return nil, fmt.Errorf("no %s in %s: %w", pattern, root, err)
		}
		for _, file := range files {
			path, err := filepath.Rel(root, file)
			if err != nil {
				return nil, err
			}
			page, err := Read(root, path)
			if err != nil {
				return nil, err
			}
			pages = append(pages, page)
		}
	}
	return pages, nil
}

// Read reads one page.
func Read(root, path string) (Page, error) {
	text, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		return Page{}, err
	}
	return Page{Path: filepath.ToSlash(path), Lines: strings.Split(string(text), "\n")}, nil
}

// Block is a part of a page that is code.
type Block struct {
	Language string // what is behind the opening fence; "" of an indented block
	Line     int    // of its first line, from 1
	Text     string // without the fences, and without the indentation of an indented block
}

const fence, indent = "```", "    "

// Parts splits a page into its code blocks and the rest. Of the rest, a line is at its index in the page; code is
// empty lines there. Indented blocks are told from lists by the empty line before them, which these pages put there.
func (p Page) Parts() (blocks []Block, prose []string) {
	prose = make([]string, len(p.Lines))
	for k := 0; k < len(p.Lines); k++ {
		line := p.Lines[k]
		switch {
		case strings.HasPrefix(line, fence):
			b := Block{Language: strings.TrimPrefix(line, fence), Line: k + 2}
			for k++; k < len(p.Lines) && !strings.HasPrefix(p.Lines[k], fence); k++ {
				b.Text += p.Lines[k] + "\n"
			}
			blocks = append(blocks, b)
		case strings.HasPrefix(line, indent) && k > 0 && p.Lines[k-1] == "":
			b := Block{Line: k + 1}
			for ; k < len(p.Lines) && strings.HasPrefix(p.Lines[k], indent); k++ {
				b.Text += strings.TrimPrefix(p.Lines[k], indent) + "\n"
			}
			k-- // the line that ended it
			blocks = append(blocks, b)
		default:
			prose[k] = line
		}
	}
	return blocks, prose
}
