package main

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/platforms"

	"github.com/tarlift/tarlift/internal/importer"
)

// containerdChecks are what needs an answer of containerd.
var containerdChecks = []string{"containerd", "namespace", "snapshotter", "platform", "disk", "cri", "images", "pins", "kubelet", "leftovers", "clock"}

// examineContainerd looks at all of this machine that has no need of an API server.
func (d *doctor) examineContainerd(ctx context.Context, o importer.Options) {
	skip := func(checks []string) {
		for _, c := range checks {
			d.skip(c, "containerd cannot be asked")
		}
	}
	if !d.checkSocket(ctx, o.Address) {
		skip(containerdChecks)
		return
	}
	imp, err := importer.New(o)
	if err != nil {
		d.failed("containerd", "is --platform right, and --address containerd's socket?", err)
		skip(containerdChecks[1:])
		return
	}
	defer imp.Close()
	daemon, err := ask(ctx, d, imp.Daemon)
	if err != nil {
		d.failed("containerd", "is --address containerd's socket? If it is, restart containerd and look into its log", err)
		skip(containerdChecks[1:])
		return
	}
	p := patient{doctor: d, imp: imp, o: o, daemon: daemon}
	p.checkVersion()
	if !p.checkNamespace() {
		skip(containerdChecks[2:])
		return
	}
	if p.cri, p.criErr = ask(ctx, d, imp.CRI); p.criErr != nil && !p.cri.Serving {
		p.cri.Problem = p.criErr.Error()
	}
	p.checkSnapshotterAndPlatform(ctx)
	p.checkDisks(ctx)
	p.checkCRI()
	p.checkImages(ctx)
	p.checkLeftovers(ctx)
	p.checkClock(ctx)
}

// patient is a containerd that answers.
type patient struct {
	*doctor
	imp    *importer.Importer
	o      importer.Options
	daemon importer.Daemon
	cri    importer.CRI
	criErr error
}

func (p *patient) kubelets() bool { return importer.IsKubelets(p.o.Namespace) }

// The versions of containerd, as major and minor in one number. The oldest that tests ran on ever is 1.6.
const (
	oldestContainerd = 1_006
	pinsSince        = 1_007
	untestedFrom     = 3_000
)

var versionNumbers = regexp.MustCompile(`^v?(\d{1,3})\.(\d{1,3})\b`)

func (p *patient) checkVersion() {
	const check = "containerd"
	m := versionNumbers.FindStringSubmatch(p.daemon.Version)
	if m == nil {
		p.add(check, verdictWarn, "the agent is made for containerd 1.7 and 2", "version %q", p.daemon.Version)
		return
	}
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2])
	switch v := 1000*major + minor; {
	case v < oldestContainerd:
		p.add(check, verdictFail, "update containerd to 1.7 or 2", "%s is too old", p.daemon.Version)
	case v < pinsSince:
		p.add(check, verdictWarn, "update containerd to 1.7 or 2", "the CRI of %s does not know pinned images: the kubelet's garbage collection may remove them", p.daemon.Version)
	case v >= untestedFrom:
		p.add(check, verdictWarn, "look for a newer agent", "%s is newer than what this agent knows", p.daemon.Version)
	default:
		p.ok(check, "%s", p.daemon.Version)
	}
}

func (p *patient) checkNamespace() bool {
	const check = "namespace"
	name := p.o.Namespace
	state := ""
	if !slices.Contains(p.daemon.Namespaces, name) {
		state = ", which does not exist yet"
	}
	if err := importer.ValidateNamespace(name); err != nil {
		p.failed(check, "give another --namespace, or none for the kubelet's", err)
		return false
	}
	if p.kubelets() {
		p.ok(check, "%s%s", name, state)
		return true
	}
	p.add(check, verdictWarn, "leave out --namespace, unless these images are not for pods", "%s%s: the kubelet looks into k8s.io alone", name, state)
	return true
}

