package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"

	"sigs.k8s.io/yaml"
)

func pages(t *testing.T) []Page {
	t.Helper()
	pages, err := Pages(root)
	if err != nil {
		t.Fatal(err)
	}
	return pages
}

var (
	linkPattern    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	headingPattern = regexp.MustCompile(`^#+ (.*)$`)
	codePattern    = regexp.MustCompile("`[^`]*`")
)

// Every relative link leads to a file, and its anchor to a heading of it.
func TestLinks(t *testing.T) {
	found := 0
	for _, page := range pages(t) {
		_, prose := page.Parts()
		for k, line := range prose {
			for _, m := range linkPattern.FindAllStringSubmatch(codePattern.ReplaceAllString(line, ""), -1) {
				target, anchor, _ := strings.Cut(m[1], "#")
				if strings.Contains(target, "://") {
					continue
				}
				found++
				to := page.Path
				if target != "" {
					to = path.Join(path.Dir(page.Path), target)
				}
				if _, err := os.Stat(filepath.Join(root, to)); err != nil {
					t.Errorf("%s:%d: %s leads nowhere: %v", page.Path, k+1, m[1], err)
				} else if anchor != "" && !slices.Contains(anchors(t, to), anchor) {
					t.Errorf("%s:%d: %s has no heading #%s", page.Path, k+1, to, anchor)
				}
			}
		}
	}
	if found < 50 {
		t.Errorf("only %d links: are they still found?", found)
	}
}

// anchors are those that web pages make of a page's headings.
func anchors(t *testing.T, file string) (all []string) {
	t.Helper()
	page, err := Read(root, file)
	if err != nil {
		t.Fatal(err)
	}
	_, prose := page.Parts()
	for _, line := range prose {
		m := headingPattern.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		anchor := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case unicode.IsLetter(r), unicode.IsDigit(r), r == '-', r == '_':
				return unicode.ToLower(r)
			}
			return -1
		}, m[1])
		for n, unique := 1, anchor; ; n++ {
			if !slices.Contains(all, unique) {
				all = append(all, unique)
				break
			}
			unique = anchor + "-" + strconv.Itoa(n)
		}
	}
	return all
}

// Whoever reads the index finds every page.
func TestIndexHasEveryPage(t *testing.T) {
	index, err := Read(root, "docs/index.md")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(index.Lines, "\n")
	for _, page := range pages(t) {
		if dir, name := path.Split(page.Path); dir == "docs/" && name != "index.md" && !strings.Contains(text, "]("+name+")") {
			t.Errorf("docs/index.md has no link to %s", name)
		}
	}
}

// constants are the values of a package's string constants with names of this kind.
func constants(t *testing.T, dir string, name *regexp.Regexp) (values []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok {
				return true
			}
			for k, v := range spec.Values {
				if literal, ok := v.(*ast.BasicLit); ok && literal.Kind == token.STRING && name.MatchString(spec.Names[k].Name) {
					value, err := strconv.Unquote(literal.Value)
					if err != nil {
						t.Fatal(err)
					}
					values = append(values, value)
				}
			}
			return true
		})
	}
	if len(values) == 0 {
		t.Fatalf("%s has no constant %s", dir, name)
	}
	return values
}

// The table of reasons has every reason of a condition; and what pages show as a reason is one.
func TestReasons(t *testing.T) {
	reasons := constants(t, "api/v1alpha1", regexp.MustCompile(`^Reason[A-Z]`))
	for _, reason := range constants(t, "internal/reason", regexp.MustCompile(`^[A-Z]`)) {
		if !slices.Contains(reasons, reason) {
			t.Errorf("internal/reason has the reason %s, which the API does not have", reason)
		}
	}
	documented := rows(t, "docs/operations.md", "Reasons")
	for _, reason := range reasons {
		if !slices.Contains(documented, reason) {
			t.Errorf("docs/operations.md does not have the reason %s", reason)
		}
	}
	for _, reason := range documented {
		if !slices.Contains(reasons, reason) {
			t.Errorf("docs/operations.md has the reason %s, which nothing gives", reason)
		}
	}
	for _, dir := range []string{"internal/cli", "cmd/tarlift"} { // what only command lines have
		reasons = append(reasons, constants(t, dir, regexp.MustCompile(`^[Rr]eason[A-Z]`))...)
	}
	shown := regexp.MustCompile(`"?\breason"?: *"?([A-Z]\w+)`)
	for _, page := range pages(t) {
		for k, line := range page.Lines {
			for _, m := range shown.FindAllStringSubmatch(line, -1) {
				if !slices.Contains(reasons, m[1]) {
					t.Errorf("%s:%d: nothing gives the reason %s", page.Path, k+1, m[1])
				}
			}
		}
	}
}

