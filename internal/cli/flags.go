package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/importer"
)

// Choice is a flag with few allowed values, the first of them its default.
type Choice struct {
	allowed []string
	Value   string
}

// NewChoice returns a Choice of these values.
func NewChoice(allowed ...string) Choice { return Choice{allowed, allowed[0]} }

// String implements pflag.Value.
func (c *Choice) String() string { return c.Value }

// Type implements pflag.Value.
func (c *Choice) Type() string { return strings.Join(c.allowed, "|") }

// Set implements pflag.Value.
func (c *Choice) Set(s string) error {
	if !slices.Contains(c.allowed, s) {
		return fmt.Errorf("must be one of %s", strings.Join(c.allowed, ", "))
	}
	c.Value = s
	return nil
}

// What --output prints.
const (
	OutputText = "text"
	OutputJSON = "json"
)

const outputFlag = "output"

// AddOutput adds --output, with a shorthand unless that is empty.
func AddOutput(flags *pflag.FlagSet, shorthand string) *Choice {
	c := NewChoice(OutputText, OutputJSON)
	flags.VarP(&c, outputFlag, shorthand, "format of standard output")
	return &c
}

// AddProgress adds --progress.
func AddProgress(flags *pflag.FlagSet) *Choice {
	c := NewChoice(progressAuto, progressPlain, progressNone)
	flags.Var(&c, "progress", "how to show progress on standard error")
	return &c
}

// AddSocket adds the flags that say which containerd to ask, and in which namespace.
func AddSocket(flags *pflag.FlagSet, o *importer.Options) {
	flags.StringVar(&o.Address, "address", "/run/containerd/containerd.sock", "`socket` of containerd")
	flags.StringVar(&o.Namespace, "namespace", "k8s.io", "`name` of the containerd namespace; the kubelet uses k8s.io")
}

// Selection is the flags that select and name images.
type Selection struct {
	archive.Selection
	rules []string // of --rename
}

// Add adds the flags.
func (s *Selection) Add(flags *pflag.FlagSet) {
	flags.StringVar(&s.BaseName, "base-name", "", "repository `name` for images that have only a tag, or no name")
	flags.StringArrayVar(&s.Include, "include", nil,
		"`glob` of full image names to take; * matches within a path component, ** across components (repeatable)")
	flags.StringArrayVar(&s.Exclude, "exclude", nil, "`glob` of full image names to leave out; wins over --include (repeatable)")
	flags.StringArrayVar(&s.rules, "rename", nil,
		"`from=to`: rename an image, or all images below a prefix if both end in / (repeatable; the first match counts)")
}

// Parse checks the flags' values and returns the selection.
func (s *Selection) Parse() (archive.Selection, error) {
	parsed := s.Selection
	for _, rule := range s.rules {
		from, to, ok := strings.Cut(rule, "=")
		if !ok {
			return parsed, Usagef("--rename %q: must be FROM=TO", rule)
		}
		parsed.Rename = append(parsed.Rename, archive.Rename{From: from, To: to})
	}
	if err := parsed.Validate(); err != nil {
		return parsed, UsageError{err}
	}
	return parsed, nil
}
