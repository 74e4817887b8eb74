package cluster

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// machine is a set of namespaces (mounts, network, host name, processes) that a
// node's programs run in. A thread of this process is in it, and starts them:
// what a thread forks is where the thread is.
type machine struct {
	name  string
	link  string // the network interface of this side
	calls chan func()
	ended chan struct{}
	first *exec.Cmd // PID 1 in there; when it ends, so does everything
	once  sync.Once
}

// bind makes a directory of the host another one in a machine.
type bind struct{ from, to string }

// bootMachine makes the namespaces. dir takes a few files; number gives the address.
func bootMachine(name, dir string, number int, binds []bind) (*machine, error) {
	m := &machine{name: name, link: fmt.Sprintf("node%d", number), calls: make(chan func()), ended: make(chan struct{})}
	booted := make(chan error)
	go func() {
		defer close(m.ended)
		// Never unlocked: thus the thread ends with this goroutine, and its namespaces with the thread.
		runtime.LockOSThread()
		err := m.enter(dir, binds)
		booted <- err
		if err != nil {
			return
		}
		for call := range m.calls {
			call()
		}
	}()
	if err := <-booted; err != nil {
		m.powerOff()
		return nil, fmt.Errorf("boot %s: %w", name, err)
	}
	if err := m.connect(number); err != nil {
		m.powerOff()
		return nil, fmt.Errorf("boot %s: network: %w", name, err)
	}
	return m, nil
}

// enter moves the calling thread to new namespaces and starts their first process.
func (m *machine) enter(dir string, binds []bind) error {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWPID); err != nil {
		return fmt.Errorf("make namespaces: %w", err)
	}
	if err := detachMounts(); err != nil {
		return err
	}
	for _, b := range binds {
		if err := os.MkdirAll(b.to, 0o755); err != nil { // below a scratch directory
			return err
		}
		if err := unix.Mount(b.from, b.to, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", b.to, err)
		}
	}
	if err := unix.Sethostname([]byte(m.name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	return m.startFirst(dir)
}

func (m *machine) startFirst(dir string) error {
	shields := filepath.Join(dir, "sysctl")
	if err := os.MkdirAll(shields, 0o755); err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	first := self(stageNode, shields)
	first.ExtraFiles = []*os.File{w}
	first.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = first.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("start the first process: %w", err)
	}
	m.first = first
	if report, err := io.ReadAll(r); err != nil || len(report) > 0 {
		return errors.Join(err, errors.New(string(report)))
	}
	return nil
}

// connect joins the machine's network and this one by a pair of interfaces.
func (m *machine) connect(number int) error {
	ip := nodeIP(number)
	here := fmt.Sprintf(`link add %[1]s type veth peer name eth0 netns %[2]d
address add %[3]s peer %[4]s dev %[1]s
link set %[1]s up
`, m.link, m.first.Process.Pid, ControlPlaneIP, ip)
	there := fmt.Sprintf(`address add %[2]s peer %[1]s dev eth0
link set eth0 up
route add default via %[1]s
`, ControlPlaneIP, ip)
	if err := ipBatch(startHere, here); err != nil {
		return err
	}
	return ipBatch(m.start, there)
}

func nodeIP(number int) string { return fmt.Sprintf("10.77.1.%d", 10+number) }

// startHere starts a command in this process' own namespaces.
func startHere(cmd *exec.Cmd) error { return cmd.Start() }

// start starts a command in the machine.
func (m *machine) start(cmd *exec.Cmd) error {
	result := make(chan error, 1)
	select {
	case m.calls <- func() { result <- cmd.Start() }:
		return <-result
	case <-m.ended:
		return fmt.Errorf("%s is powered off", m.name)
	}
}

// powerOff kills everything in the machine and returns when all of it has ended.
func (m *machine) powerOff() {
	m.once.Do(func() {
		if m.first != nil {
			_ = m.first.Process.Kill()
			_ = m.first.Wait()
		}
		close(m.calls)
		<-m.ended
		// It would go by itself, but later, and a new one may want the name.
		_ = ipBatch(startHere, "link delete "+m.link+"\n")
	})
}

// ipBatch runs commands of ip(8), one a line.
func ipBatch(start func(*exec.Cmd) error, commands string) error {
	ip, err := systemTool("ip")
	if err != nil {
		return err
	}
	var output strings.Builder
	cmd := exec.Command(ip, "-batch", "-")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(commands), &output, &output
	if err := start(cmd); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("ip: %w: %s", err, strings.TrimSpace(output.String()))
	}
	return nil
}
