// Command values turns a chart's values.yaml, on standard input, into a reference: a table for each top-level key, made
// of comments and defaults.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"go.yaml.in/yaml/v3"
)

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "values:", err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer) error {
	data, err := io.ReadAll(in)
	if err != nil {
		return fmt.Errorf("read values: %w", err)
	}
	text, err := reference(data)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(out, text); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

const head = `# Values

All values of the chart, with their defaults. Made from the comments in [values.yaml](../charts/tarlift/values.yaml) by ` + "`make generate`" + `; what is not
listed is an error. [Operations](operations.md#install) describes which values to set for which cluster. A value without a description is the Kubernetes field of that name.
`

// row is a value with its default, or a group of values, which has none.
type row struct {
	path, fallback, comment string
}

// reference makes the page. Each top-level key that has members gets a section, those that have none are together in
// the first.
func reference(data []byte) (string, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return "", fmt.Errorf("parse: %w", err)
	}
	if len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		return "", fmt.Errorf("it is no mapping")
	}
	var single []row
	var sections strings.Builder
	members := doc.Content[0].Content
	for i := 0; i < len(members); i += 2 {
		key, value := members[i], members[i+1]
		if !isGroup(value) {
			r, err := rowOf(key.Value, key, value)
			if err != nil {
				return "", err
			}
			single = append(single, r)
			continue
		}
		rows, err := rowsOf(key.Value, value)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&sections, "\n## %s\n\n", key.Value)
		if c := commentOf(key); c != "" {
			fmt.Fprintf(&sections, "%s\n\n", c)
		}
		writeTable(&sections, rows)
	}
	var page strings.Builder
	page.WriteString(head)
	page.WriteString("\n## All of it\n\n")
	writeTable(&page, single)
	return page.String() + sections.String(), nil
}

// isGroup tells a mapping whose members are values of the chart from one that is a value: its members are Kubernetes'.
func isGroup(n *yaml.Node) bool {
	if n.Kind != yaml.MappingNode {
		return false
	}
	for i := 0; i < len(n.Content); i += 2 {
		if strings.ContainsAny(n.Content[i].Value, "./_") {
			return false // a label's key
		}
	}
	return len(n.Content) > 0
}

// kubernetes are the values whose members this chart does not know one by one.
var kubernetes = map[string]bool{"resources": true, "updateStrategy": true}

func rowsOf(path string, group *yaml.Node) ([]row, error) {
	var rows []row
	for i := 0; i < len(group.Content); i += 2 {
		key, value := group.Content[i], group.Content[i+1]
		name := path + "." + key.Value
		if !isGroup(value) || kubernetes[key.Value] {
			r, err := rowOf(name, key, value)
			if err != nil {
				return nil, err
			}
			rows = append(rows, r)
			continue
		}
		if c := commentOf(key); c != "" {
			rows = append(rows, row{path: name, comment: c})
		}
		inner, err := rowsOf(name, value)
		if err != nil {
			return nil, err
		}
		rows = append(rows, inner...)
	}
	return rows, nil
}

func rowOf(path string, key, value *yaml.Node) (row, error) {
	var v any
	if err := value.Decode(&v); err != nil {
		return row{}, fmt.Errorf("%s: %w", path, err)
	}
	text, err := json.Marshal(v)
	if err != nil {
		return row{}, fmt.Errorf("%s: %w", path, err)
	}
	return row{path, string(text), commentOf(key)}, nil
}

// commentOf joins the lines above a key, and escapes what would end a table's cell or be taken for HTML.
func commentOf(key *yaml.Node) string {
	lines := strings.Split(key.HeadComment, "\n")
	for i, l := range lines {
		lines[i] = strings.TrimSpace(strings.TrimPrefix(l, "#"))
	}
	text := strings.TrimSpace(strings.Join(lines, " "))
	return strings.NewReplacer("|", `\|`, "<", "&lt;").Replace(text)
}

func writeTable(b *strings.Builder, rows []row) {
	b.WriteString("| value | default | |\n|---|---|---|\n")
	for _, r := range rows {
		fallback := ""
		if r.fallback != "" {
			fallback = "`" + strings.ReplaceAll(r.fallback, "|", `\|`) + "`"
		}
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", r.path, fallback, r.comment)
	}
}
