package corpus

import (
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive/builder"
)

// names that must not be published.
func names() []Case {
	other := digest.FromString("another image").String()
	long := "registry.example/" + strings.Repeat("n", 5000) + ":1"
	plain := change{}.make()
	as := func(name string, annotations map[string]string, says ...string) Case {
		c := change{descriptor: func(d ocispec.Descriptor) ocispec.Descriptor { d.Annotations = annotations; return d }}
		return of(InvalidName, name, c.make().tar, append(says, "index.json", "manifests[0]")...)
	}
	full := func(what, name string, says ...string) Case {
		return as("a name "+what, map[string]string{annotationName: name}, says...)
	}
	right := plain.manifest.Digest.String()
	byDigest := change{descriptor: func(d ocispec.Descriptor) ocispec.Descriptor { return named(d, "registry.example/team/app@"+right) }}.make()
	digested := byDigest.image()
	digested.Name = "registry.example/team/app@" + right
	return []Case{
		full("with NUL", "registry.example/a\x00b:1", `a\x00b`),
		full("with a space", "registry.example/a b:1", `a b`),
		full("with a line break", "registry.example/app:1\n", `\n`),
		full("with capital letters", "registry.example/App:1", "registry.example/App:1", "lowercase"),
		full("of 5,000 characters", long, long[:100]),
		full("that is only an algorithm", "sha256:", `"sha256:"`),
		full("that is only a digest", right, right),
		full("that is only the hex of a digest", plain.manifest.Digest.Encoded(), plain.manifest.Digest.Encoded()),
		full("with a digest of another image", "registry.example/team/app@"+other, other, right),
		full("with a tag and a digest of another image", "registry.example/team/app:1@"+other, other, right),
		full("with a digest that is none", "registry.example/team/app@sha256:abc", "sha256:abc"),
		full("with ..", "../../etc/passwd", `"../../etc/passwd"`),
		full("with a scheme", "https://registry.example/app:1", "https://"),
		as("a bare tag", map[string]string{"org.opencontainers.image.ref.name": "1"}, `"1"`, "baseName", right),
		as("no name", nil, "no name", "baseName", right),
		accepted(of("", "a name with its own digest", byDigest.tar), digested),
		oneBad(), twoTargets(), conflict(), sameTwice(),
	}
}

// oneBad is an archive of ten images with good names, and one with a bad one.
func oneBad() Case {
	var images []builder.Image
	for k := range 11 {
		name := fmt.Sprintf("registry.example/team/app%d:1", k)
		if k == 7 {
			name = "registry.example/Team/app7:1"
		}
		images = append(images, image(name, "linux/amd64"))
	}
	return of(InvalidName, "one bad name among ten good ones", archiveOf(nil, images...), "index.json", "manifests[7]", "registry.example/Team/app7:1")
}

// two gives two images with these names.
func two(a, b string) (archive []byte, first, second ocispec.Descriptor) {
	l := &layout{}
	var targets []ocispec.Descriptor
	for k := range 2 {
		m := change{layer: must(builder.TarBytes(file("k", fmt.Sprint(k))))}.make()
		l.members = append(l.members, m.members...)
		targets = append(targets, m.manifest)
	}
	return l.tar(indexOf(named(targets[0], a), named(targets[1], b))), targets[0], targets[1]
}

func twoTargets() Case {
	tar, a, b := two(appName, appName)
	return of(InvalidName, "one name of two images", tar, appName, a.Digest.String(), b.Digest.String())
}

// conflict takes the Bystander's name, and another one.
func conflict() Case {
	tar, _, b := two(appName, BystanderName)
	c := of(NameConflict, "a name that is somebody else's on the node", tar, BystanderName, b.Digest.String())
	c.Sight = Node
	return c
}

func sameTwice() Case {
	c := change{index: func(s string) string {
		head, tail, _ := strings.Cut(s, "[")
		target, tail, _ := strings.Cut(tail, "]")
		return head + "[" + target + "," + target + "]" + tail
	}}.make()
	return accepted(of("", "one name twice of the same image", c.tar), c.image())
}
