package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/tarlift/tarlift/test/cluster"
)

// client is a program that imports.
type client struct {
	name string
	path string
	args func(socket string, noUnpack bool) []string
	// plain says that it takes plain files only, and anything else from a pipe.
	plain bool
	// reports says that the output has the numbers of bytes, as `agent import -o json` prints them.
	reports bool
}

func newClients() (agent, ctr client, err error) {
	root, err := cluster.ModuleRoot()
	if err != nil {
		return agent, ctr, err
	}
	tools, err := cluster.ToolsDir()
	if err != nil {
		return agent, ctr, err
	}
	agent = client{name: "agent", path: filepath.Join(root, "bin", "agent"), reports: true, args: func(socket string, noUnpack bool) []string {
		return append([]string{"import", "-o", "json", "--progress", "none", "--disk-reserve", "1%", "--address", socket}, unpacking(noUnpack)...)
	}}
	ctr = client{name: "ctr", path: filepath.Join(tools, "ctr"), plain: true, args: func(socket string, noUnpack bool) []string {
		return append([]string{"--address", socket, "--namespace", "k8s.io", "images", "import", "--local"}, unpacking(noUnpack)...)
	}}
	return agent, ctr, nil
}

// unpacking is the same flag of both.
func unpacking(no bool) []string {
	if no {
		return []string{"--no-unpack"}
	}
	return nil
}

// sample is one run of a client, of all archives of a case.
type sample struct {
	seconds float64
	// read is what the client took in: the bytes of its read calls, or those that the server sent.
	read int64
	// written is what containerd wrote meanwhile; see [daemon.written].
	written int64
	// peak and daemonPeak are the largest resident sets, in bytes.
	peak, daemonPeak int64
	// reported is what the client itself says, if it does.
	reported reported
}

// reported are bytes taken from the archive, and committed to the content store.
type reported struct{ Read, Written int64 }

// run has the client import one archive, from a server unless that is nil.
func (c client) run(socket string, noUnpack bool, f file, s *server) (sample, error) {
	if s != nil {
		s.sent.Store(0)
	}
	start := time.Now()
	arg, in, err := c.input(f, s)
	if err != nil {
		return sample{}, err
	}
	command := append([]string{c.path}, c.args(socket, noUnpack)...)
	e, err := runOrphan(append(command, arg), in)
	out := sample{seconds: time.Since(start).Seconds(), read: e.read, peak: e.peak}
	if err != nil {
		return out, fmt.Errorf("%s: %w", c.name, err)
	}
	if s != nil {
		out.read = s.sent.Load()
	}
	if !c.reports {
		return out, nil
	}
	var report struct{ Bytes reported }
	if err := json.Unmarshal(e.stdout, &report); err != nil {
		return out, fmt.Errorf("read the output of %s: %w", c.name, err)
	}
	out.reported = report.Bytes
	return out, nil
}

// input is the last argument, and with "-" what is on standard input.
func (c client) input(f file, s *server) (arg string, in io.ReadCloser, err error) {
	switch {
	case s != nil && c.plain:
		in, err = get(s.url(f))
		return "-", in, err
	case s != nil:
		return s.url(f), nil, nil
	case f.Zstd && c.plain:
		in, err = unzstd(f.path)
		return "-", in, err
	default:
		return f.path, nil, nil
	}
}

func get(url string) (io.ReadCloser, error) {
	res, err := http.Get(url)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		return nil, errors.Join(fmt.Errorf("get %s: %s", url, res.Status), res.Body.Close())
	}
	return res.Body, nil
}

// unzstd decompresses in this process, on other goroutines than the reader's: by the library that the agent uses.
func unzstd(path string) (io.ReadCloser, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	d, err := zstd.NewReader(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &unzstdReader{d, f}, nil
}

type unzstdReader struct {
	*zstd.Decoder
	file *os.File
}

func (r *unzstdReader) Close() error {
	r.Decoder.Close()
	return r.file.Close()
}
