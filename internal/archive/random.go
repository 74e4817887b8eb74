package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// extent is where a member's bytes lie.
type extent struct{ off, size int64 }

// randomTree is an archive that stays where it is.
type randomTree struct {
	members[extent]
	r Random
	// layers that were hashed, by member name.
	layers map[string]ocispec.Descriptor
}

// ReadTree reads the headers of the tar in the first size bytes of r, and of the
// rest only the padding at the end (and files such as index.json when they are
// there twice). A member that would end beyond size is ErrTruncated.
func ReadTree(ctx context.Context, r Random, size int64) (Tree, error) {
	t := &randomTree{members: newMembers[extent](), r: r, layers: map[string]ocispec.Descriptor{}}
	s := newScanner(headers(r, size))
	control := map[string][]extent{}
	for {
		e, err := s.next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if e.size > size-e.data {
			return nil, fmt.Errorf("member %.200q ends beyond the end of the file, at byte %d: %w", e.name, size, ErrTruncated)
		}
		switch {
		case e.kind == tar.TypeReg:
			err = t.addFile(e.name, extent{e.data, e.size})
			if controlFiles[e.name] {
				control[e.name] = append(control[e.name], extent{e.data, e.size})
			}
		case isLink(e):
			err = t.addLink(e)
		}
		if err != nil {
			return nil, err
		}
	}
	t.complete = s.complete
	if s.complete && s.in.off < size {
		if err := t.checkPadding(ctx, s.in.off, size-s.in.off); err != nil {
			return nil, err
		}
	}
	return t, t.checkTwins(ctx, control)
}

func (t *randomTree) checkPadding(ctx context.Context, off, n int64) (err error) {
	rc, err := t.r.Section(ctx, off, n)
	if err != nil {
		return err
	}
	defer closing(rc, &err)
	return expectZeros(rc)
}

// checkTwins compares control files that are there more than once.
func (t *randomTree) checkTwins(ctx context.Context, control map[string][]extent) error {
	left := int64(MaxMetadataBytes)
	for _, name := range slices.Sorted(maps.Keys(control)) {
		list := control[name]
		if len(list) < 2 {
			continue
		}
		var first []byte
		for i, x := range list {
			if x.size != list[0].size {
				return errTwins(name)
			}
			if left -= x.size; left < 0 {
				return fmt.Errorf("copies of %s have more than %d bytes: %w", name, MaxMetadataBytes, ErrLimit)
			}
			data, err := t.read(ctx, x)
			if err != nil {
				return err
			}
			if i == 0 {
				first = data
			}
			if !bytes.Equal(data, first) {
				return errTwins(name)
			}
		}
	}
	return nil
}

func errTwins(name string) error {
	return fmt.Errorf("%s is there twice with different content: %w", name, ErrInvalid)
}

func (t *randomTree) ReadFile(ctx context.Context, name string, limit int64) ([]byte, error) {
	_, x, err := t.resolve(name)
	if err != nil {
		return nil, err
	}
	if x.size > limit {
		return nil, tooLarge(name, x.size, limit)
	}
	return t.read(ctx, x)
}

func (t *randomTree) read(ctx context.Context, x extent) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err //nolint:wrapcheck // the caller's own
	}
	data := make([]byte, x.size)
	n, err := t.r.ReadAt(data, x.off)
	if n == len(data) {
		return data, nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = fmt.Errorf("the file ends at byte %d: %w", x.off+int64(n), ErrTruncated)
	}
	return nil, err
}

// Layer reads the first bytes of the layer, or all of it once when it is
// compressed and its name does not claim a digest: nothing else tells it.
func (t *randomTree) Layer(ctx context.Context, name string, diffID digest.Digest) (ocispec.Descriptor, error) {
	at, x, err := t.resolve(name)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if d, ok := t.layers[at]; ok {
		return d, nil
	}
	head, err := t.read(ctx, extent{x.off, min(x.size, SniffLen)})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := claimedDigest(at)
	if Sniff(head) == Uncompressed {
		if d != "" && d != diffID {
			return ocispec.Descriptor{}, errOtherDiffID(name, d, diffID)
		}
		return ocispec.Descriptor{MediaType: mediaTypeDockerLayer, Digest: diffID, Size: x.size}, nil
	}
	if d == "" {
		if d, err = t.hash(ctx, x); err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("read layer %.200q: %w", name, err)
		}
	}
	t.layers[at] = ocispec.Descriptor{MediaType: mediaTypeDockerLayerGzip, Digest: d, Size: x.size}
	return t.layers[at], nil
}

func errOtherDiffID(name string, d, diffID digest.Digest) error {
	return fmt.Errorf("layer %.200q has digest %s, its config says %s: %w", name, d, diffID, ErrDigestMismatch)
}

func (t *randomTree) hash(ctx context.Context, x extent) (d digest.Digest, err error) {
	rc, err := t.r.Section(ctx, x.off, x.size)
	if err != nil {
		return "", err
	}
	defer closing(rc, &err)
	sum := digest.Canonical.Digester()
	n, err := io.Copy(sum.Hash(), rc)
	if err != nil {
		return "", err //nolint:wrapcheck // the source's own
	}
	if n != x.size {
		return "", fmt.Errorf("the file ends at byte %d: %w", x.off+n, ErrTruncated)
	}
	return sum.Digest(), nil
}

func (t *randomTree) Locate(name string) (off, size int64, ok bool) {
	_, x, err := t.resolve(name)
	return x.off, x.size, err == nil
}

// closing closes c; its error counts when there is no other.
func closing(c io.Closer, err *error) {
	if cerr := c.Close(); *err == nil {
		*err = cerr
	}
}
