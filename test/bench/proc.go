package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ended is what is known of a process that has ended well.
type ended struct {
	stdout []byte
	peak   int64 // the largest resident set, in bytes
	read   int64 // bytes that read calls gave it, from wherever
}

// orphan has the shell tell the command's process ID, and starts the command when the shell has gone (which would
// otherwise, should that be quick, bury it).
const orphan = `{ read _ <&5; exec "$@" <&4 4<&- 5<&-; } 3>&- & echo $! >&3`

// runOrphan runs a command to its end. A process is charged the memory of the one that made it (exec_mmap in Linux's
// fs/exec.c), and this one is larger than some commands. So a shell makes it, which is small, and ends; this process
// inherits the orphan. stdin may be nil.
func runOrphan(command []string, stdin io.ReadCloser) (e ended, err error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return e, fmt.Errorf("become a subreaper: %w", err)
	}
	in, fed, err := pipeFrom(stdin)
	if err != nil {
		return e, err
	}
	defer func() {
		// Whoever has seen the end of a tar need not read what follows it.
		if fedErr := fed(); !errors.Is(fedErr, unix.EPIPE) {
			err = errors.Join(err, fedErr)
		}
	}()
	var stdout, stderr bytes.Buffer
	shell := exec.Command("/bin/sh", append([]string{"-c", orphan, "sh"}, command...)...)
	shell.Stdout, shell.Stderr = &stdout, &stderr
	pid, err := startOrphan(shell, in)
	if err != nil {
		return e, err
	}
	// Until the last process that writes to the buffers has ended: the command.
	if err := shell.Wait(); err != nil {
		return e, err
	}
	e, err = reap(pid)
	e.stdout = stdout.Bytes()
	if err != nil {
		err = fmt.Errorf("%w: %s%s", err, stdout.Bytes(), stderr.Bytes())
	}
	return e, err
}

// startOrphan closes in: then the command alone holds it, and should that end early, then so does who feeds it.
func startOrphan(shell *exec.Cmd, in *os.File) (pid int, err error) {
	defer in.Close()
	told, tell, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer told.Close()
	wait, start, err := os.Pipe()
	if err != nil {
		return 0, errors.Join(err, tell.Close())
	}
	defer start.Close()
	shell.ExtraFiles = []*os.File{tell, in, wait}
	err = shell.Start()
	if err := errors.Join(err, tell.Close(), wait.Close()); err != nil {
		return 0, err
	}
	text, err := io.ReadAll(told)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// reap waits for a process. Between its end and its burial the kernel still tells what it has read.
func reap(pid int) (e ended, err error) {
	if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		return e, fmt.Errorf("wait for the command: %w", err)
	}
	e.read, err = procNumber(pid, "io", "rchar")
	var status unix.WaitStatus
	var usage unix.Rusage
	if _, waited := unix.Wait4(pid, &status, 0, &usage); waited != nil {
		return e, errors.Join(err, fmt.Errorf("wait for the command: %w", waited))
	}
	if status != 0 {
		err = errors.Join(err, fmt.Errorf("exit code %d, signal %d", status.ExitStatus(), status.Signal()))
	}
	e.peak = usage.Maxrss << 10
	return e, err
}

// pipeFrom gives a pipe with what in has, and how that went, once the pipe is closed. Without in it is /dev/null.
func pipeFrom(in io.ReadCloser) (*os.File, func() error, error) {
	if in == nil {
		null, err := os.Open(os.DevNull)
		return null, func() error { return nil }, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, errors.Join(err, in.Close())
	}
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(w, in)
		done <- errors.Join(err, w.Close(), in.Close())
	}()
	return r, func() error { return <-done }, nil
}

// daemon is the process ID of a containerd.
type daemon int

// written are the bytes that it has handed to write calls: content and unpacked files, its database, answers to
// clients. Unlike write_bytes, this counts each byte as often as it is written, at once and on any file system.
func (d daemon) written() (int64, error) { return procNumber(int(d), "io", "wchar") }

// peak is its largest resident set since resetPeak, in bytes.
func (d daemon) peak() (int64, error) {
	kib, err := procNumber(int(d), "status", "VmHWM")
	return kib << 10, err
}

// resetPeak makes the present size the largest one.
func (d daemon) resetPeak() error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", d), []byte("5"), 0)
}

// procNumber gives the number in a line such as "rchar: 17" or "VmHWM: 17 kB".
func procNumber(pid int, file, key string) (int64, error) {
	path := fmt.Sprintf("/proc/%d/%s", pid, file)
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		if fields := strings.Fields(value); name == key && len(fields) > 0 {
			return strconv.ParseInt(fields[0], 10, 64)
		}
	}
	return 0, fmt.Errorf("no %s in %s", key, path)
}
