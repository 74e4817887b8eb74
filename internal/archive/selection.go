package archive

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Selection chooses images by name and gives them their final names. The zero value takes all under their own names,
// without digest references.
type Selection struct {
	// BaseName completes bare tags (BaseName:tag) and images without a name (BaseName@digest).
	BaseName string
	// Include and Exclude are globs on the full normalised name, such as docker.io/library/*:1.*: * is any text within a
	// path component, ** any text at all. An empty Include takes all; Exclude wins.
	Include, Exclude []string
	// Rename is tried in this order; the first match counts.
	Rename []Rename
	// DigestReferences adds name@digest beside each name.
	DigestReferences bool
}

// Rename replaces From by To. With a slash at the end of both they are prefixes of full normalised names, otherwise each
// is one name.
type Rename struct{ From, To string }

// Named is a selected image. All names are as reference.ParseDockerRef normalises them: docker.io/library/x for x, :latest
// for no tag, and name@digest for name:tag@digest.
type Named struct {
	Target ocispec.Descriptor
	// Source is the full name in the archive (with BaseName before a bare tag), "" when there is none.
	Source string
	// Name is the final one; BaseName@digest for an image without a name.
	Name string
	// DigestReference is name@digest, the same for all tags of an image; "" without Selection.DigestReferences, and when
	// Name is it already.
	DigestReference string
}

// Validate checks that the selection can be used. The error is ErrInvalidName.
func (s Selection) Validate() error {
	_, err := s.compile()
	return err
}

// Select applies the selection to the manifests of an index.json. Descriptors with the same final name and target become
// one. The error is ErrLimit above MaxNames, or ErrInvalidName: for a name that is not acceptable or missing (unless
// Include chooses others), a rename to such a name, a name with two targets, and when nothing is selected.
func (s Selection) Select(manifests []ocispec.Descriptor) ([]Named, error) {
	return s.SelectAt(manifests, PlaceInIndex)
}

// PlaceInIndex says, for errors, where a manifest of index.json stands.
func PlaceInIndex(i int) string {
	return fmt.Sprintf("read %s: manifests[%d]", ocispec.ImageIndexFile, i)
}

// SelectAt is Select; place says, for errors, where manifests[i] stands.
func (s Selection) SelectAt(manifests []ocispec.Descriptor, place func(i int) string) ([]Named, error) {
	c, err := s.compile()
	if err != nil {
		return nil, err
	}
	var out []Named
	var unnamed error    // why no glob can match an image
	var leftOut []string // names that no glob selects
	targets := map[string]digest.Digest{}
	for i, d := range manifests {
		source, err := c.sourceName(d)
		switch {
		case err != nil && len(s.Include) > 0:
			unnamed = err
			continue
		case err != nil:
			return nil, fmt.Errorf("%s: %w", place(i), err)
		case source == nil: // not an image
			continue
		case !c.included(source.String()) || c.excluded(source.String()):
			leftOut = append(leftOut, source.String())
			continue
		}
		n, err := c.name(d, source)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", place(i), err)
		}
		other, twice := targets[n.Name]
		if twice && other != d.Digest {
			return nil, fmt.Errorf("%s: name %.200q stands for two images, %s and %s: %w", place(i), n.Name, other, d.Digest, ErrInvalidName)
		}
		if twice {
			continue
		}
		targets[n.Name] = d.Digest
		if out = append(out, n); len(out) > MaxNames {
			return nil, fmt.Errorf("more than %d names: %w", MaxNames, ErrLimit)
		}
	}
	switch {
	case len(out) > 0:
		return out, nil
	case len(leftOut) > 0:
		return nil, c.noneSelected(leftOut)
	case unnamed != nil:
		return nil, fmt.Errorf("no image of %d is selected: %w", len(manifests), unnamed)
	default:
		return nil, fmt.Errorf("none of %d manifests is an image: %w", len(manifests), ErrInvalidName)
	}
}

