package cluster

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// scratch directories are seen as the host has them; what is written to them
// goes to the work directory instead.
var scratch = []string{"/run", "/var/lib", "/var/log"}

// initNamespace is the first process of the namespace: when it ends, all end.
func initNamespace(dir string) int {
	catchSignals()
	if err := furnish(dir); err != nil {
		fmt.Fprintln(os.Stderr, "cluster: set up a namespace:", err)
		return 1
	}
	cmd := self(stageInside, dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		return 1
	}
	// Not cmd.Wait: every orphan of the namespace becomes a child of this process.
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			fmt.Fprintln(os.Stderr, "cluster: wait:", err)
			return 1
		case pid == cmd.Process.Pid:
			return exitCode(status)
		}
	}
}

// catchSignals keeps a process alive that the terminal's signals reach. Ignoring
// them would be inherited by every child.
func catchSignals() {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
}

// furnish gives the new namespace its mounts and its loopback interface.
func furnish(dir string) error {
	if err := detachMounts(); err != nil {
		return err
	}
	if err := mountProc(); err != nil {
		return err
	}
	// Open across the mounts below, which may cover it.
	work, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	defer unix.Close(work)
	for _, target := range scratch {
		if err := coverWithScratch(target, filepath.Join(dir, "scratch", target)); err != nil {
			return err
		}
		if strings.HasPrefix(dir, target+"/") {
			if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", work), dir, "", unix.MS_BIND, ""); err != nil {
				return fmt.Errorf("bind %s: %w", dir, err)
			}
		}
	}
	return loopbackUp()
}

// detachMounts lets this mount namespace follow what is mounted and unmounted in
// the one it was copied from, but never the other way round. It is a source in
// turn, for nodes and for pods that ask for propagation.
func detachMounts() error {
	for _, propagation := range []uintptr{unix.MS_SLAVE, unix.MS_SHARED} {
		if err := unix.Mount("", "/", "", unix.MS_REC|propagation, ""); err != nil {
			return fmt.Errorf("change mount propagation: %w", err)
		}
	}
	return nil
}

// coverWithScratch mounts an overlay on target whose changes go to dir.
func coverWithScratch(target, dir string) error {
	upper, work := filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	for _, d := range []string{upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", target, upper, work)
	if err := unix.Mount("overlay", target, "overlay", 0, options); err != nil {
		return fmt.Errorf("mount an overlay on %s: %w (TMPDIR must be on a file system that overlayfs can write to)", target, err)
	}
	return nil
}

func mountProc() error {
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}

func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	defer unix.Close(s)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

// kubeletSysctls are what the kubelet sets on its machine
// (k8s.io/component-helpers/node/util/sysctl): these belong to no namespace.
var kubeletSysctls = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

// shieldSysctls covers these with files that already say what the kubelet wants,
// so that nothing has to be restored.
func shieldSysctls(dir string) error {
	for name, value := range kubeletSysctls {
		file := filepath.Join(dir, strings.ReplaceAll(name, "/", "."))
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(file, filepath.Join("/proc/sys", name), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("cover sysctl %s: %w", name, err)
		}
	}
	return nil
}

// initNode is the first process of a node. It reports on descriptor 3 what went
// wrong, closes it when the node is furnished, and reaps orphans until it is killed.
func initNode() int {
	catchSignals()
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	report := os.NewFile(3, "report")
	if err := furnishNode(os.Getenv(dirEnv)); err != nil {
		_, _ = io.WriteString(report, err.Error())
		return 1
	}
	report.Close()
	for range children {
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 && err != syscall.EINTR {
				break
			}
		}
	}
	return 0
}

// furnishNode does what only a process inside the node can: /proc shows the
// processes of whoever mounts it.
func furnishNode(dir string) error {
	if err := mountProc(); err != nil {
		return err
	}
	if err := shieldSysctls(dir); err != nil {
		return err
	}
	return loopbackUp()
}
