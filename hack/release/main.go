// Command release writes all that a release consists of into a new directory: the binaries of agent and tarlift, the
// agent's image, the chart's package, a bill of materials, and checksums of these. The same source, version and Go release give the same
// bytes on every machine.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/tarlift/tarlift/hack/compile"
)

const (
	// repository is what the chart's image.repository is by default.
	repository = "ghcr.io/tarlift/agent"
	chart      = "charts/tarlift"
	helm       = "bin/tools/helm"
)

// A release is what is released, and where it is written.
type release struct {
	version   string
	ldflags   string
	platforms string
	output    string
	// time is the source's, in place of all others.
	time time.Time
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) (err error) {
	var r release
	flags := flag.NewFlagSet("release", flag.ContinueOnError)
	flags.StringVar(&r.version, "version", "", "`version` of the release, such as 1.2.3")
	flags.StringVar(&r.ldflags, "ldflags", "-s -w", "`flags` for the linker")
	flags.StringVar(&r.platforms, "platforms", "linux/amd64,linux/arm64", "comma-separated `os/arch` list")
	flags.StringVar(&r.output, "o", "dist", "`directory` to write, which must not exist")
	dirty := flags.Bool("dirty", false, "release what differs from the last commit, too")
	if err := flags.Parse(args); err != nil {
		return err //nolint:wrapcheck // flag has printed it, with the usage
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if err := checkVersion(r.version); err != nil {
		return err
	}
	if !*dirty {
		if err := checkClean(ctx); err != nil {
			return err
		}
	}
	if r.time, err = sourceTime(ctx); err != nil {
		return err
	}
	return r.write(ctx)
}

// write makes the release beside its destination first, so that there is never half of one at it.
func (r release) write(ctx context.Context) (err error) {
	if _, err := os.Lstat(r.output); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s: %w", r.output, errors.Join(os.ErrExist, err))
	}
	dir, err := os.MkdirTemp(filepath.Dir(r.output), filepath.Base(r.output)+".*")
	if err != nil {
		return fmt.Errorf("directory of the release: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	if err := r.packageChart(ctx, filepath.Join(dir, "tarlift-"+r.version+".tgz")); err != nil {
		return err
	}
	agents, image, err := r.buildImage(ctx, dir)
	if err != nil {
		return err
	}
	tools, err := r.buildTools(ctx, dir)
	if err != nil {
		return err
	}
	if err := r.writeSBOM(ctx, filepath.Join(dir, "tarlift-"+r.version+".cdx.json"), agents, tools, image); err != nil {
		return err
	}
	sums, err := writeSums(dir)
	if err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return fmt.Errorf("mode of the release: %w", err)
	}
	if err := os.Rename(dir, r.output); err != nil {
		return fmt.Errorf("put release in place: %w", err)
	}
	fmt.Printf("%s holds\n%s", r.output, sums)
	return nil
}

// buildImage writes the agents, and the archive of the image that holds the same ones.
func (r release) buildImage(ctx context.Context, dir string) (agents []string, image string, err error) {
	prefix := filepath.Join(dir, "tarlift-agent-"+r.version)
	image = filepath.Join(dir, "tarlift-agent-image-"+r.version+".tar")
	if err := command(ctx, "go", "run", "./hack/image", "-name", repository+":"+r.version, "-platforms", r.platforms,
		"-ldflags", r.ldflags, "-binaries", prefix, "-o", image); err != nil {
		return nil, "", err
	}
	agents, err = r.binaries(prefix, func(string, string) error { return nil })
	return agents, image, err
}

// buildTools writes the binaries of tarlift.
func (r release) buildTools(ctx context.Context, dir string) ([]string, error) {
	return r.binaries(filepath.Join(dir, "tarlift-"+r.version), func(platform, path string) error {
		return compile.Binary(ctx, "./cmd/tarlift", platform, r.ldflags, path)
	})
}

// binaries makes a binary for each platform, which all may run whatever the umask.
func (r release) binaries(prefix string, build func(platform, path string) error) (paths []string, err error) {
	for _, platform := range strings.Split(r.platforms, ",") {
		path := prefix + "-" + strings.ReplaceAll(platform, "/", "-")
		if err := build(platform, path); err != nil {
			return nil, err
		}
		if err := os.Chmod(path, 0o755); err != nil {
			return nil, fmt.Errorf("mode of the binary: %w", err)
		}
		paths = append(paths, path)
	}
	return paths, nil
}

// command runs a program whose output is for whoever makes the release.
func command(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w", name, args[0], err)
	}
	return nil
}