// noneSelected says which names there are, and which field leaves them out.
func (c compiled) noneSelected(names []string) error {
	field := "images.exclude (--exclude)"
	if !slices.ContainsFunc(names, c.included) {
		field = "images.include (--include)"
	}
	return fmt.Errorf("%s leaves out all images, change it: its globs match full names, and the archive has %s: %w",
		field, Quoted(names), ErrInvalidName)
}

// Quoted lists words from outside for a message, quoted and bounded: maxQuoted of at most 100 bytes.
func Quoted(words []string) string {
	quoted := make([]string, 0, maxQuoted+1)
	for _, w := range words[:min(len(words), maxQuoted)] {
		quoted = append(quoted, fmt.Sprintf("%.100q", w))
	}
	if more := len(words) - maxQuoted; more > 0 {
		quoted = append(quoted, fmt.Sprintf("%d more", more))
	}
	return strings.Join(quoted, ", ")
}

// maxQuoted words of a message: tools build images for up to 15 platforms.
const maxQuoted = 20

// compiled is a valid selection with its globs as expressions.
type compiled struct {
	Selection
	base             reference.Named // nil without BaseName
	include, exclude *regexp.Regexp  // nil when empty
}

func (s Selection) compile() (compiled, error) {
	c := compiled{Selection: s}
	var err error
	if s.BaseName != "" {
		c.base, err = reference.ParseNormalizedNamed(s.BaseName)
		if err == nil && !reference.IsNameOnly(c.base) {
			err = errors.New("it has a tag or a digest")
		}
		if err != nil {
			return c, fmt.Errorf("base name %.200q: %s: %w", s.BaseName, reason(err), ErrInvalidName)
		}
	}
	if c.include, err = compileGlobs(s.Include); err != nil {
		return c, fmt.Errorf("include: %w", err)
	}
	if c.exclude, err = compileGlobs(s.Exclude); err != nil {
		return c, fmt.Errorf("exclude: %w", err)
	}
	for i, r := range s.Rename {
		if err := r.validate(); err != nil {
			return c, fmt.Errorf("rename[%d]: %w", i, err)
		}
	}
	return c, nil
}

// globChars are the characters of names, and *.
var globChars = regexp.MustCompile(`^[A-Za-z0-9._\-/:@\[\]*]+$`)

// compileGlobs makes one expression that matches what any of the globs matches, nil of none.
func compileGlobs(globs []string) (*regexp.Regexp, error) {
	if len(globs) == 0 {
		return nil, nil //nolint:nilnil // no globs, no expression
	}
	parts := make([]string, 0, len(globs))
	for _, g := range globs {
		if !globChars.MatchString(g) || len(g) > MaxMemberName {
			return nil, fmt.Errorf("glob %.200q is empty, or has characters that no name has: %w", g, ErrInvalidName)
		}
		quoted := regexp.QuoteMeta(g)
		quoted = strings.ReplaceAll(quoted, `\*\*`, `.*`)
		parts = append(parts, strings.ReplaceAll(quoted, `\*`, `[^/]*`))
	}
	re, err := regexp.Compile(`^(?:` + strings.Join(parts, "|") + `)$`)
	if err != nil {
		return nil, fmt.Errorf("globs: %s: %w", reason(err), ErrInvalidName)
	}
	return re, nil
}

func (r Rename) validate() error {
	from, to := strings.HasSuffix(r.From, "/"), strings.HasSuffix(r.To, "/")
	if from != to {
		return fmt.Errorf("from %.200q, to %.200q: only one ends in a slash: %w", r.From, r.To, ErrInvalidName)
	}
	for _, n := range []string{r.From, r.To} {
		if from {
			n += "x" // a prefix is valid when a name with it is
		}
		if _, err := reference.ParseDockerRef(n); err != nil {
			return fmt.Errorf("%.200q: %s: %w", n, reason(err), ErrInvalidName)
		}
	}
	return nil
}

