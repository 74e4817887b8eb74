package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// client is a program that imports.
type client struct {
	name string
	path string
	args func(socket, archive string, unpack bool) []string
	// reports says that the output has the numbers of bytes, as `agent import -o json` prints them.
	reports bool
}

// sample is one run of a client.
type sample struct {
	seconds float64
	// peak is the largest resident set, in bytes.
	peak int64
	// read and written are bytes as the agent reports them: taken from the archive, committed to the content store.
	read, written int64
}

// run runs the program to its end, with this program's environment.
func (c client) run(args []string) (sample, error) {
	start := time.Now()
	out, usage, err := runOrphan(append([]string{c.path}, args...))
	s := sample{seconds: time.Since(start).Seconds(), peak: usage.Maxrss << 10}
	if err != nil {
		return s, fmt.Errorf("%s: %w", c.name, err)
	}
	if !c.reports {
		return s, nil
	}
	var reported struct {
		Bytes struct{ Read, Written int64 }
	}
	if err := json.Unmarshal(out, &reported); err != nil {
		return s, fmt.Errorf("read the output of %s: %w", c.name, err)
	}
	s.read, s.written = reported.Bytes.Read, reported.Bytes.Written
	return s, nil
}

// runOrphan runs a command to its end. A process is charged the memory of the one that made it (exec_mmap in Linux's
// fs/exec.c), and this one is larger than some commands. So a shell makes it, which is small, and ends; this process
// inherits the orphan.
func runOrphan(command []string) (out []byte, usage unix.Rusage, err error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, usage, fmt.Errorf("become a subreaper: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, usage, err
	}
	defer r.Close()
	shell := exec.Command("/bin/sh", append([]string{"-c", `"$@" 3>&- & echo $! >&3`, "sh"}, command...)...)
	var stdout, stderr bytes.Buffer
	shell.Stdout, shell.Stderr, shell.ExtraFiles = &stdout, &stderr, []*os.File{w}
	err = shell.Run() // until the last process that writes to the buffers has ended: the command
	w.Close()
	if err != nil {
		return nil, usage, err
	}
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, usage, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return nil, usage, err
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(pid, &status, 0, &usage); err != nil {
		return nil, usage, fmt.Errorf("wait for the command: %w", err)
	}
	if status != 0 {
		return nil, usage, fmt.Errorf("exit code %d: %s%s", status.ExitStatus(), stdout.Bytes(), stderr.Bytes())
	}
	return stdout.Bytes(), usage, nil
}