// Every reason of an Event is in the section on Events, unless it is one of a condition.
func TestEvents(t *testing.T) {
	text := strings.Join(section(t, "docs/operations.md", "Events"), "\n")
	for _, reason := range constants(t, "controllers/node", regexp.MustCompile(`^event[A-Z]`)) {
		if !strings.Contains(text, "`"+reason+"`") {
			t.Errorf("docs/operations.md tells of no Event %s", reason)
		}
	}
}

// What pages call a metric is in the table of metrics, whose rows a test of the controllers compares with what is registered.
func TestMetrics(t *testing.T) {
	named := regexp.MustCompile(`\btarlift_[a-z_]+\b`)
	var exist []string
	for _, line := range section(t, "docs/operations.md", "Metrics") {
		if strings.HasPrefix(line, "|") {
			exist = append(exist, named.FindAllString(strings.Split(line, "|")[1], -1)...)
		}
	}
	if len(exist) == 0 {
		t.Fatal("docs/operations.md has no table of metrics")
	}
	series := regexp.MustCompile(`_(bucket|sum|count)$`) // of a histogram
	for _, page := range pages(t) {
		for k, line := range page.Lines {
			for _, name := range named.FindAllString(line, -1) {
				if !slices.Contains(exist, name) && !slices.Contains(exist, series.ReplaceAllString(name, "")) {
					t.Errorf("%s:%d: there is no metric %s", page.Path, k+1, name)
				}
			}
		}
	}
}

// section are the lines below a heading, up to the next one of its level or above.
func section(t *testing.T, file, heading string) []string {
	t.Helper()
	page, err := Read(root, file)
	if err != nil {
		t.Fatal(err)
	}
	_, prose := page.Parts()
	for k, line := range prose {
		hashes, title, _ := strings.Cut(line, " ")
		if title != heading || strings.Trim(hashes, "#") != "" {
			continue
		}
		end := slices.IndexFunc(prose[k+1:], func(l string) bool {
			h, _, ok := strings.Cut(l, " ")
			return ok && h != "" && strings.Trim(h, "#") == "" && len(h) <= len(hashes)
		})
		if end < 0 {
			return prose[k+1:]
		}
		return prose[k+1 : k+1+end]
	}
	t.Fatalf("%s has no heading %s", file, heading)
	return nil
}

// rows are the first code words of the rows of a section's tables.
func rows(t *testing.T, file, heading string) (first []string) {
	t.Helper()
	for _, line := range section(t, file, heading) {
		if cells := strings.Split(line, "|"); len(cells) > 2 {
			if word := strings.Trim(strings.TrimSpace(cells[1]), "`"); word != strings.TrimSpace(cells[1]) {
				first = append(first, word)
			}
		}
	}
	return first
}

// values are the paths of the chart's values, tables of them included.
func values(t *testing.T) map[string]bool {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, "charts/tarlift/values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var tree map[string]any
	if err := yaml.Unmarshal(data, &tree); err != nil {
		t.Fatal(err)
	}
	paths := map[string]bool{}
	var walk func(prefix string, tree map[string]any)
	walk = func(prefix string, tree map[string]any) {
		for key, v := range tree {
			paths[prefix+key] = true
			if below, ok := v.(map[string]any); ok {
				walk(prefix+key+".", below)
			}
		}
	}
	walk("", tree)
	return paths
}

// What pages call a value of the chart is one.
func TestValuesExist(t *testing.T) {
	exist := values(t)
	var top []string
	for path := range exist {
		if !strings.Contains(path, ".") {
			top = append(top, path)
		}
	}
	// In code, or behind --set.
	pattern := regexp.MustCompile("(?:`|--set(?:-string|-json)?[ =]'?)((?:" + strings.Join(top, "|") + `)(?:\.[a-zA-Z]+)+)\b`)
	found := 0
	for _, page := range pages(t) {
		for k, line := range page.Lines {
			for _, m := range pattern.FindAllStringSubmatch(line, -1) {
				found++
				if !exist[m[1]] {
					t.Errorf("%s:%d: the chart has no value %s", page.Path, k+1, m[1])
				}
			}
		}
	}
	if found < 20 {
		t.Errorf("only %d values: are they still found?", found)
	}
}
