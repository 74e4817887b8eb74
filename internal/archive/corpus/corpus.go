// Package corpus holds archives that are wrong, each in one way that its name tells, and what an import of each must come
// to. The tests of this project read them in every way: with the archive package alone, with the importer on
// containerd's store in process, and with the agent's binary on a real containerd. No other code imports it.
//
// The same case has the same bytes on every machine. They are made while they are read, so that an archive of
// gigabytes takes no room.
//
// An import is one of linux/amd64 with digest references, on a node that has the Bystander.
package corpus

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/tarlift/tarlift/internal/archive/builder"
)

// Verdict is what an import comes to: the reason that users see in conditions and from the command line.
type Verdict string

// Verdicts. All but Accepted mean that nothing on the node has changed.
const (
	Accepted           Verdict = ""
	Invalid            Verdict = "ArchiveInvalid"
	Truncated          Verdict = "Truncated"
	LimitExceeded      Verdict = "LimitExceeded"
	DigestMismatch     Verdict = "DigestMismatch"
	ContentIncomplete  Verdict = "ContentIncomplete"
	NoMatchingPlatform Verdict = "NoMatchingPlatform"
	InvalidName        Verdict = "InvalidName"
	NameConflict       Verdict = "NameConflict"
)

// Sight is what has to be looked at for a defect to be seen.
type Sight int

const (
	// Metadata is headers and documents, which every reader reads.
	Metadata Sight = iota
	// Bytes of blobs: a single pass sees them, random access when blobs are moved.
	Bytes
	// Whole archive: only a single pass sees it; by random access the archive is accepted.
	Whole
	// Node is what the node has, and what its user asked for.
	Node
	// Layers are seen as they are unpacked; otherwise the archive is accepted.
	Layers
)

// Options of an import, beside those that all have.
type Options struct {
	Digest, IndexDigest digest.Digest
}

// Image is a name that an import publishes, and the blobs that it needs on linux/amd64.
type Image struct {
	Name   string
	Digest digest.Digest
	Blobs  []digest.Digest
}

// Case is one archive.
type Case struct {
	// Name says what is wrong with it, or why nothing is.
	Name    string
	Verdict Verdict
	Sight   Sight
	Options Options
	// Says are parts of the message: the member or name, the field, and what to do.
	Says []string
	// Published are all names that appear where it is accepted, name@digest references left out.
	Published []Image
	// Open makes the archive.
	Open func() *Data
}

// AcceptedBy tells whether a reader accepts it who reads in a single pass or not, and unpacks or not.
func (c Case) AcceptedBy(pass, unpack bool) bool {
	return c.Verdict == Accepted || c.Sight == Whole && !pass || c.Sight == Layers && !unpack
}

// MaxSmall is the size in bytes of what may be held in memory, many at a time.
const MaxSmall = 256 << 10

// Cases gives all archives, in a fixed order.
func Cases() []Case {
	return slices.Concat(files(), compressions(), tars(), links(), layouts(), documents(), configs(), unreadable(), bounds(), media(), platformCases(), names(), dockers())
}

// Small gives the archives of at most size bytes with their cases: seeds for fuzzing.
func Small(size int64) (cases []Case, archives [][]byte, err error) {
	for _, c := range Cases() {
		d := c.Open()
		if d.Size() > size {
			continue
		}
		var b bytes.Buffer
		if _, err := b.ReadFrom(d.Reader()); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", c.Name, err)
		}
		cases, archives = append(cases, c), append(archives, b.Bytes())
	}
	return cases, archives, nil
}

// BystanderName is that of the Bystander's image.
const BystanderName = "bystander.example/x:1"

// Bystander is the archive of an image that is on the node before, and that is not ours.
func Bystander() *Data {
	img := image(BystanderName, "linux/amd64")
	img.Platforms[0].Layers = img.Platforms[0].Layers[1:] // it shares nothing with others
	return data(archiveOf(nil, img))
}

// accepted marks a case as such.
func accepted(c Case, images ...Image) Case {
	c.Verdict, c.Published = Accepted, images
	return c
}

// of makes a case of bytes at hand.
func of(verdict Verdict, name string, b []byte, says ...string) Case {
	return Case{Name: name, Verdict: verdict, Says: says, Open: func() *Data { return data(b) }}
}

// lazy makes a case of bytes that are made when they are wanted.
func lazy(verdict Verdict, name string, open func() *Data, says ...string) Case {
	return Case{Name: name, Verdict: verdict, Says: says, Open: open}
}

// edited makes a case of the usual archive.
func edited(verdict Verdict, name string, edit builder.Edit, says ...string) Case {
	return lazy(verdict, name, func() *Data {
		return data(archiveOf([]builder.Edit{edit}, image(appName, "linux/amd64", "linux/arm64")))
	}, says...)
}

// asItWas is no edit.
func asItWas(ms []builder.Member) []builder.Member { return ms }
