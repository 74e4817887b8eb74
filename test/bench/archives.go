package main

import (
	"fmt"
	"runtime"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive/builder"
)

// archive says what an archive consists of.
type archive struct {
	Name   string
	Format builder.Format
	Images []image
	// Zstd compresses the whole of it, with the largest window that the agent accepts.
	Zstd bool
}

// image has the same number and sizes of layers for each platform, but of other bytes.
type image struct {
	Tag       string
	Tags      int `json:",omitempty"` // more names of it
	Platforms []string
	Layers    []layer
}

// layer is equal to any other of the same seed, size and compression.
type layer struct {
	Seed        uint64
	Size        int64 // before compression, which leaves about 70 %
	Compression builder.Compression
	Unlisted    bool `json:",omitempty"` // its files are in a directory that it does not list
}

// machine is this machine's platform alone.
var machine = []string{"linux/" + runtime.GOARCH}

var five = []string{"linux/amd64", "linux/arm64", "linux/arm/v7", "linux/ppc64le", "linux/s390x"}

// All archives together are to stay below 10 GiB, and no pair of runs is to take more than about a minute on two slow
// cores.
var (
	single   = archive{Name: "single", Images: one(layers(0, 10, 146, builder.Gzip))}
	large    = archive{Name: "large", Images: one(layers(100, 10, 292, builder.Gzip))}
	multi    = archive{Name: "multi", Images: []image{{Tag: "1", Platforms: five, Layers: layers(200, 4, 110, builder.Gzip)}}}
	docker   = archive{Name: "docker", Format: builder.Docker, Images: one(layers(300, 10, 150, builder.None))}
	zstds    = archive{Name: "zstd", Images: one(layers(400, 10, 100, builder.Zstd))}
	outer    = archive{Name: "outer", Images: single.Images, Zstd: true}
	version1 = archive{Name: "version-1", Images: one(layers(500, 10, 50, builder.Gzip))}
	version2 = archive{Name: "version-2", Images: []image{{Tag: "2", Platforms: machine, Layers: append(layers(500, 8, 50, builder.Gzip), layers(520, 2, 50, builder.Gzip)...)}}}
	thirty   = archive{Name: "thirty", Images: family(30)}
	unlisted = archive{Name: "unlisted", Images: one(omitting(layers(1000, 8, 60, builder.Gzip)))}
	many     = archive{Name: "many", Images: crowd(400)}
	names    = archive{Name: "names", Images: []image{{Tag: "1", Tags: 2999, Platforms: machine, Layers: layers(3000, 1, 12, builder.Gzip)}}}
	shared   = sharing(6)

	archives = append([]archive{single, large, multi, docker, zstds, outer, version1, version2, thirty, unlisted, many, names}, shared...)
)

// layers are count ones of so many MiB, with seeds from first on.
func layers(first uint64, count int, mib int64, c builder.Compression) []layer {
	out := make([]layer, count)
	for i := range out {
		out[i] = layer{Seed: first + uint64(i), Size: mib << 20, Compression: c}
	}
	return out
}

// omitting leaves the directories out of layers, as tools do that write tars by hand.
func omitting(l []layer) []layer {
	for i := range l {
		l[i].Unlisted = true
	}
	return l
}

// one image of this machine's platform.
func one(l []layer) []image { return []image{{Tag: "1", Platforms: machine, Layers: l}} }

// sharing are archives with the same four layers below a small one of their own.
func sharing(count int) []archive {
	out := make([]archive, count)
	for i := range out {
		own := layers(610+uint64(i), 1, 10, builder.Gzip)
		out[i] = archive{Name: fmt.Sprintf("shared-%d", i+1), Images: one(append(layers(600, 4, 55, builder.Gzip), own...))}
	}
	return out
}

// family are images on five bases of two layers; each has a middling and a small layer of its own.
func family(count int) []image {
	out := make([]image, count)
	for i := range out {
		n := uint64(i)
		l := layers(700+n%5*10, 2, 12, builder.Gzip)
		l = append(l, layers(800+n, 1, 12, builder.Gzip)...)
		l = append(l, layers(900+n, 1, 1, builder.Gzip)...)
		out[i] = image{Tag: fmt.Sprint(i + 1), Platforms: machine, Layers: l}
	}
	return out
}

// crowd are images on one base of two layers; each has a small layer of its own.
func crowd(count int) []image {
	out := make([]image, count)
	for i := range out {
		own := layer{Seed: 2100 + uint64(i), Size: 64 << 10, Compression: builder.Gzip}
		out[i] = image{Tag: fmt.Sprint(i + 1), Platforms: machine, Layers: append(layers(2000, 2, 12, builder.Gzip), own)}
	}
	return out
}

func (a archive) build() (*builder.Built, error) {
	out := builder.Archive{Format: a.Format}
	for _, img := range a.Images {
		made := builder.Image{Names: []string{"bench.example/" + a.Name + ":" + img.Tag}}
		for i := range img.Tags {
			made.Names = append(made.Names, fmt.Sprintf("bench.example/%s:also-%d", a.Name, i))
		}
		for p, platform := range img.Platforms {
			one := builder.PlatformImage{Platform: builder.Platform(platform), Config: ocispec.ImageConfig{Cmd: []string{"/none"}}}
			for _, l := range img.Layers {
				l.Seed += uint64(p) << 16
				one.Layers = append(one.Layers, builder.Layer{Files: l.files(), Compression: l.Compression, Level: 1})
			}
			made.Platforms = append(made.Platforms, one)
		}
		out.Images = append(out.Images, made)
	}
	return out.Build()
}
