package release_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

// A workflow is the part of a forge's workflow file that is held to something here.
type workflow struct {
	Permissions map[string]string
	Jobs        map[string]struct {
		Permissions map[string]string
		Steps       []struct{ Uses, Run string }
	}
}

func workflows(t *testing.T) map[string]workflow {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(root, ".github/workflows/*.yaml"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("workflows: %q, %v", paths, err)
	}
	all := map[string]workflow{}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var w workflow
		if err := yaml.Unmarshal(data, &w); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		all[filepath.Base(path)] = w
	}
	return all
}

// Without "permissions", a workflow has whatever the repository's settings give.
func TestWorkflowsMayWriteReleasesOnly(t *testing.T) {
	var writes []string
	for name, w := range workflows(t) {
		if w.Permissions == nil {
			t.Errorf("%s has no permissions", name)
		}
		for what, may := range w.Permissions {
			if may != "read" {
				t.Errorf("%s: every job may %s %s", name, may, what)
			}
		}
		for id, job := range w.Jobs {
			for what, may := range job.Permissions {
				if may != "read" {
					writes = append(writes, name+" "+id+" "+what)
				}
			}
		}
	}
	if diff := cmp.Diff([]string{"release.yaml release contents"}, writes); diff != "" {
		t.Errorf("what jobs may write (-want +got):\n%s", diff)
	}
}

var (
	// A tag can be moved to other code; a commit cannot.
	pinned  = regexp.MustCompile(`^[\w.-]+/[\w./-]+@[0-9a-f]{40}$`)
	targets = regexp.MustCompile(`\bmake((?: +[a-z][a-z-]*)+)`)
)

func TestWorkflowsRunWhatIsThere(t *testing.T) {
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	ran := map[string]bool{}
	for name, w := range workflows(t) {
		for id, job := range w.Jobs {
			for _, step := range job.Steps {
				if step.Uses != "" && !pinned.MatchString(step.Uses) {
					t.Errorf("%s %s: %s is not pinned to a commit", name, id, step.Uses)
				}
				if step.Run == "" {
					continue
				}
				if _, all, err := run(t, root, nil, "bash", "-n", "-c", step.Run); err != nil {
					t.Errorf("%s %s: %v: %s", name, id, err, all)
				}
				for _, m := range targets.FindAllStringSubmatch(step.Run, -1) {
					for target := range strings.FieldsSeq(m[1]) {
						ran[target] = true
					}
				}
				if strings.Contains(step.Run, ".ci/run") {
					ran[".ci/run"] = true
				}
			}
		}
	}
	for target := range ran {
		if target != ".ci/run" && !strings.Contains(string(makefile), "\n"+target+":") {
			t.Errorf("make %s is run, and does not exist", target)
		}
	}
	for _, want := range []string{".ci/run", "release", "test-slow", "test-faults"} {
		if !ran[want] {
			t.Errorf("no workflow runs %s", want)
		}
	}
}

func TestNotes(t *testing.T) {
	dir := t.TempDir()
	script, err := os.ReadFile(filepath.Join(root, "hack/notes.sh"))
	if err != nil {
		t.Fatal(err)
	}
	changelog := `# Changelog

## [Unreleased]

## [1.2.3] - 2030-02-03

### Fixed

- A thing.

## [1.2.3-rc.1] - 2030-01-02

- Another thing.

[Unreleased]: https://example.com/compare/v1.2.3...main
`
	for name, data := range map[string]string{"hack/notes.sh": string(script), "CHANGELOG.md": changelog} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for version, want := range map[string]string{
		"1.2.3":      "\n### Fixed\n\n- A thing.\n",
		"1.2.3-rc.1": "\n- Another thing.\n",
		"Unreleased": "", // nothing in it
		"1.2":        "",
		"1.2.4":      "",
	} {
		out, all, err := run(t, dir, nil, "hack/notes.sh", version)
		if out != want || (err == nil) != (want != "") {
			t.Errorf("notes of %q: %v\n%s", version, err, all)
		}
	}
	// What the next release will have for its notes, or the last one has.
	written, readErr := os.ReadFile(filepath.Join(root, "CHANGELOG.md"))
	if readErr != nil {
		t.Fatal(readErr)
	}
	for _, heading := range regexp.MustCompile(`(?m)^## \[(.+)\]`).FindAllSubmatch(written, 2) {
		if _, _, err := run(t, root, nil, "hack/notes.sh", string(heading[1])); err == nil {
			return
		}
	}
	t.Error("CHANGELOG.md has nothing to tell of the next release, nor of the last")
}
