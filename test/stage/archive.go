package stage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive/builder"
	"github.com/tarlift/tarlift/test/cluster"
)

// Names of the demonstration's images, without their tag.
const (
	Greeter = "demo.tarlift.dev/greeter"
	Toolbox = "demo.tarlift.dev/toolbox"
	Library = "demo.tarlift.dev/library"
	// Network is what stands for a cluster's network add-on.
	Network = "demo.tarlift.dev/network"
)

// demoPlatforms are those of the archive. A node needs one of them.
var demoPlatforms = []string{"linux/amd64", "linux/arm64", "linux/arm/v7"}

// WriteArchive writes an archive of three images for three platforms: a small program, a large one (the go command),
// and one that is mostly files. They share a base layer of files of the Go distribution. Versions differ in their tags
// and in the small program, so that the upgrade from one to another is a small part of the archive.
func WriteArchive(ctx context.Context, path, version string) (err error) {
	root, err := cluster.ModuleRoot()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "demo-archive-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	base, err := goFiles(ctx)
	if err != nil {
		return err
	}
	greeter := builder.Image{Names: []string{Greeter + ":" + version}}
	toolbox := builder.Image{Names: []string{Toolbox + ":" + version}}
	library := builder.Image{Names: []string{Library + ":" + version}}
	for _, p := range demoPlatforms {
		small, err := compile(ctx, root, p, "./test/stage/greeter", "-X main.version="+version, filepath.Join(dir, "greeter-"+version))
		if err != nil {
			return err
		}
		large, err := compile(ctx, root, p, "cmd/go", "", filepath.Join(dir, "go"))
		if err != nil {
			return err
		}
		greeter.Platforms = append(greeter.Platforms, program(p, small, base))
		toolbox.Platforms = append(toolbox.Platforms, program(p, large, base))
		library.Platforms = append(library.Platforms, builder.PlatformImage{Platform: builder.Platform(p), Layers: []builder.Layer{base, small}})
	}
	return write(path, greeter, toolbox, library)
}

// WriteNetwork writes an archive of the image of what stands for a cluster's network add-on, for this machine.
func WriteNetwork(ctx context.Context, path string) (err error) {
	root, err := cluster.ModuleRoot()
	if err != nil {
		return err
	}
	platform := "linux/" + runtime.GOARCH
	layer, err := compile(ctx, root, platform, "./test/stage/network", "", path+".program")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(layer.Files[0].Path)) }()
	return write(path, builder.Image{Names: []string{Network + ":1.0"}, Platforms: []builder.PlatformImage{{
		Platform: builder.Platform(platform), Layers: []builder.Layer{layer},
		Config: ocispec.ImageConfig{Entrypoint: []string{"/network"}},
	}}})
}

func write(path string, images ...builder.Image) error {
	f, err := os.Create(path + ".partial")
	if err != nil {
		return err
	}
	_, err = builder.Archive{Images: images}.WriteTo(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return os.Rename(f.Name(), path)
}

func program(platform string, layer, base builder.Layer) builder.PlatformImage {
	return builder.PlatformImage{
		Platform: builder.Platform(platform), Layers: []builder.Layer{base, layer},
		Config: ocispec.ImageConfig{Entrypoint: []string{"/" + layer.Files[0].Name}},
	}
}

// compile makes a layer of one program.
func compile(ctx context.Context, root, platform, pkg, ldflags, out string) (builder.Layer, error) {
	p := builder.Platform(platform)
	path := out + "-" + strings.ReplaceAll(platform, "/", "-")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w "+ldflags, "-o", path, pkg)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+p.OS, "GOARCH="+p.Architecture, "GOARM="+strings.TrimPrefix(p.Variant, "v"))
	if output, err := cmd.CombinedOutput(); err != nil {
		return builder.Layer{}, fmt.Errorf("build %s for %s: %w: %s", pkg, platform, err, output)
	}
	return builder.Layer{Compression: builder.Gzip, Level: 1, Files: []builder.File{{Name: filepath.Base(pkg), Mode: 0o755, Path: path}}}, nil
}

// goFiles is a layer of some tens of megabytes of real files: sources of the Go distribution.
func goFiles(ctx context.Context) (builder.Layer, error) {
	output, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return builder.Layer{}, fmt.Errorf("go env GOROOT: %w", err)
	}
	root := strings.TrimSpace(string(output))
	l := builder.Layer{Compression: builder.Gzip, Level: 1}
	for _, sub := range []string{"lib/time", "src/cmd/compile", "src/net", "src/crypto", "src/runtime"} {
		err := filepath.WalkDir(filepath.Join(root, sub), func(path string, d os.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			name, err := filepath.Rel(root, path)
			l.Files = append(l.Files, builder.File{Name: "usr/share/go/" + name, Path: path})
			return err
		})
		if err != nil {
			return builder.Layer{}, fmt.Errorf("collect files of %s: %w", sub, err)
		}
	}
	return l, nil
}
