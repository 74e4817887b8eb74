package main

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/tarlift/tarlift/test/docs"
)

// The page of the command names every command and flag, and the command lines of all pages exist.
func TestDocumentation(t *testing.T) {
	docs.CheckFlags(t, newRootCommand(), "docs/agent-cli.md")
	docs.CheckCommandLines(t, newRootCommand(), 40)
}

// The agent's image has nothing that only a desk needs.
func TestLinks(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(out), "tarlift/internal/bundle\n") {
		t.Error("the agent links internal/bundle")
	}
}