func (p *patient) checkSnapshotterAndPlatform(ctx context.Context) {
	r, err := ask(ctx, p.doctor, p.imp.Runtime)
	if err != nil {
		p.failed("snapshotter", "look into containerd's log", err)
		p.skip("platform", "containerd did not answer")
		return
	}
	problem, exists := p.daemon.Snapshotters[r.Snapshotter]
	var serving []string
	for _, name := range slices.Sorted(maps.Keys(p.daemon.Snapshotters)) {
		if p.daemon.Snapshotters[name] == "" {
			serving = append(serving, name)
		}
	}
	remedy := "choose one that serves by --snapshotter: " + strings.Join(serving, ", ")
	switch {
	case !exists:
		p.add("snapshotter", verdictFail, remedy, "containerd has no snapshotter %s", r.Snapshotter)
	case problem != "":
		p.add("snapshotter", verdictFail, remedy, "%s did not start: %s", r.Snapshotter, problem)
	case p.kubelets() && p.cri.Snapshotter != "" && p.cri.Snapshotter != r.Snapshotter:
		p.add("snapshotter", verdictWarn, "leave out --snapshotter, unless a runtime class uses it", "%s, but CRI uses %s: the first container of each image unpacks it again", r.Snapshotter, p.cri.Snapshotter)
	default:
		p.ok("snapshotter", "%s", r.Snapshotter)
	}
	here := platforms.FormatAll(platforms.DefaultSpec())
	if want, err := platforms.Parse(r.Platform); err != nil || !platforms.Default().Match(want) {
		p.add("platform", verdictWarn, "leave out --platform, unless these images are not for this machine", "%s, but this machine is %s", r.Platform, here)
		return
	}
	p.ok("platform", "%s", r.Platform)
}

func (p *patient) checkDisks(ctx context.Context) {
	const check = "disk"
	disks, err := ask(ctx, p.doctor, func(ctx context.Context) ([]*importer.Disk, error) {
		return p.imp.Disks(ctx, &importer.Plan{}, importer.Request{})
	})
	if err != nil {
		p.failed(check, "look into containerd's log", err)
		return
	}
	if len(disks) == 0 {
		p.skip(check, "no reserve is kept (--disk-reserve 0)")
	}
	for _, disk := range disks {
		p.judgeDisk(disk)
	}
}

func (d *doctor) judgeDisk(disk *importer.Disk) {
	const check = "disk"
	roots := strings.Join(disk.Roots, ", ")
	switch {
	case disk.Unknown != "":
		d.add(check, verdictWarn, "say where its file system can be seen, by --containerd-root", "%s: how much is free is not known, so no reserve is kept", disk.Unknown)
	case disk.Free < disk.Reserve:
		d.add(check, verdictFail, "free space there, or keep less by --disk-reserve", "%s free of %s, and %s are to stay so: nothing will be imported (%s)", size(disk.Free), size(disk.Total), size(disk.Reserve), roots)
	case disk.Inodes.Total > 0 && disk.Inodes.Free < disk.Inodes.Reserve:
		d.add(check, verdictFail, "remove files there", "%d inodes free of %d, and %d are to stay so: nothing will be imported (%s)", disk.Inodes.Free, disk.Inodes.Total, disk.Inodes.Reserve, roots)
	default:
		inodes := ""
		if disk.Inodes.Total > 0 {
			inodes = fmt.Sprintf(", and %d %% of its inodes", 100*disk.Inodes.Free/disk.Inodes.Total)
		}
		d.ok(check, "%s free of %s%s; %s stay so (%s)", size(disk.Free), size(disk.Total), inodes, size(disk.Reserve), roots)
	}
}

func (p *patient) checkCRI() {
	const check = "cri"
	enable := "take cri out of disabled_plugins in containerd's configuration (/etc/containerd/config.toml), and restart containerd"
	switch {
	case !p.kubelets():
		p.skip(check, "the kubelet has no part in namespace %s", p.o.Namespace)
	case p.criErr != nil:
		p.failed(check, "look into containerd's log", p.criErr)
	case !p.cri.Serving:
		p.add(check, verdictFail, enable, "containerd does not serve CRI: %s", p.cri.Problem)
	case len(p.cri.NotReady) > 0:
		p.add(check, verdictFail, "look into containerd's log", "CRI is not ready: %s", strings.Join(p.cri.NotReady, ", "))
	case p.cri.NetworkNotReady != "":
		p.ok(check, "serves %s, snapshotter %s (no network for pods yet, which imports do not need)", p.cri.Version, p.cri.Snapshotter)
	default:
		p.ok(check, "serves %s, snapshotter %s", p.cri.Version, p.cri.Snapshotter)
	}
}

