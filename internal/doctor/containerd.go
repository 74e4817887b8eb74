package doctor

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/platforms"

	"github.com/tarlift/tarlift/internal/cli"
	"github.com/tarlift/tarlift/internal/importer"
)

// containerdChecks are the checks that need an answer of containerd.
var containerdChecks = []string{
	"containerd", "namespace", "snapshotter", "platform", "disk", "cri", "images", "pins", "kubelet", "leftovers", "clock",
}

// seeLog is the remedy where containerd returns an error.
const seeLog = "see containerd's log"

// examineContainerd examines what needs no API server.
func (e *examination) examineContainerd(ctx context.Context, o importer.Options) {
	const noAnswer = "containerd does not answer"
	if !e.checkSocket(ctx, o.Address) {
		e.skip(noAnswer, containerdChecks...)
		return
	}
	imp, err := importer.New(o)
	if err != nil {
		e.failed("containerd", "is --platform right, and is --address containerd's socket?", err)
		e.skip(noAnswer, containerdChecks[1:]...)
		return
	}
	defer imp.Close()
	daemon, err := ask(ctx, e, imp.Daemon)
	if err != nil {
		e.failed("containerd", "is --address containerd's socket? If it is, restart containerd, and "+seeLog, err)
		e.skip(noAnswer, containerdChecks[1:]...)
		return
	}
	c := containerd{examination: e, imp: imp, options: o, daemon: daemon}
	c.checkVersion()
	if !c.checkNamespace() {
		c.skip("the namespace is not valid", containerdChecks[2:]...)
		return
	}
	if c.cri, c.criErr = ask(ctx, e, imp.CRI); c.criErr != nil && !c.cri.Serving {
		c.cri.Problem = c.criErr.Error()
	}
	c.checkSnapshotterAndPlatform(ctx)
	c.checkDisks(ctx)
	c.checkCRI()
	c.checkImages(ctx)
	c.checkLeftovers(ctx)
	c.checkClock(ctx)
}

// containerd is a containerd that answers.
type containerd struct {
	*examination
	imp     *importer.Importer
	options importer.Options
	daemon  importer.Daemon
	cri     importer.CRI
	criErr  error
}

func (c *containerd) forKubelet() bool { return importer.IsKubelets(c.options.Namespace) }

// Versions of containerd, as 1000 * major + minor. Tests ran on 1.6 at the oldest.
const (
	oldestContainerd = 1_006
	pinsSince        = 1_007
	untestedFrom     = 3_000
)

var versionNumbers = regexp.MustCompile(`^v?(\d{1,3})\.(\d{1,3})\b`)

func (c *containerd) checkVersion() {
	const check, update = "containerd", "update containerd to 1.7 or 2"
	version := c.daemon.Version
	m := versionNumbers.FindStringSubmatch(version)
	if m == nil {
		c.warn(check, "the agent is made for containerd 1.7 and 2", "unknown version %q", version)
		return
	}
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2])
	switch v := 1000*major + minor; {
	case v < oldestContainerd:
		c.fail(check, update, "%s is too old", version)
	case v < pinsSince:
		c.warn(check, update, "%s does not report pins through CRI: the kubelet's garbage collection may remove pinned images", version)
	case v >= untestedFrom:
		c.warn(check, "update the agent", "%s is newer than the versions that this agent was made for", version)
	default:
		c.ok(check, "%s", version)
	}
}

// checkNamespace reports whether containerd can have this namespace.
func (c *containerd) checkNamespace() bool {
	const check = "namespace"
	name := c.options.Namespace
	state := ""
	if !slices.Contains(c.daemon.Namespaces, name) {
		state = ", which does not exist yet"
	}
	if err := importer.ValidateNamespace(name); err != nil {
		c.failed(check, "set another --namespace, or leave it out for the kubelet's", err)
		return false
	}
	if c.forKubelet() {
		c.ok(check, "%s%s", name, state)
		return true
	}
	c.warn(check, "leave out --namespace, unless these images are not for pods", "%s%s: the kubelet uses k8s.io only", name, state)
	return true
}

