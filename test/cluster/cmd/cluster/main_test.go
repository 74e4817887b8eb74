package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/tarlift/tarlift/test/cluster"
)

// asCommand in the environment makes this program the command under test
// ("whole"), or one that isolates itself as the command does, but starts nothing
// more than a containerd ("light").
const asCommand = "TARLIFT_TEST_AS_COMMAND"

// These tests are outside of any namespace, where things would be left.
func TestMain(m *testing.M) {
	switch os.Getenv(asCommand) {
	case "":
		os.Exit(m.Run())
	case "light":
		cluster.Isolate(light)
	default:
		main()
	}
}

func light() int {
	if _, err := cluster.StartContainerd(context.Background(), cluster.ContainerdOptions{}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("in", os.Getenv("TARLIFT_CLUSTER_DIR"))
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

// command is a run of the command that has got as far as running its own command.
type command struct {
	*exec.Cmd
	dir    string // its work directory
	base   string // TMPDIR
	stdin  io.Closer
	stdout *bufio.Reader
	stderr *bytes.Buffer
}

// newCommand prepares a run with its own TMPDIR.
func newCommand(t *testing.T, args ...string) *command {
	t.Helper()
	base, err := os.MkdirTemp("", "c") // t.TempDir's are too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := &command{Cmd: exec.Command(self, args...), base: base, stderr: new(bytes.Buffer)}
	c.Env = append(os.Environ(), asCommand+"=whole", "TMPDIR="+base)
	c.Stderr = c.stderr
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("stderr of %q:\n%s", args, c.stderr)
		}
	})
	return c
}

// startCommand starts a cluster of one node with a pod in it, and a command that
// waits until its stdin is closed.
func startCommand(t *testing.T) *command {
	t.Helper()
	c := newCommand(t, "-nodes", "1", "sh", "-ec", `
		kubectl apply -f - <<-MANIFEST
		`+podManifest+`
		MANIFEST
		kubectl -n kube-system wait --for=condition=Ready pod/it --timeout=3m
		echo "in $TARLIFT_CLUSTER_DIR"
		cat
		exit 7`)
	c.startUntilInside(t, "process", "cgroup", "file")
	return c
}

// startUntilInside returns when the namespace's directory is known, and what is
// to be looked for afterwards has been seen.
func (c *command) startUntilInside(t *testing.T, kinds ...string) {
	t.Helper()
	c.pipes(t)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	for c.dir == "" {
		line, err := c.stdout.ReadString('\n')
		if err != nil {
			t.Fatalf("the command ended early: %v, %v; stderr:\n%s", err, c.Wait(), c.stderr)
		}
		if dir, ok := strings.CutPrefix(line, "in "); ok {
			c.dir = strings.TrimSpace(dir)
		}
	}
	for _, kind := range kinds {
		if !slices.ContainsFunc(residue(t, c), func(s string) bool { return strings.HasPrefix(s, kind) }) {
			t.Errorf("no %s of what is running is seen", kind)
		}
	}
}

// podManifest is JSON: one line, no indentation to care for.
const podManifest = `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "it", "namespace": "kube-system"}, "spec": ` +
	`{"hostNetwork": true, "automountServiceAccountToken": false, "tolerations": [{"operator": "Exists"}], ` +
	`"containers": [{"name": "it", "image": "tarlift.test/pause:1", "imagePullPolicy": "Never"}]}}`

func (c *command) pipes(t *testing.T) {
	t.Helper()
	stdin, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.stdin, c.stdout = stdin, bufio.NewReader(stdout)
}

// end waits for the end and gives the exit code as a shell does.
func (c *command) end() int {
	_ = c.Wait()
	status := c.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

func TestEndsWithItsCommand(t *testing.T) {
	before := machineState(t)
	c := startCommand(t)
	c.stdin.Close()
	if code := c.end(); code != 7 {
		t.Errorf("exit code %d, want the command's, 7", code)
	}
	nothingLeft(t, c, before)
}

// A whole cluster has no chance to end anything by itself.
func TestKilledLeavesNothing(t *testing.T) {
	before := machineState(t)
	c := startCommand(t)
	signalTo(syscall.SIGKILL, itself)(t, c)
	c.end()
	nothingLeft(t, c, before)
}

func TestEndsWithoutWarning(t *testing.T) {
	tests := map[string]struct {
		wrap func(*exec.Cmd)
		end  func(*testing.T, *command)
		code int
	}{
		"Ctrl-C":                   {end: signalTo(syscall.SIGINT, itself), code: 130},
		"asked to end":             {end: signalTo(syscall.SIGTERM, itself), code: 143},
		"terminal closed":          {end: signalTo(syscall.SIGHUP, itself), code: 129},
		"killed":                   {end: signalTo(syscall.SIGKILL, itself), code: 137},
		"its keeper killed, too":   {end: killKeeperThenInterrupt, code: 130},
		"its parent killed":        {wrap: inShell, end: signalTo(syscall.SIGKILL, itself), code: 137},
		"its first process killed": {end: signalTo(syscall.SIGKILL, child("init")), code: 137},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			before := machineState(t)
			c := newCommand(t)
			c.Env = append(c.Env, asCommand+"=light")
			if test.wrap != nil {
				test.wrap(c.Cmd)
			}
			c.startUntilInside(t, "process", "file")
			test.end(t, c)
			if code := c.end(); code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			nothingLeft(t, c, before)
		})
	}
}

