// Command image writes the agent's image as an OCI archive: the static binary
// of each platform on an empty base. It needs Go and nothing else. The same
// source, name and flags give the same bytes on every machine.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/hack/compile"
	"github.com/tarlift/tarlift/internal/archive/builder"
)

type options struct {
	name      string
	output    string
	ldflags   string
	platforms string
	binaries  string
	pkg       string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	var o options
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	flags.StringVar(&o.name, "name", "ghcr.io/tarlift/agent:dev", "the image's `name:tag`")
	flags.StringVar(&o.output, "o", "bin/agent-image.tar", "`file` to write")
	flags.StringVar(&o.ldflags, "ldflags", "-s -w", "`flags` for the linker")
	flags.StringVar(&o.platforms, "platforms", "linux/amd64,linux/arm64", "comma-separated `os/arch` list")
	flags.StringVar(&o.binaries, "binaries", "", "also leave each platform's binary at `prefix`-os-arch")
	flags.StringVar(&o.pkg, "package", "./cmd/agent", "main `package` of the agent")
	if err := flags.Parse(args); err != nil {
		return err //nolint:wrapcheck // flag has printed it, with the usage
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	return build(ctx, o)
}

// build compiles the agent for every platform and writes the archive.
func build(ctx context.Context, o options) (err error) {
	named, err := reference.ParseNormalizedNamed(o.name)
	if err != nil {
		return fmt.Errorf("name %q: %w", o.name, err)
	}
	tagged, ok := named.(reference.NamedTagged)
	if !ok {
		return fmt.Errorf("name %q: has no tag", o.name)
	}
	prefix := o.binaries
	if prefix == "" {
		var dir string
		if dir, err = os.MkdirTemp("", "agent-image-*"); err != nil {
			return fmt.Errorf("directory for binaries: %w", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
		prefix = filepath.Join(dir, "agent")
	}

	var images []builder.PlatformImage
	for _, platform := range strings.Split(o.platforms, ",") {
		binary := prefix + "-" + strings.ReplaceAll(platform, "/", "-")
		if err := compile.Binary(ctx, o.pkg, platform, o.ldflags, binary); err != nil {
			return err
		}
		images = append(images, platformImage(tagged, builder.Platform(platform), binary))
	}
	archive := builder.Archive{Images: []builder.Image{{Names: []string{tagged.String()}, Platforms: images}}}
	return write(archive, o.output)
}

// platformImage is the binary on an empty base. Root certificates lie in a layer
// below it, which all platforms and versions share.
func platformImage(name reference.NamedTagged, platform ocispec.Platform, binary string) builder.PlatformImage {
	return builder.PlatformImage{
		Platform: platform,
		Layers: []builder.Layer{
			{Compression: builder.Gzip, Files: []builder.File{
				{Name: "etc/"}, {Name: "etc/ssl/"}, {Name: "etc/ssl/certs/"},
				{Name: "etc/ssl/certs/ca-certificates.crt", Data: rootCertificates()},
			}},
			{Compression: builder.Gzip, Files: []builder.File{{Name: "agent", Mode: 0o755, Path: binary}}},
		},
		Config: ocispec.ImageConfig{
			// No user: containerd's socket belongs to root. What needs less says so in its pod.
			Entrypoint: []string{"/agent"},
			WorkingDir: "/",
			Labels: map[string]string{
				ocispec.AnnotationTitle:    "tarlift agent",
				ocispec.AnnotationSource:   "https://github.com/tarlift/tarlift",
				ocispec.AnnotationLicenses: "Apache-2.0",
				ocispec.AnnotationVersion:  name.Tag(),
			},
		},
	}
}

// write writes the archive beside its destination first, so that there is never
// half of one at it.
func write(archive builder.Archive, output string) (err error) {
	if err := os.MkdirAll(filepath.Dir(output), 0o755); err != nil { //nolint:gosec // build output is no secret
		return fmt.Errorf("directory of the archive: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(output), filepath.Base(output)+".*")
	if err != nil {
		return fmt.Errorf("create archive: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = archive.WriteTo(f)
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	if err := os.Rename(f.Name(), output); err != nil {
		return fmt.Errorf("put archive in place: %w", err)
	}
	return nil
}
