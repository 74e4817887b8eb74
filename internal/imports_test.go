// Package internal_test holds the direction of imports: what .golangci.yml says, for whoever runs the tests only.
package internal_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/tarlift/tarlift"

// directions say what the packages below a directory must not import. A prefix matches whole path elements.
var directions = []struct {
	dir    string
	never  []string
	except []string
}{
	{"internal/doctor", []string{module}, []string{
		module + "/api", module + "/internal/cli", module + "/internal/doctor", module + "/internal/importer",
	}},
	{"api", []string{module}, []string{module + "/api"}},
	{"controllers", []string{module + "/cmd", "github.com/containerd/containerd/v2"}, nil},
	{"controllers/node", []string{module + "/controllers"}, []string{module + "/controllers/condition", module + "/controllers/object"}},
	{"controllers/fleet", []string{module + "/controllers", module + "/internal"},
		[]string{module + "/controllers/condition", module + "/controllers/object", module + "/internal/reason"}},
	{"controllers/condition", []string{module}, []string{module + "/api"}},
	{"controllers/object", []string{module}, nil},
	{"internal", []string{module + "/api", module + "/cmd", module + "/controllers", "k8s.io", "sigs.k8s.io/controller-runtime"}, []string{"k8s.io/cri-api"}},
	{"internal/source", []string{module + "/internal", "github.com/containerd"}, []string{module + "/internal/source"}},
	{"internal/importer/transfer", []string{module + "/internal", "github.com/containerd"},
		[]string{module + "/internal/source", module + "/internal/archive"}},
	{"internal/bundle", []string{module + "/internal", "github.com/containerd/containerd/v2"}, []string{module + "/internal/bundle", module + "/internal/archive"}},
	{"internal/archive", []string{module + "/internal", "github.com/containerd/containerd/v2"}, []string{module + "/internal/archive"}},
	{"cmd", []string{"github.com/containerd/containerd/v2"}, nil},
}

func TestDirectionOfImports(t *testing.T) {
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range directions {
		files := 0
		err := filepath.WalkDir(filepath.Join(root, d.dir), func(name string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
				return err
			}
			files++
			if d.dir == "internal" && strings.HasPrefix(name, filepath.Join(root, "internal/doctor")+"/") {
				return nil // it asks a cluster
			}
			parsed, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
			if err != nil {
				return err
			}
			for _, spec := range parsed.Imports {
				imported, err := strconv.Unquote(spec.Path.Value)
				if err != nil {
					return err
				}
				if below(imported, d.never) && !below(imported, d.except) {
					t.Errorf("%s imports %s", strings.TrimPrefix(name, root+"/"), imported)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if files == 0 {
			t.Errorf("no files below %s", d.dir)
		}
	}
}

func below(imported string, prefixes []string) bool {
	for _, p := range prefixes {
		if imported == p || strings.HasPrefix(imported, path.Clean(p)+"/") {
			return true
		}
	}
	return false
}
