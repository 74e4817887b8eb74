package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

const toolsEnv = "TARLIFT_TOOLS"

// ToolsDir is the directory of the programs that `make tools` builds:
// TARLIFT_TOOLS, else bin/tools at the root of the module that the working
// directory is in.
func ToolsDir() (string, error) {
	if dir := os.Getenv(toolsEnv); dir != "" {
		return filepath.Abs(dir)
	}
	root, err := ModuleRoot()
	if err != nil {
		return "", fmt.Errorf("find bin/tools, or set %s: %w", toolsEnv, err)
	}
	return filepath.Join(root, "bin", "tools"), nil
}

// ModuleRoot is the directory of go.mod, at or above the working directory.
func ModuleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("no go.mod in the working directory or above it")
		}
		dir = filepath.Dir(dir)
	}
}

// toolsDir is [ToolsDir] when all of these programs are in it.
func toolsDir(names ...string) (string, error) {
	dir, err := ToolsDir()
	if err != nil {
		return "", err
	}
	var missing []error
	for _, name := range names {
		if _, err := exec.LookPath(filepath.Join(dir, name)); err != nil {
			missing = append(missing, fmt.Errorf("%w: run `make tools`", err))
		}
	}
	return dir, errors.Join(missing...)
}

// systemTool finds a program of the system, also where PATH lacks sbin.
func systemTool(name string) (string, error) {
	for _, candidate := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if path, err := exec.LookPath(candidate); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s: %w", name, exec.ErrNotFound)
}
