package faults

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/internal/source"
	"github.com/tarlift/tarlift/test/cluster"
	"github.com/tarlift/tarlift/test/node"
)

// program is a command line for the containerd at an address.
type program func(address string) *exec.Cmd

func agentImport(t *testing.T, archive string) program {
	t.Helper()
	agent, err := node.Agent()
	if err != nil {
		t.Fatal(err)
	}
	return func(address string) *exec.Cmd {
		return exec.Command(agent, "import", "-o", "json", "--progress", "none", "--disk-reserve", "1%", "--address", address, archive)
	}
}

func ctrImport(t *testing.T, archive string) program {
	t.Helper()
	tools, err := cluster.ToolsDir()
	if err != nil {
		t.Fatal(err)
	}
	return func(address string) *exec.Cmd {
		return exec.Command(filepath.Join(tools, "ctr"), "--address", address, "--namespace", "k8s.io", "images", "import", "--local", archive)
	}
}

// helperEnv makes this program do what the node's agent does, as a process that can be killed.
const helperEnv = "TARLIFT_FAULTS_HELPER"

// helpSpec says what. Without an archive it is what a node's agent does when it has lists of all that is wanted.
type helpSpec struct {
	Archive  string
	Owner    importer.Owner
	Wanted   []importer.Owner
	Address  string
	HandOver time.Duration // of leases, 0 for the usual one
}

func (s helpSpec) program(t *testing.T) program {
	t.Helper()
	return func(address string) *exec.Cmd {
		s.Address = address
		spec, err := json.Marshal(s)
		if err != nil {
			panic(err) // it has strings only
		}
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), helperEnv+"="+string(spec))
		return cmd
	}
}

// help prints what `agent import -o json` prints.
func help(spec string) (code int) {
	var s helpSpec
	if err := json.Unmarshal([]byte(spec), &s); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	result, err := s.run(context.Background())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := json.NewEncoder(os.Stdout).Encode(map[string]any{"images": result.Images, "bytes": result.Bytes}); err != nil {
		return 1
	}
	return 0
}

func (s helpSpec) run(ctx context.Context) (importer.Result, error) {
	i, err := importer.New(importer.Options{Address: s.Address, LeaseHandOver: s.HandOver})
	if err != nil {
		return importer.Result{}, err
	}
	defer i.Close()
	if s.Archive == "" {
		_, err := i.Sweep(ctx, s.Wanted, nil)
		return importer.Result{}, err
	}
	open := source.OpenFile
	if strings.HasPrefix(s.Archive, "http://") {
		open = func(ctx context.Context, url string) (source.Blob, error) {
			return source.OpenHTTP(ctx, source.HTTPOptions{URL: url, Anywhere: true})
		}
	}
	blob, err := open(ctx, s.Archive)
	if err != nil {
		return importer.Result{}, err
	}
	defer blob.Close()
	return i.Import(ctx, blob, importer.Request{
		Owner: s.Owner, Selection: archive.Selection{DigestReferences: true}, Unpack: true, Pin: true, Keep: true,
	})
}

// process is a program that runs or has ended.
type process struct {
	cmd      *exec.Cmd
	out, err bytes.Buffer
	began    time.Time
	ended    chan struct{}
	took     time.Duration // to be read, as all else, after ended is closed
}

func start(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{cmd: cmd, ended: make(chan struct{}), began: time.Now()}
	cmd.Stdout, cmd.Stderr = &p.out, &p.err
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		_ = cmd.Wait() // the exit code tells
		p.took = time.Since(p.began)
	}()
	return p
}

// patience bounds how long anything here may take that is not slow on purpose.
const patience = 60 * time.Second

// wait waits for the end.
func (p *process) wait(t *testing.T) {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		p.kill()
		t.Errorf("%s did not end: %s", p.cmd, p.err.String())
	}
}

// kill ends it at once. It may have ended.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// killed says that it did not end by itself.
func (p *process) killed() bool {
	return p.cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
}

func (p *process) code() int { return p.cmd.ProcessState.ExitCode() }

// reason is why it failed, as it says.
func (p *process) reason() (string, error) {
	var o node.Output
	if err := json.Unmarshal(p.out.Bytes(), &o); err != nil {
		return "", fmt.Errorf("%w: %s", err, p.err.String())
	}
	if o.Error == nil {
		return "", errors.New("no error")
	}
	return o.Error.Reason, nil
}

// read are the bytes that an import that succeeded took from its archive.
func (p *process) read() (int64, error) {
	var o node.Output
	err := json.Unmarshal(p.out.Bytes(), &o)
	return o.Bytes.Read, err
}
