package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// The program runs several times, one in the other. Which of them a process is,
// and where the work directory is, is handed down in the environment.
const (
	stageEnv = "TARLIFT_CLUSTER_STAGE"
	dirEnv   = "TARLIFT_CLUSTER_DIR"

	stageKeeper = "keeper" // outside: cleans up after an outermost process that was killed
	stageInit   = "init"   // PID 1 of the namespace: furnishes it, reaps orphans
	stageInside = "inside" // what Isolate's caller wants to run
	stageNode   = "node"   // PID 1 of a node
)

// The main goroutine stays on the main thread. Parent death signals come when
// the *thread* that started the child ends, and the main thread ends last; and a
// node's thread, which gives itself other namespaces, must be another one:
// /proc/PID shows the main thread's.
func init() { runtime.LockOSThread() }

// Main is for TestMain: it runs the tests isolated, see [Isolate]. It does not
// return. m is a *testing.M.
func Main(m interface{ Run() int }) { Isolate(m.Run) }

// Isolate runs the program again in namespaces of its own (processes, mounts,
// network), calls run there, and ends the program with what run returned. It
// does not return.
//
// When the process inside ends, the kernel ends every other process in the
// namespace and takes away mounts and addresses. The outermost process then
// removes what is left: the work directory and cgroups. Interrupted by a signal,
// or when its own parent ends, it ends the namespace at once. When it is killed
// itself, a second process (the keeper) does the rest; and should both be
// killed, the next Isolate on this machine does.
func Isolate(run func() int) {
	switch os.Getenv(stageEnv) {
	case "":
		os.Exit(outermost())
	case stageKeeper:
		os.Exit(keep(os.Getenv(dirEnv)))
	case stageInit:
		os.Exit(initNamespace(os.Getenv(dirEnv)))
	case stageNode:
		os.Exit(initNode())
	case stageInside:
		os.Exit(inside(run))
	default:
		fmt.Fprintf(os.Stderr, "cluster: %s is not for use by people\n", stageEnv)
		os.Exit(2)
	}
}

func inside(run func() int) int {
	workDir = os.Getenv(dirEnv)
	// No proxy can be reached from here, and addresses in here need none.
	for _, name := range []string{stageEnv, "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"} {
		os.Unsetenv(name)
	}
	// What somebody killed leaves in here goes, too.
	temp := filepath.Join(workDir, "tmp")
	if err := os.Mkdir(temp, 0o777); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		return 1
	}
	os.Setenv("TMPDIR", temp)
	return run()
}

// self is this program as another stage.
func self(stage, dir string) *exec.Cmd {
	return &exec.Cmd{
		Path: "/proc/self/exe",
		Args: os.Args,
		Env:  append(os.Environ(), stageEnv+"="+stage, dirEnv+"="+dir),
	}
}

// outermost starts the namespace, waits for its end, and removes what outlives
// it. It returns the exit code.
func outermost() int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "cluster: needs root, to make namespaces, mounts and cgroups")
		return 1
	}
	stopped := watchForEnd()
	sweep()
	dir, lock, err := makeWorkDir()
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		return 1
	}
	defer lock.Close()

	foreground, _ := unix.IoctlGetInt(0, unix.TIOCGPGRP)
	code, err := runNamespace(dir, lock, stopped)
	if foreground == unix.Getpgrp() {
		// A shell inside made itself the terminal's foreground and cannot name us to give it back.
		signal.Ignore(syscall.SIGTTOU)
		_ = unix.IoctlSetPointerInt(0, unix.TIOCSPGRP, foreground)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		return max(code, 1)
	}
	return code
}

// watchForEnd tells of signals and of the end of the parent process: the channel
// gets the exit code that this gives.
func watchForEnd() <-chan int {
	codes := make(chan int, 1)
	signals := make(chan os.Signal, 1)
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT} {
		if !signal.Ignored(s) { // as nohup and & in scripts want it
			signal.Notify(signals, s)
		}
	}
	go func() {
		s, _ := (<-signals).(syscall.Signal)
		select {
		case codes <- 128 + int(s):
		default:
		}
	}()
	// A pidfd instead of a parent death signal: that comes also when only a thread of the parent ends.
	parent, err := unix.PidfdOpen(os.Getppid(), 0)
	if err == nil {
		go func() {
			awaitExit(parent)
			select {
			case codes <- 128 + int(syscall.SIGHUP):
			default:
			}
		}()
	}
	return codes
}

// runNamespace runs the namespace's first process to its end. stopped ends it before.
func runNamespace(dir string, lock *os.File, stopped <-chan int) (code int, err error) {
	defer func() { err = errors.Join(err, removeLeftovers(dir)) }()
	var pidfd int
	first := self(stageInit, dir)
	first.Stdin, first.Stdout, first.Stderr = os.Stdin, os.Stdout, os.Stderr
	first.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
		PidFD:      &pidfd,
	}
	if err := first.Start(); err != nil {
		return 1, fmt.Errorf("start a namespace: %w", err)
	}
	release, err := startKeeper(dir, pidfd, lock)
	if err != nil {
		_ = first.Process.Kill()
		_ = first.Wait()
		return 1, err
	}
	defer release() // the keeper's turn comes after removeLeftovers only if this process is killed before

	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = first.Wait()
	}()
	select {
	case <-ended:
		code = exitCode(first.ProcessState.Sys().(syscall.WaitStatus))
		select {
		case code = <-stopped: // a signal for the whole process group also ended what ran inside
		default:
		}
		return code, nil
	case code = <-stopped:
		_ = first.Process.Kill()
		<-ended
		return code, nil
	}
}

func exitCode(s syscall.WaitStatus) int {
	if s.Signaled() {
		return 128 + int(s.Signal())
	}
	return s.ExitStatus()
}

// startKeeper starts the process that cleans up when this one is killed. It sees
// that by a pipe of which this process has the only other end; release closes it.
func startKeeper(dir string, pidfd int, lock *os.File) (release func(), err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start keeper: %w", err)
	}
	namespace := os.NewFile(uintptr(pidfd), "pidfd")
	keeper := self(stageKeeper, dir)
	keeper.Dir = "/"
	keeper.ExtraFiles = []*os.File{r, namespace, lock}
	// A session of its own: what is sent to the whole session or group must not reach it.
	keeper.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = keeper.Start()
	r.Close()
	namespace.Close()
	if err != nil {
		w.Close()
		return nil, fmt.Errorf("start keeper: %w", err)
	}
	return func() {
		w.Close()
		_ = keeper.Wait()
	}, nil
}

// keep waits for the end of the outermost process, and ends and removes what that left.
func keep(dir string) int {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	const pipe, namespace = 3, 4 // the order of ExtraFiles in startKeeper
	_, _ = os.NewFile(pipe, "pipe").Read(make([]byte, 1))
	_ = unix.PidfdSendSignal(namespace, unix.SIGKILL, nil, 0)
	awaitExit(namespace)
	if removeLeftovers(dir) != nil {
		return 1
	}
	return 0
}

// awaitExit returns when the process that pidfd refers to has ended. The first
// process of a namespace ends after all others in it.
func awaitExit(pidfd int) {
	for {
		fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); !errors.Is(err, unix.EINTR) {
			return
		}
	}
}
