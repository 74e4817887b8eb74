package cluster

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/containerd/containerd/v2/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive/builder"
)

//go:embed pause/main.go
var pauseSource []byte

// pauseArchive builds the image that every pod needs, below dir.
func pauseArchive(ctx context.Context, dir string) ([]byte, error) {
	source, program := filepath.Join(dir, "pause.go"), filepath.Join(dir, "pause")
	if err := os.WriteFile(source, pauseSource, 0o644); err != nil {
		return nil, err
	}
	// Without modules: there is no network in here.
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, source)
	cmd.Dir = dir
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it has children and files of its own
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GO111MODULE=off", "GOFLAGS=", "GOWORK=off", "GOTOOLCHAIN=local")
	if output, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build pause: %w: %s", err, output)
	}
	archive, err := builder.Archive{Images: []builder.Image{{
		Names: []string{pauseImage},
		Platforms: []builder.PlatformImage{{
			Platform: builder.Platform("linux/" + runtime.GOARCH),
			Layers:   []builder.Layer{{Files: []builder.File{{Name: "pause", Mode: 0o755, Path: program}}}},
			Config:   ocispec.ImageConfig{Entrypoint: []string{"/pause"}},
		}},
	}}}.Bytes()
	if err != nil {
		return nil, fmt.Errorf("build pause image: %w", err)
	}
	return archive, nil
}

// WritePause writes an archive of the image that every pod needs, for bare nodes.
func WritePause(ctx context.Context, path string) error {
	archive, err := pauseArchive(ctx, filepath.Dir(path))
	if err != nil {
		return err
	}
	return os.WriteFile(path, archive, 0o644)
}

// load imports an archive of one image for this platform with containerd's own means.
func (n *Node) load(ctx context.Context, archive []byte) error {
	c, err := n.Client()
	if err != nil {
		return err
	}
	defer c.Close()
	loaded, err := c.Import(ctx, bytes.NewReader(archive))
	if err != nil {
		return fmt.Errorf("import into %s: %w", n.Name, err)
	}
	for _, image := range loaded {
		if err := client.NewImage(c, image).Unpack(ctx, "overlayfs"); err != nil {
			return fmt.Errorf("unpack %s on %s: %w", image.Name, n.Name, err)
		}
	}
	return nil
}
