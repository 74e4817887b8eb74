package archive

import (
	"errors"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Selection chooses images by name and gives them their final names. The zero
// value takes all under their own names, without digest references.
type Selection struct {
	// BaseName completes bare tags (BaseName:tag) and images without a name (BaseName@digest).
	BaseName string
	// Include and Exclude are globs on the full normalised name: * within a path
	// component, ** across. An empty Include takes all; Exclude wins.
	Include, Exclude []string
	// Rename is tried in this order; the first match counts.
	Rename []Rename
	// DigestReferences asks for name@digest beside each name.
	DigestReferences bool
}

// Rename replaces From by To: a prefix when From ends in /, otherwise one exact name.
type Rename struct{ From, To string }

// Named is a selected image.
type Named struct {
	Target ocispec.Descriptor
	// Source is the full normalised name in the archive, "" when there is none.
	Source string
	// Name is the final one; name@digest when only BaseName names it.
	Name string
	// DigestReference is name@digest, or "".
	DigestReference string
}

// Validate tells whether the globs and names of the selection can be used. The error is ErrInvalidName.
func (s Selection) Validate() error { return errors.New("not implemented") }

// Select applies the selection to the manifests of an index.json. The error is ErrInvalidName, also
// when nothing is selected.
func (s Selection) Select(manifests []ocispec.Descriptor) ([]Named, error) {
	return nil, errors.New("not implemented")
}
