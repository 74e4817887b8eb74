// Package stage puts Tarlift onto a test cluster the way an operator does: the agent's own image by `agent import`
// on bare nodes, then the chart by Helm, then archives by ImageArchive objects, from a file server. The
// demonstration shows it, the end-to-end tests assert it.
//
// It needs bin/agent and bin/test/agent-image.tar (`make build local-image`) and runs inside [cluster.Isolate].
package stage

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
	"sync"

	"github.com/tarlift/tarlift/test/cluster"
)

// Namespace is where the chart is installed.
const Namespace = "tarlift-system"

// Stage is a cluster with all that an operator needs.
type Stage struct {
	*cluster.Cluster
	Server *FileServer
	// Files is the directory that Server serves.
	Files string
	// AgentImage is the agent's image as the nodes have it, name:tag.
	AgentImage string

	root string
}

// Up starts a cluster whose nodes have the agent's image, and a file server. Of the options, Bootstrap is its own. Bare
// nodes get nothing; AgentImage is then the caller's to set.
func Up(ctx context.Context, o cluster.Options) (*Stage, error) {
	root, err := cluster.ModuleRoot()
	if err != nil {
		return nil, err
	}
	s := &Stage{root: root}
	for _, f := range []string{s.agent(), s.agentArchive()} {
		if _, err := os.Stat(f); err != nil {
			return nil, fmt.Errorf("%w; `make build local-image` makes it", err)
		}
	}
	var mu sync.Mutex
	put := func(ctx context.Context, n *cluster.Node) error {
		imported, err := s.Import(ctx, n, s.agentArchive())
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		s.AgentImage = imported.Images[0].Name
		if o.Progress != nil {
			fmt.Fprintf(o.Progress, "%s: agent import put %s there, %d bytes in %.1f s\n",
				n.Name, s.AgentImage, imported.Bytes.Written, imported.DurationSeconds)
		}
		return nil
	}
	if !o.Bare {
		o.Bootstrap = put
	}
	if s.Cluster, err = cluster.Start(ctx, o); err != nil {
		return nil, err
	}
	s.Files = filepath.Join(s.Dir, "files")
	if err := os.Mkdir(s.Files, 0o755); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	if s.Server, err = Serve(s.Files); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

// Down ends everything.
func (s *Stage) Down() error {
	return errors.Join(s.Server.Close(), s.Stop())
}

func (s *Stage) agent() string        { return filepath.Join(s.root, "bin", "agent") }
func (s *Stage) agentArchive() string { return filepath.Join(s.root, "bin", "test", "agent-image.tar") }

// Imported is what `agent import -o json` prints.
type Imported struct {
	Images []struct{ Name, Digest string }
	Bytes  struct{ Read, Written, Skipped int64 }

	DurationSeconds float64
}

// Import runs `agent import` on a node.
func (s *Stage) Import(ctx context.Context, n *cluster.Node, args ...string) (Imported, error) {
	cmd := exec.CommandContext(ctx, s.agent(), append([]string{"import", "-o", "json", "--progress", "none", "--disk-reserve", "1%"}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	var imported Imported
	if err := n.Run(cmd); err != nil {
		return imported, fmt.Errorf("agent import on %s: %w: %s%s", n.Name, err, out.String(), errs.String())
	}
	if err := json.Unmarshal(out.Bytes(), &imported); err != nil {
		return imported, fmt.Errorf("agent import on %s printed %q: %w", n.Name, out.String(), err)
	}
	if len(imported.Images) == 0 {
		return imported, fmt.Errorf("agent import on %s: no images", n.Name)
	}
	return imported, nil
}

// Command is a program with kubectl, helm and the cluster's configuration in its environment.
func (s *Stage) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	// The program is looked up with the cluster's PATH, not with this process's.
	cmd := exec.CommandContext(ctx, "/usr/bin/env", append([]string{name}, args...)...)
	cmd.Dir = s.root
	cmd.Env = append(os.Environ(), s.Env()...)
	return cmd
}

// Run runs a program to its end and returns what it printed.
func (s *Stage) Run(ctx context.Context, name string, args ...string) (string, error) {
	output, err := s.Command(ctx, name, args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, output)
	}
	return string(output), err
}

// Apply is kubectl apply of a manifest.
func (s *Stage) Apply(ctx context.Context, manifest string) error {
	cmd := s.Command(ctx, "kubectl", "apply", "-f", "-")
	cmd.Stdin = strings.NewReader(manifest)
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("kubectl apply: %w: %s\n%s", err, output, manifest)
	}
	return nil
}

// Install installs the chart with the image that the nodes have, and waits until it runs.
func (s *Stage) Install(ctx context.Context, values ...string) error {
	repository, tag, _ := strings.Cut(s.AgentImage, ":")
	args := []string{
		"upgrade", "--install", "tarlift", "charts/tarlift", "--namespace", Namespace, "--create-namespace",
		"--set", "node.diskReserve=1%", // the machine may be fuller than a node should be
		"--set", "image.repository=" + repository, "--set-string", "image.tag=" + tag, "--set", "image.pullPolicy=Never",
		"--wait", "--timeout", "3m",
	}
	for _, v := range values {
		args = append(args, "--set", v)
	}
	_, err := s.Run(ctx, "helm", args...)
	return err
}

// Archive is an ImageArchive for a file of the server; spec lines may follow, indented by two.
func (s *Stage) Archive(name, file string, spec ...string) string {
	return fmt.Sprintf(`apiVersion: tarlift.dev/v1alpha1
kind: ImageArchive
metadata:
  name: %s
spec:
  source:
    http:
      url: %s/%s
`, name, s.Server.URL, file) + strings.Join(spec, "")
}

// DaemonSet runs an image on every node without pulling it. No pod network is needed.
func DaemonSet(name, image string) string {
	return fmt.Sprintf(`apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: %[1]s
  namespace: default
spec:
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      hostNetwork: true
      terminationGracePeriodSeconds: 1
      tolerations: [{operator: Exists}]
      containers:
        - name: main
          image: %[2]s
          imagePullPolicy: Never
          env: [{name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
`, name, image)
}

// WithImageVolume is a DaemonSet of the greeter whose pods mount another image as a volume. They are Ready when this file of
// it is there.
func WithImageVolume(name, greeter, volume, file string) string {
	return DaemonSet(name, greeter) + fmt.Sprintf(`          volumeMounts: [{name: files, mountPath: /files}]
          readinessProbe: {exec: {command: [/greeter, has, /files/%[2]s]}, periodSeconds: 1}
      volumes:
        - name: files
          image: {reference: "%[1]s", pullPolicy: Never}
`, volume, file)
}
