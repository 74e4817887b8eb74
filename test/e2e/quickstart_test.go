package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tarlift/tarlift/test/docs"
)

// quickstart runs the commands of docs/quickstart.md in a shell, as a newcomer would, and looks at what the page
// promises. It begins with nodes that have nothing of Tarlift.
func quickstart(t *testing.T, e *env) {
	repository, tag, _ := strings.Cut(e.AgentImage, ":")
	for _, n := range e.Nodes {
		for _, image := range names(t, n) {
			if name := strings.Fields(image)[0]; strings.HasPrefix(name, repository) {
				removed(t, n, name)
			}
		}
	}
	cmd := e.Command(t.Context(), "bash", "-eux", "-c", quickstartScript(t))
	cmd.Dir = checkout(t)
	cmd.Env = append(cmd.Env, "PATH="+sshDir(t)+":"+envOf(cmd, "PATH"))
	output, err := cmd.CombinedOutput()
	t.Logf("%s", output)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"imagearchive.tarlift.dev/hello condition met", "pod/hello condition met", tag} {
		if !slices.Contains(strings.Split(string(output), "\n"), want) {
			t.Errorf("no line says %q", want)
		}
	}
	// By name, since CRI takes all names of an image together, and one of them is the agent's.
	for _, n := range e.Nodes {
		if pin := image(t, n, "plant.example/hello:1").Labels()["io.cri-containerd.pinned"]; pin != "" {
			t.Errorf("%s: the image is still pinned (%s)", n.Name, pin)
		}
	}
	left, err := os.ReadDir(cmd.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(left) != 2 {
		t.Errorf("the page leaves %v", left)
	}
}

// quickstartScript is what the page has a newcomer type. One thing is changed: the machine may be fuller than a node
// should be.
func quickstartScript(t *testing.T) string {
	page, err := docs.Read(moduleRoot(t), "docs/quickstart.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks, _ := page.Parts()
	script := ""
	for _, b := range blocks {
		if b.Language == "sh" {
			script += b.Text
		}
	}
	for command, flag := range map[string]string{
		"/agent import -'":      "/agent import --disk-reserve 1% -'",
		"helm install tarlift ": "helm install tarlift --set node.diskReserve=1% ",
	} {
		if strings.Count(script, command) != 1 {
			t.Fatalf("the page does not have %q once:\n%s", command, script)
		}
		script = strings.Replace(script, command, flag, 1)
	}
	return script
}

// checkout is a directory with what the page needs of a checkout, where `make build image` has made the image of this
// machine's architecture only. What the page writes is gone with it.
func checkout(t *testing.T) string {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, from := range map[string]string{
		"charts": "charts", "bin/agent": "bin/agent", "bin/tarlift": "bin/tarlift", "bin/agent-image.tar": "bin/test/agent-image.tar",
	} {
		if err := os.Symlink(filepath.Join(moduleRoot(t), from), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// sshDir has an ssh that reaches the nodes of the harness. Like the real one, it has a shell there run its arguments.
func sshDir(t *testing.T) string {
	const ssh = `#!/bin/sh
node=${1#root@}
shift
exec on "$node" sh -c "$*"
`
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "ssh"), []byte(ssh), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// envOf is the value of a variable that a command would have.
func envOf(cmd *exec.Cmd, name string) string {
	for _, v := range slices.Backward(cmd.Environ()) {
		if value, ok := strings.CutPrefix(v, name+"="); ok {
			return value
		}
	}
	return ""
}