// some lists a few of many.
func some(list []string) string {
	text := strings.Join(list[:min(len(list), maxWarned)], ", ")
	if more := len(list) - maxWarned; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// again brings back what was lost.
const again = "import again, or annotate the ImageArchive with tarlift.dev/reconcile-requested-at"

// checkImages looks whether what was imported is still as it was.
func (p *patient) checkImages(ctx context.Context) {
	type holdings struct {
		held []importer.Held
		gone int
	}
	all, err := ask(ctx, p.doctor, func(ctx context.Context) (holdings, error) {
		held, gone, err := p.imp.Held(ctx)
		return holdings{held, gone}, err
	})
	if err != nil {
		p.failed("images", "look into containerd's log", err)
		p.skip("pins", "which images there are is not known")
		p.skip("kubelet", "which images there are is not known")
		return
	}
	names, unpinned := map[string]bool{}, map[string]bool{}
	var lost []string
	if all.gone > 0 {
		lost = append(lost, fmt.Sprintf("%d names are gone", all.gone))
	}
	for _, h := range all.held {
		names[h.Name] = true
		if h.Unpinned {
			unpinned[h.Name] = true
		}
		if h.Lost != "" {
			lost = append(lost, h.Name+" "+h.Lost)
		}
	}
	content, err := ask(ctx, p.doctor, func(ctx context.Context) ([]string, error) { return p.imp.ContentLost(ctx, all.held) })
	lost = append(lost, content...)
	switch {
	case err != nil:
		p.failed("images", "look into containerd's log; many images may need a longer --timeout", err)
	case len(lost) > 0:
		p.add("images", verdictFail, again, "%d names; of these %s", len(names), some(lost))
	default:
		p.ok("images", "%d names, all whole", len(names))
	}
	if len(unpinned) > 0 {
		p.add("pins", verdictFail, again, "%d of %d names have lost their pin, so that the kubelet may remove them: %s", len(unpinned), len(names), some(slices.Sorted(maps.Keys(unpinned))))
	} else {
		p.ok("pins", "%d names, none has lost its pin", len(names))
	}
	p.checkKubelet(ctx, all.held, len(names))
}

// checkKubelet asks CRI for each name.
func (p *patient) checkKubelet(ctx context.Context, held []importer.Held, names int) {
	const check = "kubelet"
	if !p.kubelets() || !p.cri.Serving {
		p.skip(check, "CRI cannot be asked")
		return
	}
	type sight struct {
		unseen  []string
		unknown string
	}
	s, err := ask(ctx, p.doctor, func(ctx context.Context) (sight, error) {
		unseen, unknown, err := p.imp.NotVisible(ctx, held)
		return sight{unseen, unknown}, err
	})
	switch {
	case err != nil:
		p.failed(check, "look into containerd's log; many images may need a longer --timeout", err)
	case s.unknown != "":
		p.add(check, verdictFail, "look into containerd's log", "CRI was asked for images: %s", s.unknown)
	case len(s.unseen) > 0:
		p.add(check, verdictFail, "are they for this machine's platform? Else restart containerd: CRI reads all images then", "does not find %d of %d names: %s", len(s.unseen), names, some(s.unseen))
	default:
		p.ok(check, "finds all %d names", names)
	}
}

func (p *patient) checkLeftovers(ctx context.Context) {
	const check = "leftovers"
	l, err := ask(ctx, p.doctor, p.imp.Leftovers)
	if err != nil {
		p.failed(check, "look into containerd's log", err)
		return
	}
	if l.Leases+l.Ingests == 0 {
		p.ok(check, "none")
		return
	}
	age := ""
	if !l.Oldest.IsZero() {
		age = fmt.Sprintf(", the oldest %s ago", time.Since(l.Oldest).Round(time.Second))
	}
	p.add(check, verdictWarn, "unless imports run: the agent's next attempts go on with these, and containerd drops them within a day",
		"%d imports run or were interrupted%s, with %d partial blobs (%s)", l.Leases, age, l.Ingests, size(l.Bytes))
}

// Times by which clocks may differ. That of the API server's answers has whole seconds only.
const (
	clockTolerance = 10 * time.Second
	clockBound     = 5 * time.Minute // Kerberos' bound, and about what certificates and tokens are issued with ahead
)

// agentYear is when this agent was made, about: an earlier clock has never been set.
const agentYear = 2026

// noted is a time that containerd has taken down.
type noted struct {
	what string
	when time.Time
}

// checkClock holds the clock against times that containerd has noted: there is nothing else to ask on a machine alone.
func (p *patient) checkClock(ctx context.Context) {
	n, err := ask(ctx, p.doctor, func(ctx context.Context) (noted, error) {
		what, when, err := p.imp.Newest(ctx)
		return noted{what, when}, err
	})
	if err != nil {
		p.failed("clock", "look into containerd's log", err)
		return
	}
	p.judgeClock(time.Now(), n)
}

func (d *doctor) judgeClock(now time.Time, n noted) {
	const check = "clock"
	switch {
	case now.Year() < agentYear:
		d.add(check, verdictFail, "set the clock: certificates are not valid yet", "it is %s here", now.UTC().Format(time.RFC3339))
	case n.when.Sub(now) > clockTolerance:
		d.add(check, verdictWarn, "set the clock: what containerd keeps for a time will stay longer", "it was set back: %s was noted %s from now", n.what, n.when.Sub(now).Round(time.Second))
	default:
		d.ok(check, "%s, and containerd has noted no time to come", now.UTC().Format(time.RFC3339))
	}
}