// inShell puts a shell between the test and the command, which gets the shell's
// stdin: a shell gives none to what runs in the background.
func inShell(cmd *exec.Cmd) {
	cmd.Args = append([]string{"sh", "-c", `exec 3<&0; "$@" <&3 & wait`, "sh", cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/bin/sh"
}

func itself(*testing.T, *command) int { return 0 }

// child is the command's process of that stage.
func child(stage string) func(*testing.T, *command) int {
	return func(t *testing.T, c *command) int {
		t.Helper()
		for _, pid := range processes(t) {
			environ, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
			if parent(pid) == c.Process.Pid && bytes.Contains(environ, []byte("TARLIFT_CLUSTER_STAGE="+stage)) {
				return pid
			}
		}
		t.Fatalf("there is no %s process", stage)
		return 0
	}
}

func signalTo(s syscall.Signal, whom func(*testing.T, *command) int) func(*testing.T, *command) {
	return func(t *testing.T, c *command) {
		t.Helper()
		pid := whom(t, c)
		if pid == 0 {
			pid = c.Process.Pid
		}
		if err := syscall.Kill(pid, s); err != nil {
			t.Fatal(err)
		}
	}
}

func killKeeperThenInterrupt(t *testing.T, c *command) {
	signalTo(syscall.SIGKILL, child("keeper"))(t, c)
	signalTo(syscall.SIGINT, itself)(t, c)
}

// When nobody is left to clean up, the next run does.
func TestSweepsWhatAKilledRunLeft(t *testing.T) {
	before := machineState(t)
	c := startCommand(t)
	signalTo(syscall.SIGKILL, child("keeper"))(t, c)
	signalTo(syscall.SIGKILL, itself)(t, c)
	c.end()
	if _, err := os.Stat(c.dir); err != nil {
		t.Fatalf("this test is about what is left, but: %v", err)
	}
	next := newCommand(t)
	next.Env = append(next.Env, asCommand+"=light", "TMPDIR="+c.base)
	if err := next.Run(); err != nil {
		t.Error(err)
	}
	nothingLeft(t, c, before)
}

func TestSaysWhatFailed(t *testing.T) {
	tests := map[string]struct {
		program string
		script  string // "" removes the program
		want    []string
	}{
		"missing":           {program: "kube-scheduler", want: []string{"kube-scheduler", "make tools"}},
		"ends at once":      {program: "kube-apiserver", script: "echo no such flux >&2; exit 3", want: []string{"start kube-apiserver", "exit status 3", "no such flux"}},
		"fails on a node":   {program: "kubelet", script: "echo no such capacitor; exit 4", want: []string{"start node-a kubelet", "exit status 4", "no such capacitor"}},
		"fails before that": {program: "containerd", script: "echo no such plasma; kill -9 $$", want: []string{"start node-a containerd", "killed", "no such plasma"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			before := machineState(t)
			c := newCommand(t, "-nodes", "1", "true")
			c.Env = append(c.Env, "TARLIFT_TOOLS="+brokenTools(t, test.program, test.script))
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			if code := c.end(); code != 1 {
				t.Errorf("exit code %d, want 1", code)
			}
			for _, want := range test.want {
				if !strings.Contains(c.stderr.String(), want) {
					t.Errorf("stderr lacks %q:\n%s", want, c.stderr)
				}
			}
			nothingLeft(t, c, before)
		})
	}
}

// brokenTools is a directory of the tools in which one is a script instead, or missing.
func brokenTools(t *testing.T, name, script string) string {
	t.Helper()
	tools, err := cluster.ToolsDir()
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(tools)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, e := range entries {
		if e.Name() == name {
			continue
		}
		if err := os.Symlink(filepath.Join(tools, e.Name()), filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	if script != "" {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
