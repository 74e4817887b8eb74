package main

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/tarlift/tarlift/test/docs"
)

var flagPattern = regexp.MustCompile(`--([a-z][a-z-]*)`)

// The page of the command names every command and flag, and no other flag.
func TestFlagsAreDocumented(t *testing.T) {
	page, err := docs.Read("../..", "docs/agent-cli.md")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(page.Lines, "\n")
	documented := map[string]bool{}
	for _, m := range flagPattern.FindAllStringSubmatch(text, -1) {
		documented[m[1]] = true
	}
	exist := map[string]bool{"help": true}
	for _, cmd := range newRootCommand().Commands() {
		if !strings.Contains(text, "agent "+cmd.Name()) {
			t.Errorf("agent %s is not documented", cmd.Name())
		}
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			exist[f.Name] = true
			if !documented[f.Name] {
				t.Errorf("agent %s --%s is not documented", cmd.Name(), f.Name)
			}
		})
	}
	for name := range documented {
		if !exist[name] {
			t.Errorf("no command has the flag --%s", name)
		}
	}
}

// Each command line of the pages is one of a command that exists, with flags that it has.
func TestCommandLinesExist(t *testing.T) {
	pages, err := docs.Pages("../..")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, page := range pages {
		for _, line := range code(page) {
			said := strings.ReplaceAll(line, "the agent ", "") // not called
			for _, m := range commandPattern.FindAllStringSubmatch(said, -1) {
				found++
				cmd := commandNamed(m[1])
				if cmd == nil {
					t.Errorf("%s: %s: there is no command %s", page.Path, line, m[1])
					continue
				}
				arguments, _, _ := strings.Cut(m[2], "#")
				for _, f := range flagPattern.FindAllStringSubmatch(arguments, -1) {
					if f[1] != "help" && cmd.Flags().Lookup(f[1]) == nil {
						t.Errorf("%s: %s: %s has no flag --%s", page.Path, line, m[1], f[1])
					}
				}
			}
		}
	}
	if found < 40 {
		t.Errorf("only %d command lines: are they still found?", found)
	}
}

// commandPattern is the agent under any of its names and paths, a command, and what belongs to that.
var commandPattern = regexp.MustCompile(`(?:^|[\s/'(-])agent ([a-z]+)([^|;&'` + "`" + `]*)`)

func commandNamed(name string) *cobra.Command {
	root := newRootCommand()
	root.InitDefaultCompletionCmd()
	all := root.Commands()
	k := slices.IndexFunc(all, func(c *cobra.Command) bool { return c.Name() == name })
	if k < 0 {
		return nil
	}
	return all[k]
}

var inline = regexp.MustCompile("`([^`]+)`")

// code is what a page shows as code, by lines; a line that goes on in the next one is one with it.
func code(page docs.Page) (lines []string) {
	blocks, prose := page.Parts()
	for _, b := range blocks {
		lines = append(lines, strings.Split(strings.ReplaceAll(b.Text, "\\\n", " "), "\n")...)
	}
	for _, line := range prose {
		for _, m := range inline.FindAllStringSubmatch(line, -1) {
			lines = append(lines, m[1])
		}
	}
	return lines
}
