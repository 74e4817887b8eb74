package doctor

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/tarlift/tarlift/internal/cli"
	"github.com/tarlift/tarlift/internal/importer"
)

// These remedies are for images that are not as they were imported, and for many images on a slow disk.
const (
	importAgain = "import the archive again, or annotate the ImageArchive with tarlift.dev/reconcile-requested-at"
	seeLogSlow  = seeLog + "; many images may need a longer --timeout"
)

// checkImages checks whether the imported images are still complete and pinned, and whether CRI finds them.
func (c *containerd) checkImages(ctx context.Context) {
	type held struct {
		names []importer.Held
		gone  int
	}
	all, err := ask(ctx, c.examination, func(ctx context.Context) (held, error) {
		names, gone, err := c.imp.Held(ctx)
		return held{names, gone}, err
	})
	if err != nil {
		c.failed("images", seeLog, err)
		c.skip("the imported images are not known", "pins", "kubelet")
		return
	}
	names, unpinned := map[string]bool{}, map[string]bool{}
	var missing []string
	if all.gone > 0 {
		missing = append(missing, fmt.Sprintf("%d names are gone", all.gone))
	}
	for _, h := range all.names {
		names[h.Name] = true
		if h.Unpinned {
			unpinned[h.Name] = true
		}
		if h.Lost != "" {
			missing = append(missing, h.Name+" "+h.Lost)
		}
	}
	content, err := ask(ctx, c.examination, func(ctx context.Context) ([]string, error) { return c.imp.ContentLost(ctx, all.names) })
	missing = append(missing, content...)
	switch {
	case err != nil:
		c.failed("images", seeLogSlow, err)
	case len(missing) > 0:
		c.fail("images", importAgain, "%d names, not complete: %s", len(names), cli.List(missing))
	default:
		c.ok("images", "%d names, all complete", len(names))
	}
	if len(unpinned) > 0 {
		c.fail("pins", importAgain, "%d of %d names have lost their pin, so the kubelet may remove them: %s",
			len(unpinned), len(names), cli.List(slices.Sorted(maps.Keys(unpinned))))
	} else {
		c.ok("pins", "%d names, none has lost its pin", len(names))
	}
	c.checkKubelet(ctx, all.names, len(names))
}

// checkKubelet asks CRI for each name, as the kubelet does.
func (c *containerd) checkKubelet(ctx context.Context, held []importer.Held, names int) {
	const check = "kubelet"
	if !c.forKubelet() || !c.cri.Serving {
		c.skip("CRI does not answer for this namespace", check)
		return
	}
	type visibility struct {
		notVisible []string
		unknown    string
	}
	v, err := ask(ctx, c.examination, func(ctx context.Context) (visibility, error) {
		notVisible, unknown, err := c.imp.NotVisible(ctx, held)
		return visibility{notVisible, unknown}, err
	})
	switch {
	case err != nil:
		c.failed(check, seeLogSlow, err)
	case v.unknown != "":
		c.fail(check, seeLog, "CRI returns no images: %s", v.unknown)
	case len(v.notVisible) > 0:
		c.fail(check, "are the images for this machine's platform? If they are, restart containerd: CRI then reads all images again",
			"does not find %d of %d names: %s", len(v.notVisible), names, cli.List(v.notVisible))
	default:
		c.ok(check, "finds all %d names", names)
	}
}

// checkLeftovers looks for what imports have in containerd beside images. Leases expire within a day, and what they hold with
// them; a partial blob below none of them would stay.
func (c *containerd) checkLeftovers(ctx context.Context) {
	const check = "leftovers"
	l, err := ask(ctx, c.examination, c.imp.Leftovers)
	switch {
	case err != nil:
		c.failed(check, seeLog, err)
	case l.Leases+l.Ingests == 0:
		c.ok(check, "none")
	case l.Leases == 0:
		c.warn(check, "'ctr content active' lists them; the next import of the same archive removes them",
			"%d partial blobs (%s) below no lease", l.Ingests, cli.Size(l.Bytes))
	default:
		c.ok(check, "%d leases of imports that run or were interrupted, the oldest %s old, with %d partial blobs (%s)",
			l.Leases, time.Since(l.Oldest).Round(time.Second), l.Ingests, cli.Size(l.Bytes))
	}
}

// Bounds of the difference between two clocks. The API server sends its time in whole seconds.
const (
	clockTolerance = 10 * time.Second
	clockBound     = 5 * time.Minute // Kerberos' bound, and about how far certificates and tokens are backdated
)

// agentYear is about when this agent was made: an earlier clock has never been set.
const agentYear = 2026

// record is a time that containerd has recorded, and of what.
type record struct {
	what string
	when time.Time
}

// checkClock compares the clock with the newest time that containerd has recorded: a single machine has nothing else.
func (c *containerd) checkClock(ctx context.Context) {
	r, err := ask(ctx, c.examination, func(ctx context.Context) (record, error) {
		what, when, err := c.imp.Newest(ctx)
		return record{what, when}, err
	})
	if err != nil {
		c.failed("clock", seeLog, err)
		return
	}
	c.compareClock(time.Now(), r)
}

func (e *examination) compareClock(now time.Time, newest record) {
	const check = "clock"
	switch text := now.UTC().Format(time.RFC3339); {
	case now.Year() < agentYear:
		e.fail(check, "set the clock: certificates are not valid yet", "%s: the clock has never been set", text)
	case newest.when.Sub(now) > clockTolerance:
		e.warn(check, "set the clock: containerd's leases expire later than they should",
			"%s: the clock was set back: containerd's time of %s is %s later", text, newest.what, newest.when.Sub(now).Round(time.Second))
	default:
		e.ok(check, "%s, not before any time in containerd", text)
	}
}
