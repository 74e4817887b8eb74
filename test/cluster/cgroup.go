package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const cgroupFS = "/sys/fs/cgroup"

// hierarchies lists the roots of all cgroup hierarchies: the one of version 2,
// or one a controller and possibly "unified" of version 1.
func hierarchies() (roots []string, v2 bool, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(cgroupFS, &st); err != nil {
		return nil, false, fmt.Errorf("statfs %s: %w", cgroupFS, err)
	}
	if st.Type == unix.CGROUP2_SUPER_MAGIC {
		return []string{cgroupFS}, true, nil
	}
	entries, err := os.ReadDir(cgroupFS)
	if err != nil {
		return nil, false, err
	}
	for _, e := range entries {
		if e.IsDir() { // links are second names, such as cpu of cpu,cpuacct
			roots = append(roots, filepath.Join(cgroupFS, e.Name()))
		}
	}
	return roots, false, nil
}

// makeCgroup makes a cgroup in every hierarchy; the kubelet does not make its
// own root. name is a relative path.
func makeCgroup(name string) error {
	roots, v2, err := hierarchies()
	if err != nil {
		return err
	}
	for _, root := range roots {
		dir := root
		for _, part := range strings.Split(name, "/") {
			if v2 {
				enableControllers(dir)
			}
			parent := dir
			dir = filepath.Join(dir, part)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("make cgroup: %w", err)
			}
			if filepath.Base(root) == "cpuset" {
				if err := inheritCpuset(parent, dir); err != nil {
					return fmt.Errorf("make cgroup: %w", err)
				}
			}
		}
	}
	return nil
}

// enableControllers gives children of a version 2 cgroup all its controllers.
// One that cannot be given is missed by the kubelet, which says so.
func enableControllers(dir string) {
	names, _ := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	for _, name := range strings.Fields(string(names)) {
		_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+name), 0o644)
	}
}

// inheritCpuset fills in what a new cpuset of version 1 lacks: no process may enter an empty one.
func inheritCpuset(parent, dir string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(parent, file))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, file), bytes.TrimSpace(value), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// removeCgroup removes a cgroup and all below it from every hierarchy.
func removeCgroup(name string) error {
	roots, _, err := hierarchies()
	if err != nil {
		return err
	}
	for _, root := range roots {
		err := eventually(func() error { return removeCgroupDir(filepath.Join(root, name)) })
		if err != nil {
			return fmt.Errorf("remove cgroup: %w", err)
		}
	}
	return nil
}

func removeCgroupDir(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	for _, d := range slices.Backward(dirs) {
		if e := os.Remove(d); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = e
		}
	}
	return err
}
