package archive_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive"
)

const imageName = "io.containerd.image.name"

func target(s string, annotations ...string) ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(s), Size: 1}
	for i := 0; i < len(annotations); i += 2 {
		if d.Annotations == nil {
			d.Annotations = map[string]string{}
		}
		d.Annotations[annotations[i]] = annotations[i+1]
	}
	return d
}

func named(name string) ocispec.Descriptor { return target("a", imageName, name) }

func refNamed(name string) ocispec.Descriptor {
	return target("a", ocispec.AnnotationRefName, name)
}

func list(ds ...ocispec.Descriptor) []ocispec.Descriptor { return ds }

// TestSelect: rows of what index.json says and which names come of it, as source>name.
func TestSelect(t *testing.T) {
	a, b := digest.FromString("a").String(), digest.FromString("b").String()
	for _, tc := range []struct {
		name string
		sel  archive.Selection
		in   []ocispec.Descriptor
		want string
		err  error
	}{
		{"buildkit, ctr: the full name is containerd's annotation", archive.Selection{}, list(target("a", imageName, "docker.io/library/app:1", ocispec.AnnotationRefName, "1")), "docker.io/library/app:1>docker.io/library/app:1", nil},
		{"podman, skopeo: the full name is the reference", archive.Selection{}, list(refNamed("example.com/app:1")), "example.com/app:1>example.com/app:1", nil},
		{"a short name is Docker's", archive.Selection{}, list(refNamed("app:1")), "docker.io/library/app:1>docker.io/library/app:1", nil},
		{"no tag means latest", archive.Selection{}, list(named("example.com/app")), "example.com/app:latest>example.com/app:latest", nil},
		{"a port is no tag", archive.Selection{}, list(refNamed("localhost:5000/app")), "localhost:5000/app:latest>localhost:5000/app:latest", nil},
		{"a digest that is the image's", archive.Selection{}, list(named("example.com/app@" + a)), "example.com/app@" + a + ">example.com/app@" + a, nil},
		{"tag and digest", archive.Selection{}, list(named("example.com/app:1@" + a)), "example.com/app@" + a + ">example.com/app@" + a, nil},
		{"a digest of another image", archive.Selection{}, list(named("example.com/app@" + b)), "", archive.ErrInvalidName},
		{"a tag and a digest of another image", archive.Selection{}, list(named("example.com/app:1@" + b)), "", archive.ErrInvalidName},
		{"a bare tag", archive.Selection{}, list(refNamed("1.0")), "", archive.ErrInvalidName},
		{"a bare tag with a base name", archive.Selection{BaseName: "example.com/app"}, list(refNamed("1.0")), "example.com/app:1.0>example.com/app:1.0", nil},
		{"a bare tag that is none", archive.Selection{BaseName: "example.com/app"}, list(refNamed("-")), "", archive.ErrInvalidName},
		{"no name", archive.Selection{}, list(target("a")), "", archive.ErrInvalidName},
		{"no name with a base name", archive.Selection{BaseName: "app"}, list(target("a")), ">docker.io/library/app@" + a, nil},
		{"a base name does not touch full names", archive.Selection{BaseName: "app"}, list(named("b:1")), "docker.io/library/b:1>docker.io/library/b:1", nil},
		{"no name, but others are asked for", archive.Selection{Include: []string{"**"}}, list(target("b"), named("app:1")), "docker.io/library/app:1>docker.io/library/app:1", nil},
		{"no name and nothing else", archive.Selection{Include: []string{"**"}}, list(target("b")), "", archive.ErrInvalidName},
		{"NUL", archive.Selection{}, list(named("app\x00:1")), "", archive.ErrInvalidName},
		{"spaces", archive.Selection{}, list(named("my app:1")), "", archive.ErrInvalidName},
		{"capital letters", archive.Selection{}, list(named("example.com/App:1")), "", archive.ErrInvalidName},
		{"5,000 characters", archive.Selection{}, list(named(strings.Repeat("a/", 2500) + "b:1")), "", archive.ErrInvalidName},
		{"a host of 5,000 characters", archive.Selection{}, list(named(strings.Repeat("a.", 2500) + "example/b:1")), "", archive.ErrInvalidName},
		{"an image's id", archive.Selection{}, list(named(strings.Repeat("a", 64))), "", archive.ErrInvalidName},
		{"one bad name among good ones", archive.Selection{}, list(named("a:1"), named("B:1")), "", archive.ErrInvalidName},
		{"a name twice", archive.Selection{}, list(named("a:1"), refNamed("docker.io/a:1")), "docker.io/library/a:1>docker.io/library/a:1", nil},
		{"a name of two images", archive.Selection{}, list(named("a:1"), target("b", imageName, "a:1")), "", archive.ErrInvalidName},
		{"no image at all", archive.Selection{}, nil, "", archive.ErrInvalidName},
		{"a signature beside an image, as ctr exports referrers", archive.Selection{}, list(named("a:1"), target("b", "io.containerd.manifest.subject", a)), "docker.io/library/a:1>docker.io/library/a:1", nil},

		{"include", archive.Selection{Include: []string{"docker.io/library/a:*"}}, list(named("a:1"), named("b:1"), named("a:2")), "docker.io/library/a:1>docker.io/library/a:1 docker.io/library/a:2>docker.io/library/a:2", nil},
		{"* ends at a slash", archive.Selection{Include: []string{"example.com/*"}}, list(named("example.com/a:1"), named("example.com/x/b:1")), "example.com/a:1>example.com/a:1", nil},
		{"** does not", archive.Selection{Include: []string{"example.com/**"}}, list(named("example.com/a:1"), named("example.com/x/b:1"), named("a:1")), "example.com/a:1>example.com/a:1 example.com/x/b:1>example.com/x/b:1", nil},
		{"a dot is a dot", archive.Selection{Include: []string{"example.com/**"}}, list(named("exampleXcom.org/a:1")), "", archive.ErrInvalidName},
		{"a glob is for the whole name", archive.Selection{Include: []string{"library/a:1"}}, list(named("a:1")), "", archive.ErrInvalidName},
		{"exclude wins", archive.Selection{Include: []string{"**"}, Exclude: []string{"**:2"}}, list(named("a:1"), named("a:2")), "docker.io/library/a:1>docker.io/library/a:1", nil},
		{"all excluded", archive.Selection{Exclude: []string{"**"}}, list(named("a:1")), "", archive.ErrInvalidName},
		{"a glob for nameless images", archive.Selection{BaseName: "base", Include: []string{"docker.io/library/base@**"}}, list(target("a")), ">docker.io/library/base@" + a, nil},

		{"rename by prefix", archive.Selection{Rename: []archive.Rename{{From: "docker.io/library/", To: "example.com/mirror/"}}}, list(named("a:1")), "docker.io/library/a:1>example.com/mirror/a:1", nil},
		{"rename one name", archive.Selection{Rename: []archive.Rename{{From: "a:1", To: "example.com/b:2"}}}, list(named("a:1"), named("a:2")), "docker.io/library/a:1>example.com/b:2 docker.io/library/a:2>docker.io/library/a:2", nil},
		{"the first rule counts", archive.Selection{Rename: []archive.Rename{{From: "docker.io/", To: "x.io/"}, {From: "docker.io/library/", To: "y.io/"}}}, list(named("a:1")), "docker.io/library/a:1>x.io/library/a:1", nil},
		{"globs are for the old name", archive.Selection{Include: []string{"docker.io/**"}, Rename: []archive.Rename{{From: "docker.io/", To: "x.io/"}}}, list(named("a:1")), "docker.io/library/a:1>x.io/library/a:1", nil},
		{"two names become one", archive.Selection{Rename: []archive.Rename{{From: "a:1", To: "c:1"}, {From: "b:1", To: "c:1"}}}, list(named("a:1"), target("b", imageName, "b:1")), "", archive.ErrInvalidName},
		{"renamed beyond the length of names", archive.Selection{Rename: []archive.Rename{{From: "docker.io/library/", To: "example.com/" + strings.Repeat("x", 250) + "/"}}}, list(named("abcdefghijklmnop:1")), "", archive.ErrInvalidName},
		{"included, renamed to no name", archive.Selection{Include: []string{"**"}, Rename: []archive.Rename{{From: "docker.io/library/", To: "example.com/" + strings.Repeat("x", 250) + "/"}}}, list(named("abcdefghijklmnop:1"), named("example.com/b:1")), "", archive.ErrInvalidName},
		{"included, a name that is none beside it", archive.Selection{Include: []string{"**"}}, list(named("B:1"), named("example.com/b:1")), "example.com/b:1>example.com/b:1", nil},
		{"included, renamed to the digest of another image", archive.Selection{Include: []string{"**"}, Rename: []archive.Rename{{From: "a:1", To: "a@" + b}}}, list(named("a:1"), named("example.com/b:1")), "", archive.ErrInvalidName},
		{"renamed to the digest of another image", archive.Selection{Rename: []archive.Rename{{From: "a:1", To: "a@" + b}}}, list(named("a:1")), "", archive.ErrInvalidName},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := tc.sel.Select(tc.in)
			wantError(t, err, tc.err)
			var names []string
			for _, n := range got {
				names = append(names, n.Source+">"+n.Name)
				if n.DigestReference != "" {
					t.Errorf("%s has a digest reference: none was asked for", n.Name)
				}
			}
			if diff := cmp.Diff(tc.want, strings.Join(names, " ")); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestDigestReferences(t *testing.T) {
	a := digest.FromString("a").String()
	sel := archive.Selection{DigestReferences: true, BaseName: "base", Rename: []archive.Rename{{From: "docker.io/library/old:1", To: "example.com/new:2"}}}
	got, err := sel.Select(list(named("a:1"), named("a:2"), named("old:1"), named("c@"+a), target("a")))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"docker.io/library/a@" + a, "docker.io/library/a@" + a, // two tags, one reference
		"example.com/new@" + a, // of the new name
		"", "",                 // the name is the reference
	}
	for i, n := range got {
		if n.DigestReference != want[i] {
			t.Errorf("%s: %q, want %q", n.Name, n.DigestReference, want[i])
		}
	}
}

func TestValidate(t *testing.T) {
	for _, tc := range []struct {
		name string
		sel  archive.Selection
		want error
	}{
		{"nothing", archive.Selection{}, nil},
		{"a base name", archive.Selection{BaseName: "example.com:5000/a/b"}, nil},
		{"a base name with a tag", archive.Selection{BaseName: "a:1"}, archive.ErrInvalidName},
		{"a base name that is none", archive.Selection{BaseName: "A B"}, archive.ErrInvalidName},
		{"an IPv6 registry in a glob", archive.Selection{Include: []string{"[::1]:5000/**"}}, nil},
		{"an empty glob", archive.Selection{Include: []string{""}}, archive.ErrInvalidName},
		{"a glob with a character class of others' globs", archive.Selection{Exclude: []string{"a?"}}, archive.ErrInvalidName},
		{"a prefix to no prefix", archive.Selection{Rename: []archive.Rename{{From: "docker.io/", To: "example.com"}}}, archive.ErrInvalidName},
		{"no prefix to a prefix", archive.Selection{Rename: []archive.Rename{{From: "a:1", To: "b/"}}}, archive.ErrInvalidName},
		{"from nothing", archive.Selection{Rename: []archive.Rename{{From: "", To: "b"}}}, archive.ErrInvalidName},
		{"to nothing", archive.Selection{Rename: []archive.Rename{{From: "a", To: ""}}}, archive.ErrInvalidName},
		{"to a name that is none", archive.Selection{Rename: []archive.Rename{{From: "a", To: "B"}}}, archive.ErrInvalidName},
		{"a prefix of a registry", archive.Selection{Rename: []archive.Rename{{From: "docker.io/", To: "localhost:5000/"}}}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			wantError(t, tc.sel.Validate(), tc.want)
		})
	}
}