func (c *containerd) checkSnapshotterAndPlatform(ctx context.Context) {
	const check = "snapshotter"
	r, err := ask(ctx, c.examination, c.imp.Runtime)
	if err != nil {
		c.failed(check, seeLog, err)
		c.skip("containerd does not answer", "platform")
		return
	}
	problem, exists := c.daemon.Snapshotters[r.Snapshotter]
	var serving []string
	for _, name := range slices.Sorted(maps.Keys(c.daemon.Snapshotters)) {
		if c.daemon.Snapshotters[name] == "" {
			serving = append(serving, name)
		}
	}
	remedy := "choose one of these with --snapshotter: " + strings.Join(serving, ", ")
	switch {
	case !exists:
		c.fail(check, remedy, "containerd has no snapshotter %s", r.Snapshotter)
	case problem != "":
		c.fail(check, remedy, "%s did not start: %s", r.Snapshotter, problem)
	case c.forKubelet() && c.cri.Snapshotter != "" && c.cri.Snapshotter != r.Snapshotter:
		c.warn(check, "leave out --snapshotter, unless a runtime class uses it",
			"%s, but CRI uses %s: the first container of each image unpacks it again", r.Snapshotter, c.cri.Snapshotter)
	default:
		c.ok(check, "%s", r.Snapshotter)
	}
	machine := platforms.FormatAll(platforms.DefaultSpec())
	if want, err := platforms.Parse(r.Platform); err != nil || !platforms.Default().Match(want) {
		c.warn("platform", "leave out --platform, unless these images are for another machine", "%s, but this machine is %s", r.Platform, machine)
		return
	}
	c.ok("platform", "%s", r.Platform)
}

func (c *containerd) checkDisks(ctx context.Context) {
	disks, err := ask(ctx, c.examination, func(ctx context.Context) ([]*importer.Disk, error) {
		return c.imp.Disks(ctx)
	})
	if err != nil {
		c.failed("disk", seeLog, err)
		return
	}
	if len(disks) == 0 {
		c.skip("no reserve is kept (--disk-reserve 0)", "disk")
	}
	for _, disk := range disks {
		c.checkDisk(disk)
	}
}

func (e *examination) checkDisk(disk *importer.Disk) {
	const check = "disk"
	roots := strings.Join(disk.Roots, ", ")
	switch inodes := disk.Inodes; {
	case disk.Unknown != "":
		e.warn(check, "name a directory on the same file system with --containerd-root",
			"%s: the free space is unknown, so no reserve is kept", disk.Unknown)
	case disk.Free < disk.Reserve:
		e.fail(check, "free space there, or reserve less with --disk-reserve", "%s of %s free, below the reserve of %s: imports fail (%s)",
			cli.Size(disk.Free), cli.Size(disk.Total), cli.Size(disk.Reserve), roots)
	case inodes.Total > 0 && inodes.Free < inodes.Reserve:
		e.fail(check, "remove files there", "%d of %d inodes free, below the reserve of %d: imports fail (%s)",
			inodes.Free, inodes.Total, inodes.Reserve, roots)
	default:
		share := ""
		if inodes.Total > 0 {
			share = fmt.Sprintf(" and %d %% of its inodes", 100*inodes.Free/inodes.Total)
		}
		e.ok(check, "%s of %s%s free, reserve %s (%s)", cli.Size(disk.Free), cli.Size(disk.Total), share, cli.Size(disk.Reserve), roots)
	}
}

func (c *containerd) checkCRI() {
	const check = "cri"
	switch {
	case !c.forKubelet():
		c.skip("the kubelet does not use namespace "+c.options.Namespace, check)
	case c.criErr != nil:
		c.failed(check, seeLog, c.criErr)
	case !c.cri.Serving:
		c.fail(check, "remove cri from disabled_plugins in containerd's configuration (/etc/containerd/config.toml), and restart containerd",
			"containerd does not serve CRI: %s", c.cri.Problem)
	case len(c.cri.NotReady) > 0:
		c.fail(check, seeLog, "CRI is not ready: %s", strings.Join(c.cri.NotReady, ", "))
	case c.cri.NetworkNotReady != "":
		c.ok(check, "serves %s, snapshotter %s (the pod network is not ready, but imports do not need it)", c.cri.Version, c.cri.Snapshotter)
	default:
		c.ok(check, "serves %s, snapshotter %s", c.cri.Version, c.cri.Snapshotter)
	}
}
