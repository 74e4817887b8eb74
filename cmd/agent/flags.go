package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/pflag"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/importer"
)

// choice is a flag with few allowed values, the first of them its default.
type choice struct {
	allowed []string
	value   string
}

func newChoice(allowed ...string) choice { return choice{allowed, allowed[0]} }

func (c *choice) String() string { return c.value }
func (c *choice) Type() string   { return strings.Join(c.allowed, "|") }
func (c *choice) Set(s string) error {
	if !slices.Contains(c.allowed, s) {
		return fmt.Errorf("must be one of %s", strings.Join(c.allowed, ", "))
	}
	c.value = s
	return nil
}

const (
	outputFlag = "output"
	outputText = "text"
	outputJSON = "json"
)

// addOutput adds -o.
func addOutput(flags *pflag.FlagSet) *choice {
	c := newChoice(outputText, outputJSON)
	flags.VarP(&c, outputFlag, "o", "what to print on standard output")
	return &c
}

// addSocket adds the flags that say where images are.
func addSocket(flags *pflag.FlagSet, o *importer.Options) {
	flags.StringVar(&o.Address, "address", "/run/containerd/containerd.sock", "containerd's `socket`")
	flags.StringVar(&o.Namespace, "namespace", "k8s.io", "containerd's namespace `name`; the kubelet looks into k8s.io")
}

// addContainerd adds the flags that say which containerd to use, and for what.
func addContainerd(flags *pflag.FlagSet, o *importer.Options) {
	addSocket(flags, o)
	flags.StringVar(&o.Platform, "platform", "", "`platform` to take, such as linux/arm64 (default: this machine's)")
	flags.StringVar(&o.Snapshotter, "snapshotter", "", "snapshotter `name` to unpack with (default: containerd's)")
	flags.Var(&o.Reserve, "disk-reserve", "`size` (10Gi) or share (20%) to leave free of the file systems that containerd writes to; 0 for none")
	flags.StringVar(&o.ContainerdRoot, "containerd-root", "", "`directory` on the file system of containerd's root, where its own path cannot be seen (default: found out)")
}

// addConcurrency adds how much at a time to those who import.
func addConcurrency(flags *pflag.FlagSet, o *importer.Options) {
	flags.Uint16Var(&o.Concurrency, "concurrency", 0, "`number` of blobs moved, and of layers unpacked, at a time (default: by cores and kind of source)")
}

// addSelection adds the flags that choose and name images. The rules of --rename are for parseSelection.
func addSelection(flags *pflag.FlagSet, s *archive.Selection, rename *[]string) {
	flags.StringVar(&s.BaseName, "base-name", "", "repository `name` for images that have only a tag, or no name")
	flags.StringArrayVar(&s.Include, "include", nil, "`glob` of full image names to take; * within a path component, ** across (repeatable)")
	flags.StringArrayVar(&s.Exclude, "exclude", nil, "`glob` of full image names to leave out; wins over --include (repeatable)")
	flags.StringArrayVar(rename, "rename", nil, "`from=to`: another name for an image, or for all below a prefix if both end in / (repeatable)")
}

// parseSelection takes the rules of --rename, and checks.
func parseSelection(s *archive.Selection, rename []string) error {
	for _, rule := range rename {
		from, to, ok := strings.Cut(rule, "=")
		if !ok {
			return usagef("--rename %q: must be FROM=TO", rule)
		}
		s.Rename = append(s.Rename, archive.Rename{From: from, To: to})
	}
	if err := s.Validate(); err != nil {
		return usageError{err}
	}
	return nil
}

// importFlags are what decides an import, apart from its source.
type importFlags struct {
	containerd importer.Options
	selection  archive.Selection
	rename     []string
	digest     string
	index      string
	conflict   choice
	noUnpack   bool
	noPin      bool
	noRefs     bool
}

func (f *importFlags) add(flags *pflag.FlagSet) {
	f.conflict = newChoice("fail", "replace")
	addContainerd(flags, &f.containerd)
	addSelection(flags, &f.selection, &f.rename)
	flags.StringVar(&f.digest, "digest", "", "required `digest` of the whole archive; makes the import read all of it")
	flags.StringVar(&f.index, "index-digest", "", "required `digest` of the archive's index.json")
	flags.Var(&f.conflict, "conflict", "what to do with a name that exists, has another digest and is somebody else's")
	flags.BoolVar(&f.noUnpack, "no-unpack", false, "leave unpacking to the first container")
	flags.BoolVar(&f.noPin, "no-pin", false, "let the kubelet's garbage collection have the images")
	flags.BoolVar(&f.noRefs, "no-digest-refs", false, "do not also publish name@digest, for pods that ask by digest")
}

// request checks the flags' values and makes the importer's request of them.
func (f *importFlags) request() (importer.Request, error) {
	r := importer.Request{
		Selection: f.selection,
		Unpack:    !f.noUnpack,
		Pin:       !f.noPin,
		Replace:   f.conflict.value == "replace",
	}
	r.Selection.DigestReferences = !f.noRefs
	if err := parseSelection(&r.Selection, f.rename); err != nil {
		return r, err
	}
	var err error
	if r.Digest, err = parseDigest("--digest", f.digest); err != nil {
		return r, err
	}
	if r.IndexDigest, err = parseDigest("--index-digest", f.index); err != nil {
		return r, err
	}
	if p := f.containerd.Platform; p != "" {
		if _, err := platforms.Parse(p); err != nil {
			return r, usagef("--platform %q: %w", p, err)
		}
	}
	return r, nil
}

func parseDigest(flag, value string) (digest.Digest, error) {
	if value == "" {
		return "", nil
	}
	d, err := digest.Parse(value)
	if err != nil {
		return "", usagef("%s %q: %w", flag, value, err)
	}
	return d, nil
}

// maxSecretFile bounds a file of credentials in bytes: a chain of certificates has a few thousand.
const maxSecretFile = 1 << 20

// readSecret reads the file that a flag names; no flag, no bytes.
func readSecret(flag, path string) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Open(path) //nolint:gosec // the caller's own choice
	if err != nil {
		return nil, fmt.Errorf("--%s: %w", flag, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	if err == nil && len(data) > maxSecretFile {
		err = errors.New("the file is too large for that")
	}
	if err != nil {
		return nil, fmt.Errorf("--%s %q: %w", flag, path, err)
	}
	return data, nil
}
