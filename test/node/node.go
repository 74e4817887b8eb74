// Package node is one machine for tests: a containerd of their own, all that it has, and the agent's command line.
package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/test/cluster"
)

// Agent and Tarlift build a command once, as `make build` does, and return its path.
var (
	Agent   = sync.OnceValues(func() (string, error) { return build("agent") })
	Tarlift = sync.OnceValues(func() (string, error) { return build("tarlift") })
)

func build(name string) (string, error) {
	root, err := cluster.ModuleRoot()
	if err != nil {
		return "", err
	}
	path := filepath.Join(os.TempDir(), name)
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "./cmd/"+name)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w: %s", name, err, out)
	}
	return path, nil
}

// Output is all that `agent import -o json` may print.
type Output struct {
	Images []importer.Image `json:"images"`
	Bytes  struct {
		Read    int64 `json:"read"`
		Written int64 `json:"written"`
		Skipped int64 `json:"skipped"`
	} `json:"bytes"`
	DurationSeconds float64  `json:"durationSeconds"`
	NotVisible      []string `json:"notVisible"`
	CRI             string   `json:"cri"`
	Error           *struct {
		Reason  string `json:"reason"`
		Message string `json:"message"`
	} `json:"error"`
}

// State is all that an import could change in a namespace, as sorted lines.
type State map[string][]string

// StateOf asks containerd; ctx has the namespace.
func StateOf(ctx context.Context, c *client.Client) (State, error) {
	s := State{"images": {}, "content": {}, "ingests": {}, "leases": {}, "snapshots": {}}
	list, err := c.ImageService().List(ctx)
	if err != nil {
		return nil, err
	}
	for _, i := range list {
		s["images"] = append(s["images"], Line(i))
	}
	ingests, err := c.ContentStore().ListStatuses(ctx)
	if err != nil {
		return nil, err
	}
	for _, i := range ingests {
		s["ingests"] = append(s["ingests"], i.Ref)
	}
	leases, err := c.LeasesService().List(ctx)
	if err != nil {
		return nil, err
	}
	for _, l := range leases {
		s["leases"] = append(s["leases"], l.ID)
	}
	err = errors.Join(
		c.ContentStore().Walk(ctx, func(i content.Info) error {
			s["content"] = append(s["content"], i.Digest.String())
			return nil
		}),
		c.SnapshotService("overlayfs").Walk(ctx, func(_ context.Context, i snapshots.Info) error {
			s["snapshots"] = append(s["snapshots"], i.Name)
			return nil
		}))
	if err != nil {
		return nil, err
	}
	for _, lines := range s {
		slices.Sort(lines)
	}
	return s, nil
}

// Line is an image's in a State.
func Line(i images.Image) string {
	return fmt.Sprint(i.Name, " ", i.Target.Digest, " ", labels(i))
}

// labels leaves out which import wrote a name, and where it had the archive from.
func labels(i images.Image) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(i.Labels)) {
		v := ofImport.ReplaceAllString(i.Labels[k], "")
		if strings.HasPrefix(i.Name, "sha256:") { // an id that the CRI, or an import before, has left without an owner
			v = strings.Replace(v, `,"found":{}`, "", 1)
		}
		out = append(out, k+"="+v)
	}
	return strings.Join(out, ",")
}

var ofImport = regexp.MustCompile(`,"(serial":\d+|(source|validator)":"(\\.|[^"\\])*")`)
