package main

import (
	"os"
	"regexp"
	"testing"

	"github.com/spf13/pflag"
)

// The page of the command names every flag, and no other.
func TestFlagsAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/agent-cli.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for _, m := range regexp.MustCompile(`--([a-z][a-z-]*)`).FindAllSubmatch(page, -1) {
		documented[string(m[1])] = true
	}
	exist := map[string]bool{"help": true}
	for _, cmd := range newRootCommand().Commands() {
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
