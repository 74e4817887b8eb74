package importer

import (
	"errors"
	"slices"
	"testing"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/archive/builder"
)

// dry is a dry run of an archive.
func (n *node) dry(t *testing.T, b *builder.Built, stream bool, req Request) (DryRun, error) {
	t.Helper()
	a, err := Open(t.Context(), blobOf(t, b, stream))
	if err != nil {
		t.Fatal(err)
	}
	return n.DryRun(t.Context(), a, req)
}

func changes(d DryRun) (all []NameChange) {
	for _, n := range d.Names {
		all = append(all, n.Change)
	}
	return all
}

// What a dry run says of each name is what the import then does, and nothing is touched by it.
func TestDryRunNames(t *testing.T) {
	one, two := version(t, "one"), version(t, "two")
	for name, tc := range map[string]struct {
		first   *Owner // who has imported version one
		replace bool
		archive *builder.Built
		want    []NameChange // of the name, of name@digest and of the id
		refused error
	}{
		"new":                    {nil, false, two, []NameChange{NameNew, NameNew, NameNew}, nil},
		"there":                  {&Owner{}, false, one, []NameChange{NameKept, NameKept, NameKept}, nil},
		"there as an archive's":  {&Owner{Name: "a", UID: "1"}, false, one, []NameChange{NameKept, NameKept, NameKept}, nil},
		"its own, another image": {&Owner{}, false, two, []NameChange{NameMoved, NameNew, NameNew}, nil},
		"another's":              {&Owner{Name: "a", UID: "1"}, false, two, []NameChange{NameConflict, NameNew, NameNew}, ErrNameConflict},
		"another's, replaced":    {&Owner{Name: "a", UID: "1"}, true, two, []NameChange{NameMoved, NameNew, NameNew}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, "linux/amd64")
			if tc.first != nil {
				if _, err := n.Import(t.Context(), blobOf(t, one, false), wanted(*tc.first)); err != nil {
					t.Fatal(err)
				}
			}
			req := wanted(Owner{})
			req.Replace = tc.replace
			before := n.state(t)
			d, err := n.dry(t, tc.archive, false, req)
			if err != nil || !errors.Is(d.Refusal, tc.refused) || !slices.Equal(changes(d), tc.want) {
				t.Errorf("%v, refusal %v, error %v; want %v, %v", changes(d), d.Refusal, err, tc.want, tc.refused)
			}
			unchanged(t, before, n.state(t))
			if _, err := n.Import(t.Context(), blobOf(t, tc.archive, false), req); !errors.Is(err, tc.refused) {
				t.Errorf("the import: %v", err)
			}
		})
	}
}

// Errors are those of the import. A digest of the whole archive is known only where all of it was read.
func TestDryRunErrors(t *testing.T) {
	built := version(t, "one")
	other := wanted(Owner{})
	other.Selection.Include = []string{"nothing.example/**"}
	wrong := wanted(Owner{})
	wrong.Digest = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
	for name, tc := range map[string]struct {
		platform string
		stream   bool
		req      Request
		want     error
	}{
		"platform":               {"linux/riscv64", false, wanted(Owner{}), ErrNoMatchingPlatform},
		"nothing selected":       {"linux/amd64", false, other, archive.ErrInvalidName},
		"wrong digest, a stream": {"linux/amd64", true, wrong, archive.ErrDigestMismatch},
		"wrong digest, a file":   {"linux/amd64", false, wrong, nil},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, tc.platform)
			if d, err := n.dry(t, built, tc.stream, tc.req); !errors.Is(err, tc.want) || (d.Plan == nil) != (tc.want != nil) {
				t.Errorf("plan %v, error %v, want %v", d.Plan, err, tc.want)
			}
		})
	}
}

// The sums of the images are those of the plan, though images share layers.
func TestImageBytes(t *testing.T) {
	shared, own := layer("shared", 5000), layer("own", 3000)
	built := build(t, builder.Archive{Images: []builder.Image{
		{Names: []string{appName}, Platforms: []builder.PlatformImage{platformImage("linux/amd64", shared)}},
		{Names: []string{toolName}, Platforms: []builder.PlatformImage{platformImage("linux/amd64", shared, own)}},
	}})
	n := newNode(t, "linux/amd64")
	d, err := n.dry(t, built, false, wanted(Owner{}))
	if err != nil {
		t.Fatal(err)
	}
	sums := d.Plan.ImageBytes()
	if len(sums) != 2 || sums[0].Present != 0 || sums[0].Move != sums[0].Total || sums[1].Present == 0 ||
		sums[0].Move+sums[1].Move != d.Plan.Bytes.Move || sums[1].Total != sums[1].Move+sums[1].Present {
		t.Errorf("%+v of %+v", sums, d.Plan.Bytes)
	}
	if _, err := n.Import(t.Context(), blobOf(t, built, false), wanted(Owner{})); err != nil {
		t.Fatal(err)
	}
	if d, err = n.dry(t, built, false, wanted(Owner{})); err != nil || d.Plan.ImageBytes()[0].Move != 0 || d.Plan.ImageBytes()[1].Present != sums[1].Total {
		t.Errorf("afterwards: %+v, %v", d.Plan.ImageBytes(), err)
	}
}

// What an earlier attempt left of a blob is on the disk already: the next one needs room for the rest only.
func TestKeptBytesTakeNoRoom(t *testing.T) {
	const size = 8 << 20
	b := build(t, single(layer("a", size)))
	n := newNode(t, "linux/amd64")
	req := wanted(owner)
	req.Keep = true
	src := blobOf(t, b, false)
	src.onBytes = func(int64) error {
		if src.read.Load() > size/2 {
			return errInjected
		}
		return nil
	}
	if _, err := n.Import(t.Context(), src, req); !errors.Is(err, errInjected) {
		t.Fatalf("error %v", err)
	}
	attempt, ctx, err := n.begin(n.in(t.Context()), src, req)
	if err != nil {
		t.Fatal(err)
	}
	a, err := openRandom(ctx, blobOf(t, b, false))
	if err != nil {
		t.Fatal(err)
	}
	p, err := n.Plan(ctx, a, req)
	if err != nil {
		t.Fatal(err)
	}
	kept, err := attempt.kept(ctx, p)
	if err != nil || kept < size/4 || kept > size*3/4 {
		t.Errorf("%d bytes are there, error %v", kept, err)
	}
	if err := attempt.end(ctx, nil); err != nil {
		t.Error(err)
	}
}
