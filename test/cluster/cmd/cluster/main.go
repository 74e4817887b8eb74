// Command cluster starts a Kubernetes cluster and runs a command in it, a shell
// unless another is given. The cluster ends with the command.
//
//	cluster [-nodes N] [COMMAND [ARGUMENT]...]
//
// The command finds kubectl and helm, set up for the cluster, and
// `on NODE COMMAND [ARGUMENT]...`, which runs a command on a node.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/tarlift/tarlift/test/cluster"
)

func main() {
	nodes := flag.Int("nodes", 3, "number of nodes")
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "usage: cluster [-nodes N] [COMMAND [ARGUMENT]...]\n")
		flag.PrintDefaults()
	}
	flag.Parse()
	cluster.Isolate(func() int {
		code, err := run(*nodes, flag.Args())
		if err != nil {
			fmt.Fprintln(os.Stderr, "cluster:", err)
			return max(code, 1)
		}
		return code
	})
}

// run returns the exit code of the command.
func run(nodes int, command []string) (code int, err error) {
	c, err := cluster.Start(context.Background(), cluster.Options{Nodes: nodes, Progress: os.Stderr})
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, c.Stop()) }()

	for _, v := range c.Env() {
		name, value, _ := strings.Cut(v, "=")
		os.Setenv(name, value)
	}
	if len(command) == 0 {
		command = shell(c)
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	var exit *exec.ExitError
	if err := cmd.Run(); errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), nil
	} else if err != nil {
		return 127, err
	}
	return 0, nil
}

// shell is an interactive shell that keeps the environment it is given.
func shell(c *cluster.Cluster) []string {
	fmt.Fprintf(os.Stderr, `
kubectl and helm work in this shell; exit ends the cluster.
on node-a COMMAND runs a command on that node. Logs are in %s.

`, filepath.Dir(c.APIServer.Log))
	os.Setenv("PS1", `(cluster) \w \$ `)
	if _, err := exec.LookPath("bash"); err == nil {
		return []string{"bash", "--norc", "-i"}
	}
	return []string{"sh", "-i"}
}
