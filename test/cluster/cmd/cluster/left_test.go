package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// nothingLeft fails the test unless everything is as it was before the command.
func nothingLeft(t *testing.T, c *command, before map[string]string) {
	t.Helper()
	deadline := time.Now().Add(time.Minute) // when the command was killed, others may still be at it
	left := residue(t, c)
	for len(left) > 0 && time.Now().Before(deadline) {
		time.Sleep(50 * time.Millisecond)
		left = residue(t, c)
	}
	for _, l := range left {
		t.Error("left:", l)
	}
	if diff := cmp.Diff(before, machineState(t)); diff != "" {
		t.Errorf("the machine has changed (-before +after):\n%s", diff)
	}
}

// residue lists what there is of the command: processes that mention its
// directory or are in its cgroups or mounts, mounts, cgroups, files.
func residue(t *testing.T, c *command) []string {
	t.Helper()
	var left []string
	name := []byte(c.base + "/")
	if c.dir != "" {
		name = []byte(filepath.Base(c.dir))
	}
	for _, pid := range processes(t) {
		if pid == os.Getpid() {
			continue
		}
		for _, file := range []string{"cmdline", "cgroup", "mountinfo"} {
			text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file)) // it may end meanwhile
			if bytes.Contains(text, name) {
				cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
				left = append(left, fmt.Sprintf("process %d (%s): %q", pid, file, cmdline))
				break
			}
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(mounts, name) {
		left = append(left, "mount")
	}
	cgroups, _ := filepath.Glob("/sys/fs/cgroup/*/tarlift-ns-*")
	unified, _ := filepath.Glob("/sys/fs/cgroup/tarlift-ns-*")
	for _, cgroup := range append(cgroups, unified...) {
		if filepath.Base(cgroup) == string(name) {
			left = append(left, "cgroup "+cgroup)
		}
	}
	files, err := os.ReadDir(c.base)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		left = append(left, "file "+f.Name())
	}
	return left
}

func parent(pid int) int {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 2 {
		return 0
	}
	ppid, _ := strconv.Atoi(fields[1])
	return ppid
}

func processes(t *testing.T) []int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// machineState is what a cluster must not change: addresses, the settings that
// the kubelet makes, and the directories that its parts make.
func machineState(t *testing.T) map[string]string {
	t.Helper()
	state := map[string]string{}
	addresses, err := exec.Command("ip", "-oneline", "address").CombinedOutput()
	if err != nil {
		t.Fatalf("ip address: %v: %s", err, addresses)
	}
	state["addresses"] = string(addresses)
	for _, name := range []string{
		"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
		"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes", "net/ipv4/ip_forward",
	} {
		value, err := os.ReadFile("/proc/sys/" + name)
		if err != nil {
			t.Fatal(err)
		}
		state[name] = string(value)
	}
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{
		"/run/containerd", "/run/nri", "/var/lib/containerd", "/var/lib/kubelet", "/var/lib/cni", "/var/lib/tarlift", "/var/log/pods", "/var/log/containers",
		"/etc/cni", "/etc/containerd", "/etc/kubernetes", "/opt/cni", "/opt/containerd", "/usr/libexec/kubernetes", home + "/.kube",
	} {
		_, err := os.Stat(dir)
		state[dir] = strconv.FormatBool(!errors.Is(err, fs.ErrNotExist))
	}
	return state
}
