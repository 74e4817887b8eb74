package faults

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive/builder"
)

// material is an archive to import.
type material struct {
	path string
	// need are the blobs that this machine needs of it, with their sizes in bytes.
	need map[digest.Digest]int64
	// files are what a container of an image finds, by the image's name.
	files map[string][]builder.File
	// targets are what the names stand for.
	targets map[string]digest.Digest
}

const (
	otherName     = "faults.example/other:1"
	bystanderName = "bystander.example/x:1"
)

// base is a layer that the bystander's image and those of the archives have.
var base = layer("base", 1, 20_000)

func layer(name string, seed uint64, size int64) builder.Layer {
	return builder.Layer{Compression: builder.Gzip, Files: []builder.File{{Name: name + "/"}, builder.Noise(name+"/noise", seed, size)}}
}

func image(names []string, command string, layers ...builder.Layer) builder.Image {
	foreign := "arm64"
	if runtime.GOARCH == foreign {
		foreign = "amd64"
	}
	return builder.Image{Names: names, Platforms: []builder.PlatformImage{
		{Platform: builder.Platform("linux/" + runtime.GOARCH), Layers: layers, Config: ocispec.ImageConfig{Cmd: []string{command}}},
		{Platform: builder.Platform("linux/" + foreign), Layers: []builder.Layer{layer("foreign", 2, 3000)}},
	}}
}

// application is what is imported and killed: two images, three names, and a layer of several messages. All versions
// have the same names.
func application(version uint64) builder.Archive {
	command := fmt.Sprint("version ", version)
	return builder.Archive{Images: []builder.Image{
		image([]string{"faults.example/app:1", "faults.example/app:latest"}, command,
			base, layer("app", 100+version, 1_300_000), layer("etc", 200+version, 2000)),
		image([]string{"faults.example/db:1"}, command, base, layer("db", 300+version, 50_000)),
	}}
}

// other is the small archive that comes next.
func other() builder.Archive {
	return builder.Archive{Images: []builder.Image{image([]string{otherName}, "other", layer("other", 400, 5000))}}
}

func write(t *testing.T, a builder.Archive) *material {
	t.Helper()
	b, err := a.Build()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	data, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	m := &material{
		path: filepath.Join(t.TempDir(), "archive.tar"), need: map[digest.Digest]int64{},
		files: map[string][]builder.File{}, targets: map[string]digest.Digest{},
	}
	if err := os.WriteFile(m.path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for k, img := range b.Images {
		p := img.Platforms[0]
		for _, d := range append(append(img.Indexes, p.Manifest, p.Config), p.Layers...) {
			m.need[d.Digest] = d.Size
		}
		for _, name := range img.Names {
			m.targets[name] = img.Target.Digest
			for _, l := range a.Images[k].Platforms[0].Layers {
				m.files[name] = append(m.files[name], l.Files[1:]...) // after the directory
			}
		}
	}
	return m
}
