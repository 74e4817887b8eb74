package importer

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/distribution/reference"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/corpus"
	"github.com/tarlift/tarlift/internal/source"
)

// verdicts are the errors that each is told by.
var verdicts = map[corpus.Verdict][]error{
	corpus.Invalid:            {archive.ErrInvalid},
	corpus.Truncated:          {archive.ErrTruncated},
	corpus.LimitExceeded:      {archive.ErrLimit},
	corpus.DigestMismatch:     {archive.ErrDigestMismatch},
	corpus.ContentIncomplete:  {ErrContentIncomplete, archive.ErrMissing}, // a layout's blob, a docker archive's member
	corpus.NoMatchingPlatform: {ErrNoMatchingPlatform},
	corpus.InvalidName:        {archive.ErrInvalidName},
	corpus.NameConflict:       {ErrNameConflict},
}

// TestCorpus imports every archive of the corpus that is not large: exactly what is to be published is, or nothing has
// changed.
func TestCorpus(t *testing.T) {
	for _, c := range corpus.Cases() {
		if c.Open().Size() > corpus.MaxSmall {
			continue // on a real containerd: test/integration
		}
		for _, stream := range []bool{false, true} {
			t.Run(c.Name+map[bool]string{false: "/random", true: "/stream"}[stream], func(t *testing.T) {
				t.Parallel() // the content store waits for the disk most of the time
				testCase(t, c, stream)
			})
		}
	}
}

func testCase(t *testing.T, c corpus.Case, stream bool) {
	t.Helper()
	n := newNode(t, "linux/amd64")
	n.corpusBystander(t)
	before := n.state(t)
	req := wanted(owner)
	req.Digest, req.IndexDigest = c.Options.Digest, c.Options.IndexDigest
	src := corpusBlob(c.Open(), stream)
	got, err := n.Import(t.Context(), src, req)
	pass := stream || req.Digest != ""
	if !c.AcceptedBy(pass, false) {
		if !slices.ContainsFunc(verdicts[c.Verdict], func(want error) bool { return errors.Is(err, want) }) {
			t.Errorf("error %v, want %v", err, verdicts[c.Verdict])
		}
		checkMessage(t, err, c.Says)
		unchanged(t, before, n.state(t))
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	after := n.state(t)
	unchanged(t, n.with(t, before, c.Published), withoutLabels(before, after))
	reported := map[string]digest.Digest{}
	for _, img := range got.Images {
		reported[img.Name] = img.Digest
	}
	want := map[string]digest.Digest{}
	for _, img := range c.Published {
		want[img.Name] = img.Digest
	}
	if diff := cmp.Diff(want, reported); diff != "" {
		t.Errorf("reported (-want +got):\n%s", diff)
	}
	n.whole(t, c.Published)
}

// whole checks every published image.
func (n *node) whole(t *testing.T, published []corpus.Image) {
	t.Helper()
	for _, img := range published {
		stored := n.image(t, img.Name)
		if stored == nil {
			t.Errorf("no image %s", img.Name)
			continue
		}
		missing, err := n.check.Missing(n.in(t.Context()), stored.Target)
		if err != nil || len(missing) > 0 {
			t.Errorf("%s lacks %v (%v)", img.Name, missing, err)
		}
	}
}

func checkMessage(t *testing.T, err error, parts []string) {
	t.Helper()
	text := errText(err)
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("the message does not say %q: %.1000s", part, text)
		}
	}
	if len(text) > 4096 || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		t.Errorf("not to be shown: %.1000q", text)
	}
}

func (n *node) corpusBystander(t testing.TB) {
	t.Helper()
	if _, err := n.client.Import(n.in(t.Context()), corpus.Bystander().Reader()); err != nil {
		t.Fatal(err)
	}
	if _, err := n.db.GarbageCollect(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// with is a state and what the import of these images adds to it, without the labels of the new names.
func (n *node) with(t *testing.T, s state, published []corpus.Image) state {
	t.Helper()
	names, blobs, tags := map[string]bool{}, map[string]bool{}, []string{}
	for _, img := range published {
		tags = append(tags, img.Name)
		name, err := reference.ParseNormalizedNamed(img.Name)
		if err != nil {
			panic(err)
		}
		names[img.Name+" "+img.Digest.String()] = true
		names[reference.TrimNamed(name).String()+"@"+img.Digest.String()+" "+img.Digest.String()] = true
		for _, d := range img.Blobs {
			blobs[d.String()] = true
		}
	}
	for id, target := range n.ids(t, tags...) {
		names[id+" "+target] = true
	}
	for _, d := range s.Content {
		blobs[d] = true
	}
	s.Images = slices.Sorted(slices.Values(append(slices.Clone(s.Images), slices.Collect(maps.Keys(names))...)))
	s.Content = slices.Sorted(maps.Keys(blobs))
	return s
}

// withoutLabels leaves out those of names that were not there before.
func withoutLabels(before, s state) state {
	s.Images = slices.Clone(s.Images)
	for k, line := range s.Images {
		if !slices.Contains(before.Images, line) {
			s.Images[k] = strings.Join(strings.Fields(line)[:2], " ")
		}
	}
	slices.Sort(s.Images)
	return s
}

// lazySource is a source of bytes that are made while they are read.
type lazySource struct {
	*corpus.Data
	stream bool
}

var _ source.Blob = lazySource{}

func corpusBlob(d *corpus.Data, stream bool) lazySource { return lazySource{d, stream} }

func (l lazySource) Section(_ context.Context, off, n int64) (io.ReadCloser, error) {
	if n < 0 {
		n = l.Size() - off
	}
	return io.NopCloser(io.NewSectionReader(l.Data, off, n)), nil
}

func (l lazySource) RandomAccess() bool { return !l.stream }
func (l lazySource) Remote() bool       { return false }
func (l lazySource) BytesRead() int64   { return 0 }
func (l lazySource) Validator() string  { return "" }
func (l lazySource) String() string     { return "corpus" }
func (l lazySource) Close() error       { return nil }
