package bundle_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"unicode"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/corpus"
	"github.com/tarlift/tarlift/internal/bundle"
)

var verdicts = map[corpus.Verdict]error{
	corpus.Invalid:            archive.ErrInvalid,
	corpus.Truncated:          archive.ErrTruncated,
	corpus.LimitExceeded:      archive.ErrLimit,
	corpus.DigestMismatch:     archive.ErrDigestMismatch,
	corpus.ContentIncomplete:  archive.ErrMissing,
	corpus.NoMatchingPlatform: bundle.ErrNoPlatform,
	corpus.InvalidName:        archive.ErrInvalidName,
}

// Of what no import takes no bundle is made, with the same error; of what one takes a bundle is made that holds the
// same images.
func TestCorpus(t *testing.T) {
	cases, archives, err := corpus.Small(corpus.MaxSmall)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range cases {
		if c.Sight == corpus.Node { // what a node has, and what its user asked for
			continue
		}
		for _, pass := range []bool{false, true} {
			t.Run(c.Name+map[bool]string{false: "/random", true: "/stream"}[pass], func(t *testing.T) {
				out, err := bundled(t.Context(), t.TempDir(), archives[i], pass)
				if c.Verdict == corpus.Accepted && errors.Is(err, bundle.ErrNoPlatform) {
					// An import passes over images of other platforms; a bundle wants to be told.
					var names []string
					for _, img := range c.Published {
						names = append(names, img.Name)
					}
					out, err = bundled(t.Context(), t.TempDir(), archives[i], pass, names...)
				}
				if c.AcceptedBy(pass, false) {
					if err != nil {
						t.Fatal(err)
					}
					found := reads(t, out)
					for _, img := range c.Published {
						if !strings.HasPrefix(found[img.Name], img.Digest.String()) {
							t.Errorf("%s is %q, want %s", img.Name, found[img.Name], img.Digest)
						}
					}
					return
				}
				if !errors.Is(err, verdicts[c.Verdict]) {
					t.Fatalf("%v, want %s", err, c.Verdict)
				}
				if text := err.Error(); len(text) > 4096 || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
					t.Errorf("not to be shown: %.1000q", text)
				}
			})
		}
	}
}

// bundled makes a bundle for linux/amd64 of one archive, by random access where that is possible, or in a pass.
func bundled(ctx context.Context, dir string, data []byte, pass bool, names ...string) ([]byte, error) {
	r := inMemory{bytes.NewReader(data)}
	spool := bundle.NewSpool(dir, nil)
	defer spool.Close()
	tree, err := treeOf(ctx, r, pass, spool)
	if err != nil {
		return nil, err
	}
	layout, err := archive.Decode(ctx, tree)
	if err != nil {
		return nil, err
	}
	o := bundle.Options{Selection: archive.Selection{Include: names}, Platforms: parse([]string{"linux/amd64"})}
	made, err := bundle.Make(ctx, []bundle.Input{bundle.FromArchive("the archive", layout, r, spool)}, o)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	_, err = made.Write(ctx, &out, nil)
	return out.Bytes(), err
}

func treeOf(ctx context.Context, r inMemory, pass bool, spool *bundle.Spool) (*archive.Tree, error) {
	in := bufio.NewReader(r)
	head, err := in.Peek(archive.SniffLen)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	compression := archive.Sniff(head)
	if compression == archive.Uncompressed && !pass {
		return archive.ReadTree(ctx, r, r.Size())
	}
	plain, err := archive.Decompress(in, compression, archive.MaxWindowBytes)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	return archive.StreamTree(ctx, plain, spool)
}
