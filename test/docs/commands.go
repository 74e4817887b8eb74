package docs

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// root is the module's, as tests of commands see it.
const root = "../.."

var flagPattern = regexp.MustCompile(`--([a-z][a-z-]*)`)

// CheckFlags checks that a program's page names each of its commands and flags, and no other flag.
func CheckFlags(t *testing.T, program *cobra.Command, path string) {
	t.Helper()
	page, err := Read(root, path)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(page.Lines, "\n")
	documented := map[string]bool{}
	for _, m := range flagPattern.FindAllStringSubmatch(text, -1) {
		documented[m[1]] = true
	}
	exist := map[string]bool{"help": true}
	for _, cmd := range program.Commands() {
		if !strings.Contains(text, cmd.CommandPath()) {
			t.Errorf("%s is not documented", cmd.CommandPath())
		}
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			exist[f.Name] = true
			if !documented[f.Name] {
				t.Errorf("%s --%s is not documented", cmd.CommandPath(), f.Name)
			}
		})
	}
	for name := range documented {
		if !exist[name] {
			t.Errorf("%s: no command has the flag --%s", path, name)
		}
	}
}

// CheckCommandLines checks each command line of a program on any page: the command exists and has the flags. A page must
// have at least least of them, or they are not found any more.
func CheckCommandLines(t *testing.T, program *cobra.Command, least int) {
	t.Helper()
	pages, err := Pages(root)
	if err != nil {
		t.Fatal(err)
	}
	// The program under any of its names and paths, a command, and what belongs to the command.
	pattern := regexp.MustCompile(`(?:^|[\s/'(-])` + program.Name() + ` ([a-z]+)([^|;&'` + "`" + `]*)`)
	program.InitDefaultCompletionCmd()
	found := 0
	for _, page := range pages {
		for _, line := range code(page) {
			if strings.Contains(line, "helm ") {
				continue // tarlift is also the name of the chart
			}
			for _, m := range pattern.FindAllStringSubmatch(strings.ReplaceAll(line, "the agent ", ""), -1) {
				found++
				all := program.Commands()
				k := slices.IndexFunc(all, func(c *cobra.Command) bool { return c.Name() == m[1] })
				if k < 0 {
					t.Errorf("%s: %s: there is no command %s", page.Path, line, m[1])
					continue
				}
				arguments, _, _ := strings.Cut(m[2], "#")
				for _, f := range flagPattern.FindAllStringSubmatch(arguments, -1) {
					if f[1] != "help" && all[k].Flags().Lookup(f[1]) == nil {
						t.Errorf("%s: %s: %s has no flag --%s", page.Path, line, m[1], f[1])
					}
				}
			}
		}
	}
	if found < least {
		t.Errorf("only %d command lines of %s: are they still found?", found, program.Name())
	}
}

var inline = regexp.MustCompile("`([^`]+)`")

// code is what a page shows as code, by lines; a line that goes on in the next one is one with it.
func code(page Page) (lines []string) {
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