// name gives a selected image its names.
func (c compiled) name(d ocispec.Descriptor, source reference.Named) (Named, error) {
	final, err := c.rename(source, d)
	if err != nil {
		return Named{}, err
	}
	n := Named{Target: d, Name: final.String()}
	if d.Annotations[AnnotationImageName] != "" || d.Annotations[ocispec.AnnotationRefName] != "" {
		n.Source = source.String()
	}
	if !c.DigestReferences {
		return n, nil
	}
	ref, err := withDigest(final, d)
	if err == nil && ref.String() != n.Name {
		n.DigestReference = ref.String()
	}
	return n, err
}

func (c compiled) included(name string) bool { return c.include == nil || c.include.MatchString(name) }

func (c compiled) excluded(name string) bool { return c.exclude != nil && c.exclude.MatchString(name) }

const needsBaseName = "set images.baseName (--base-name) to name it"

// sourceName is an image's full name before it is renamed; nil for what is not an image.
func (c compiled) sourceName(d ocispec.Descriptor) (reference.Named, error) {
	tag := d.Annotations[ocispec.AnnotationRefName]
	full := d.Annotations[AnnotationImageName]
	if full == "" && strings.ContainsAny(tag, "/:") {
		full = tag
	}
	switch {
	case full != "":
		return parseName(full, d)
	case tag != "" && c.base == nil:
		return nil, fmt.Errorf("image %s has only the tag %.200q, %s: %w", d.Digest, tag, needsBaseName, ErrInvalidName)
	case tag != "":
		name, err := reference.WithTag(c.base, tag)
		if err != nil {
			return nil, fmt.Errorf("tag %.200q: %s: %w", tag, reason(err), ErrInvalidName)
		}
		return name, nil
	case isReferrer(d):
		return nil, nil //nolint:nilnil // not an image, and no error
	case c.base == nil:
		return nil, fmt.Errorf("image %s has no name, %s: %w", d.Digest, needsBaseName, ErrInvalidName)
	}
	return withDigest(c.base, d)
}

func withDigest(name reference.Named, d ocispec.Descriptor) (reference.Named, error) {
	out, err := reference.WithDigest(reference.TrimNamed(name), d.Digest)
	if err != nil {
		return nil, fmt.Errorf("name %.200q: digest %.200q: %s: %w", name, d.Digest, reason(err), ErrInvalidName)
	}
	return out, nil
}

// parseName normalises a full name. A digest in it must be the image's.
func parseName(s string, d ocispec.Descriptor) (reference.Named, error) {
	name, err := parseRef(s)
	if err != nil {
		return nil, err
	}
	if c, ok := name.(reference.Digested); ok && c.Digest() != d.Digest {
		return nil, fmt.Errorf("name %.200q is that of another image, this one is %s: %w", s, d.Digest, ErrInvalidName)
	}
	return name, nil
}

// parseRef normalises a full name. It refuses a digest, although docker.io/library/sha256 could be a repository and the
// hex a tag in it: CRI takes such names for image IDs.
func parseRef(s string) (reference.Named, error) {
	if len(s) > MaxNameBytes { // what package reference would say after seconds
		return nil, fmt.Errorf("name %.200q: more than %d bytes: %w", s, MaxNameBytes, ErrInvalidName)
	}
	name, err := reference.ParseDockerRef(s)
	if _, notDigest := digest.Parse(s); err == nil && notDigest == nil {
		err = errors.New("a digest is not a name")
	}
	if err != nil {
		return nil, fmt.Errorf("name %.200q: %s: %w", s, reason(err), ErrInvalidName)
	}
	return name, nil
}

// rename applies the first rule that matches.
func (c compiled) rename(name reference.Named, d ocispec.Descriptor) (reference.Named, error) {
	old := name.String()
	for _, r := range c.Rename {
		rest, ok := strings.CutPrefix(old, r.From)
		if !strings.HasSuffix(r.From, "/") { // one name
			from, err := reference.ParseDockerRef(r.From)
			rest, ok = "", err == nil && from.String() == old
		}
		if !ok {
			continue
		}
		to, err := parseName(r.To+rest, d)
		if err != nil {
			return nil, fmt.Errorf("rename %.200q: %w", old, err)
		}
		return to, nil
	}
	return name, nil
}
