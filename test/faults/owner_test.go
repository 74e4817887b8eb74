package faults

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"

	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/test/node"
)

// owner is the ImageArchive that a node's agent imports for.
var owner = importer.Owner{Name: "application", UID: "5d1b", SpecHash: "1", Deletion: importer.DeletionDelete}

// rehearseOwner is rehearse for an import that the node's agent makes.
func (s *scenario) rehearseOwner(t *testing.T, run program) {
	t.Helper()
	p := s.proxy(t, nil)
	s.must(t, run(p.address))
	p.stop()
	s.messages = p.messages()
	s.restore(t)
	done := s.must(t, run(s.ContainerdAddress))
	s.usual, s.after = done.took, s.state(t)
	var err error
	if s.reads, err = done.read(); err != nil {
		t.Fatal(err)
	}
}

// smallest is the size in bytes up to which a blob of an application is no layer. That is read to make a plan, whether it
// is there or not.
const smallest = 1500

// kept are bytes of layers that the killed import has brought.
func (s *scenario) kept(t *testing.T) int64 {
	t.Helper()
	var sum int64
	err := s.ContentStore().Walk(s.ctx, func(i content.Info) error {
		if _, ok := s.material.need[i.Digest]; ok && i.Size > smallest && !slices.Contains(s.before["content"], i.Digest.String()) {
			sum += i.Size
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	ingests, err := s.ContentStore().ListStatuses(s.ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range ingests {
		for d, size := range s.material.need {
			if size > smallest && strings.HasSuffix(i.Ref, "/"+d.String()) {
				sum += i.Offset
			}
		}
	}
	return sum
}

// adopted runs the import again: it finishes, and reads nothing that has arrived.
func (s *scenario) adopted(t *testing.T, c fmt.Stringer, run program) {
	t.Helper()
	kept := s.kept(t)
	p := s.attempt(t, c, "the next attempt", run, s.after)
	read, err := p.read()
	if err != nil {
		t.Error(err)
	}
	if again := read - (s.reads - kept); again > 0 {
		s.again += again
		s.complain(t, c, "the next attempt read %d bytes of %d, and %d were there", read, s.reads, kept)
	}
}

// released is what a node has when the owner's claims on what it has now end by its policy, Delete. A name that was there
// before loses the pin, and an id stays while its image has such a name, as one stays that the CRI has made.
func (s *scenario) released(t *testing.T) node.State {
	t.Helper()
	var lines, ids []string
	stay := map[string]bool{} // images
	for _, line := range s.state(t)["images"] {
		fields := strings.SplitN(line, " ", 3)
		labels, claim, claimed := strings.Cut(fields[2], ",tarlift.dev/archive."+owner.UID+"=")
		rest := fmt.Sprint(fields[0], " ", fields[1], " ", strings.Replace(labels, ",io.cri-containerd.pinned=pinned", "", 1))
		switch {
		case !claimed:
			lines = append(lines, line)
			stay[fields[1]] = true
		case strings.Contains(claim, `"found":`):
			lines = append(lines, rest)
			stay[fields[1]] = true
		case strings.HasPrefix(line, "sha256:"):
			ids = append(ids, rest)
		}
	}
	for _, rest := range ids {
		if stay[strings.Fields(rest)[1]] {
			lines = append(lines, rest)
		}
	}
	return node.State{"images": lines}
}
