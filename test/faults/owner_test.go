package faults

import (
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/google/go-cmp/cmp"

	"github.com/tarlift/tarlift/internal/importer"
)

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

// adopted starts the node's agent again for an archive that is still wanted: no names are there in part, and what was
// brought is not brought again.
func (s *scenario) adopted(t *testing.T, c *crash, run program, owner importer.Owner) {
	t.Helper()
	starts, kept := helpSpec{Wanted: []importer.Owner{owner}}.program(t), s.kept(t)
	s.killedAgain(t, starts, c)
	p := start(t, starts(s.ContainerdAddress))
	p.wait(t)
	s.recovered(t, c, p.took)
	if p.code() != 0 {
		s.blame(t, &s.failed, c, "Recover: %s", p.err.String())
	}
	s.examine(t, c, "after Recover")
	if got := s.state(t)["images"]; !cmp.Equal(got, s.before["images"]) && !cmp.Equal(got, s.after["images"]) {
		s.blame(t, &s.partial, c, "after Recover, names are there in part (-want +got):\n%s", cmp.Diff(s.after["images"], got))
	}
	p = start(t, run(s.ContainerdAddress))
	p.wait(t)
	if p.code() != 0 {
		s.blame(t, &s.failed, c, "the next attempt: %s", p.err.String())
	} else if read, err := p.read(); err != nil || read > s.reads-kept {
		s.blame(t, &s.leftovers, c, "the next attempt read %d bytes of %d, and %d were there: error %v", read, s.reads, kept, err)
	}
	s.judge(t, c, "after the next attempt", s.after)
}
