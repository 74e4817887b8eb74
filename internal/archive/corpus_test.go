package archive_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/containerd/platforms"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/corpus"
)

// verdicts are the errors here by which the importer's verdicts are told.
var verdicts = map[corpus.Verdict]error{
	corpus.Accepted:          nil,
	corpus.Invalid:           archive.ErrInvalid,
	corpus.Truncated:         archive.ErrTruncated,
	corpus.LimitExceeded:     archive.ErrLimit,
	corpus.DigestMismatch:    archive.ErrDigestMismatch,
	corpus.ContentIncomplete: archive.ErrMissing,
	corpus.InvalidName:       archive.ErrInvalidName,
}

// TestCorpus reads every archive of the corpus, small ones in both ways.
func TestCorpus(t *testing.T) {
	for _, c := range corpus.Cases() {
		for _, pass := range []bool{false, true} {
			mode := map[bool]string{false: "/random", true: "/stream"}[pass]
			if d := c.Open(); d.Size() > corpus.MaxSmall && pass != (compressionOf(t, d) != archive.Uncompressed) {
				continue // large ones once; test/integration reads them in both ways
			}
			t.Run(c.Name+mode, func(t *testing.T) {
				t.Parallel()
				err := readCase(t.Context(), c.Open(), pass)
				want := verdicts[c.Verdict]
				if c.Sight > corpus.Metadata && (c.Sight != corpus.Bytes && c.Sight != corpus.Whole || !pass) {
					want = nil // seen by others
				}
				wantError(t, err, want)
				if want != nil && err != nil {
					checkText(t, err, c.Says)
				}
			})
		}
	}
}

// checkText looks for parts in a message, and for what must not be in one.
func checkText(t *testing.T, err error, parts []string) {
	t.Helper()
	text := err.Error()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("the error does not say %q: %.1000s", part, text)
		}
	}
	if len(text) > 4096 || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		t.Errorf("not to be shown: %.1000q", text)
	}
}

func compressionOf(t *testing.T, d *corpus.Data) archive.Compression {
	t.Helper()
	head := make([]byte, archive.SniffLen)
	n, err := d.ReadAt(head, 0)
	if n < len(head) && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return archive.Sniff(head[:n])
}

// readCase reads what an import on linux/amd64 reads.
func readCase(ctx context.Context, d *corpus.Data, pass bool) error {
	sink := archive.NewMemorySink()
	tree, err := treeOf(ctx, d, pass, sink)
	if err != nil {
		return err
	}
	l, err := archive.Decode(ctx, tree)
	if err != nil {
		return err
	}
	selected, err := l.Select(archive.Selection{DigestReferences: true})
	if err != nil {
		return err
	}
	resolver := &archive.Resolver{Fetch: fetchFrom(l)}
	has := func(m archive.PlatformManifest) bool {
		_, err := l.ReadBlob(ctx, m.Descriptor, archive.MaxManifestBytes)
		return !errors.Is(err, archive.ErrMissing)
	}
	for _, n := range selected {
		list, err := resolver.PlatformManifests(ctx, n.Target)
		if err != nil {
			return err
		}
		for _, m := range list {
			if !platforms.Only(platforms.MustParse("linux/amd64")).Match(*m.Platform) {
				continue
			}
			if !has(m) && slices.ContainsFunc(list, has) {
				continue // an archive of another platform
			}
			if err := readPlatform(ctx, l, sink, m); err != nil {
				return err
			}
		}
	}
	return nil
}

func readPlatform(ctx context.Context, l *archive.Layout, sink *archive.MemorySink, manifest archive.PlatformManifest) error {
	m, err := archive.ReadManifest(ctx, fetchFrom(l), manifest.Descriptor)
	if err != nil {
		return err
	}
	if _, err := archive.ReadConfig(ctx, fetchFrom(l), m, *manifest.Platform); err != nil {
		return err
	}
	for _, layer := range m.Layers {
		_, located := l.Locate(layer.Digest)
		_, passed := sink.Size(layer.Digest)
		if !located && !passed && l.Complete {
			return fmt.Errorf("blob %s: %w", layer.Digest, archive.ErrMissing)
		}
		if !located && !passed {
			return fmt.Errorf("blob %s: %w", layer.Digest, archive.ErrTruncated)
		}
	}
	return nil
}

// treeOf reads a compressed archive, and any other in a pass, as a stream.
func treeOf(ctx context.Context, d *corpus.Data, pass bool, sink archive.Sink) (*archive.Tree, error) {
	in := bufio.NewReader(d.Reader())
	head, err := in.Peek(archive.SniffLen)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	c := archive.Sniff(head)
	if c == archive.Uncompressed && !pass {
		return archive.ReadTree(ctx, sections{d}, d.Size())
	}
	plain, err := archive.Decompress(in, c, archive.MaxWindowBytes)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	return archive.StreamTree(ctx, plain, sink)
}

// sections makes an archive.Random of what can be read anywhere.
type sections struct{ *corpus.Data }

func (s sections) Section(_ context.Context, off, n int64) (io.ReadCloser, error) {
	return io.NopCloser(io.NewSectionReader(s.Data, off, n)), nil
}