func TestNamesAreBounded(t *testing.T) {
	var in []ocispec.Descriptor
	for i := range archive.MaxNames + 1 {
		in = append(in, named(fmt.Sprintf("app:%d", i)))
	}
	_, err := archive.Selection{}.Select(in[:archive.MaxNames])
	wantError(t, err, nil)
	_, err = archive.Selection{}.Select(in)
	wantError(t, err, archive.ErrLimit)
}

// TestNothingSelectedSaysWhatThereIs, so that whoever wrote the selection can mend it.
func TestNothingSelectedSaysWhatThereIs(t *testing.T) {
	two := list(named("example.com/app:1"), named("tool:2"))
	var many []ocispec.Descriptor
	for i := range archive.MaxNames {
		many = append(many, named(fmt.Sprintf("example.com/app:%d", i)))
	}
	for _, tc := range []struct {
		name string
		sel  archive.Selection
		in   []ocispec.Descriptor
		says []string
	}{
		{"include", archive.Selection{Include: []string{"tool*"}}, two, []string{"images.include (--include)", `"example.com/app:1", "docker.io/library/tool:2"`}},
		{"exclude", archive.Selection{Exclude: []string{"**"}}, two, []string{"images.exclude (--exclude)", `"example.com/app:1"`}},
		{"include, then exclude", archive.Selection{Include: []string{"**/app:*"}, Exclude: []string{"**"}}, two, []string{"images.exclude (--exclude)"}},
		{"many names", archive.Selection{Include: []string{"x"}}, many, []string{`"example.com/app:0"`, "4076 more"}},
		{"some without a name", archive.Selection{Include: []string{"x"}}, append(list(target("b")), two...), []string{`"example.com/app:1"`}},
		{"all without a name", archive.Selection{Include: []string{"x"}}, list(target("b")), []string{"images.baseName (--base-name)"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := tc.sel.Select(tc.in)
			wantError(t, err, archive.ErrInvalidName)
			checkText(t, err, tc.says)
		})
	}
}
