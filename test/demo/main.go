// Command demo shows Tarlift's main job on a real cluster that it starts itself: an archive on a web server becomes
// images on every node, by one object, without a registry. `make demo` builds what it needs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/tarlift/tarlift/test/cluster"
	"github.com/tarlift/tarlift/test/stage"
)

const nodes = 3

func main() {
	archive := flag.String("archive", "bin/demo.tar", "`file` to import")
	keep := flag.Bool("keep", false, "keep the cluster, with a shell in it, until that exits")
	flag.Parse()
	cluster.Isolate(func() int {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		if err := run(ctx, *archive, *keep); err != nil {
			fmt.Fprintln(os.Stderr, "demo:", err)
			return 1
		}
		return 0
	})
}

func run(ctx context.Context, archive string, keep bool) (err error) {
	info, err := os.Stat(archive)
	if err != nil {
		return err
	}
	title("A cluster of three nodes, which have no registry and no network but their own")
	s, err := stage.Up(ctx, cluster.Options{Nodes: nodes, Progress: os.Stdout})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Down()) }()
	if err := os.Link(archive, filepath.Join(s.Files, "demo.tar")); err != nil {
		if err := copyFile(archive, filepath.Join(s.Files, "demo.tar")); err != nil {
			return err
		}
	}
	d := &demo{Stage: s, archiveSize: info.Size()}
	for _, step := range []func(context.Context) error{d.install, d.inspect, d.first, d.pods, d.second, d.table} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	if keep {
		return d.shell(ctx)
	}
	return nil
}

type demo struct {
	*stage.Stage
	archiveSize int64
	firstTook   time.Duration
	secondTook  time.Duration
	read        map[string][2]int64 // by node: bytes for the first and the second ImageArchive
}

func title(s string) { fmt.Printf("\n\x1b[1m%s\x1b[0m\n\n", s) }

// show prints a command and runs it.
func (d *demo) show(ctx context.Context, name string, args ...string) error {
	fmt.Print("$ ", name)
	for _, a := range args {
		fmt.Print(" ", a)
	}
	fmt.Println()
	cmd := d.Command(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	fmt.Println()
	return nil
}

func (d *demo) install(ctx context.Context) error {
	title("Tarlift, installed with Helm; the nodes have its image already, by `agent import`")
	if err := d.Install(ctx); err != nil {
		return err
	}
	return d.show(ctx, "kubectl", "get", "pods", "-n", stage.Namespace, "-o", "wide")
}

func (d *demo) inspect(ctx context.Context) error {
	title("An archive of three images for several platforms, on a web server")
	return d.show(ctx, "bin/agent", "inspect", d.Server.URL+"/demo.tar")
}

func (d *demo) first(ctx context.Context) error {
	title("One object puts its images on every node")
	took, err := d.importArchive(ctx, "demo")
	d.firstTook = took
	return err
}

func (d *demo) second(ctx context.Context) error {
	title("A second object with the same archive: nothing is moved twice")
	took, err := d.importArchive(ctx, "demo-again")
	d.secondTook = took
	return err
}

// ages are the last column of kubectl get, which changes all the time.
var ages = regexp.MustCompile(`(?m)\S+$`)

// importArchive applies an ImageArchive and shows how it becomes Ready.
func (d *demo) importArchive(ctx context.Context, name string) (time.Duration, error) {
	d.Server.Reset()
	manifest := d.Archive(name, "demo.tar")
	fmt.Printf("$ kubectl apply -f - <<END\n%sEND\n", manifest)
	start := time.Now()
	if err := d.Apply(ctx, manifest); err != nil {
		return 0, err
	}
	// Not longer than a minute: then what is wrong stands in the status that was shown last.
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for last := ""; ; {
		// Asked for first: what is shown last is then Ready.
		ready, err := d.Run(ctx, "kubectl", "get", "imagearchive", name, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
		if err != nil {
			return 0, err
		}
		now, err := d.Run(ctx, "kubectl", "get", "imagearchives,nodeimagestates")
		if err != nil {
			return 0, err
		}
		took := time.Since(start)
		if state := ages.ReplaceAllString(now, ""); state != last {
			fmt.Printf("\n$ kubectl get imagearchives,nodeimagestates   # after %.1f s\n%s", took.Seconds(), now)
			last = state
		}
		if ready == "True" {
			d.note(name)
			return took, nil
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("%s is not Ready after %s: %w", name, took.Round(time.Second), ctx.Err())
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// note remembers what the server sent to each node.
func (d *demo) note(name string) {
	if d.read == nil {
		d.read = map[string][2]int64{}
	}
	for _, n := range d.Nodes {
		read := d.read[n.Name]
		if name == "demo" {
			read[0] = d.Server.Sent(n.IP)
		} else {
			read[1] = d.Server.Sent(n.IP)
		}
		d.read[n.Name] = read
	}
}

func (d *demo) pods(ctx context.Context) error {
	title("Pods run the images, with imagePullPolicy: Never")
	if err := d.Apply(ctx, stage.DaemonSet("greeter", stage.Greeter+":1.0")); err != nil {
		return err
	}
	if err := d.show(ctx, "kubectl", "rollout", "status", "daemonset/greeter", "--timeout=60s"); err != nil {
		return err
	}
	if err := d.show(ctx, "kubectl", "get", "pods", "-o", "wide"); err != nil {
		return err
	}
	return d.show(ctx, "kubectl", "logs", "-l", "app=greeter", "--prefix")
}

func (d *demo) table(context.Context) error {
	title("What it took")
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
	fmt.Fprintf(w, "\tBYTES\tSECONDS\n")
	fmt.Fprintf(w, "the archive\t%s\t\n", bytesOf(d.archiveSize))
	for _, n := range d.Nodes {
		fmt.Fprintf(w, "read by %s\t%s\t%.1f\n", n.Name, bytesOf(d.read[n.Name][0]), d.firstTook.Seconds())
	}
	for _, n := range d.Nodes {
		fmt.Fprintf(w, "read by %s for the second object\t%s\t%.1f\n", n.Name, bytesOf(d.read[n.Name][1]), d.secondTook.Seconds())
	}
	return w.Flush()
}

func bytesOf(n int64) string {
	return fmt.Sprintf("%s (%s)", humanize.Comma(n), humanize.IBytes(uint64(n)))
}

// shell runs a shell in the cluster until it exits.
func (d *demo) shell(ctx context.Context) error {
	fmt.Print("\nkubectl and helm work in this shell; exit ends the cluster.\n\n")
	cmd := d.Command(ctx, "bash", "--norc", "-i")
	cmd.Env = append(cmd.Env, `PS1=(demo) \w \$ `)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		return err
	}
	return nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
