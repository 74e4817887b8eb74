// Package compile builds the commands as they are released.
package compile

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// Binary builds a main package for a platform, os/arch. The binary depends on nothing of this machine: no paths, no libc,
// and no state of the working tree but what ldflags say.
func Binary(ctx context.Context, pkg, platform, ldflags, output string) error {
	goos, goarch, ok := strings.Cut(platform, "/")
	if !ok {
		return fmt.Errorf("platform %q: want os/arch", platform)
	}
	//nolint:gosec // the command line is the Makefile's
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", ldflags, "-o", output, pkg)
	// The default features and levels, whatever the environment prefers.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+goos, "GOARCH="+goarch, "GOAMD64=v1", "GOARM64=v8.0",
		"GOEXPERIMENT=", "GOFIPS140=off", "GOFLAGS=")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build %s for %s: %w", pkg, platform, err)
	}
	return nil
}
