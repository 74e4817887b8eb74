package importer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What is asked here is for `agent doctor`: it changes nothing.

// Daemon is what containerd says of itself.
type Daemon struct {
	Version    string
	Namespaces []string
	// Snapshotters by name, with the reason why it does not serve; empty if it does.
	Snapshotters map[string]string
}

// Daemon asks containerd who it is and what it has.
func (i *Importer) Daemon(ctx context.Context) (Daemon, error) {
	v, err := i.client.Version(ctx)
	if err != nil {
		return Daemon{}, runtimeError("ask containerd's version", err)
	}
	d := Daemon{Version: v.Version, Snapshotters: map[string]string{}}
	if d.Namespaces, err = i.client.NamespaceService().List(ctx); err != nil {
		return d, runtimeError("list namespaces", err)
	}
	resp, err := i.client.IntrospectionService().Plugins(ctx, fmt.Sprintf("type==%s", plugins.SnapshotPlugin))
	if err != nil {
		return d, runtimeError("ask for containerd's snapshotters", err)
	}
	for _, p := range resp.GetPlugins() {
		d.Snapshotters[p.GetID()] = p.GetInitErr().GetMessage()
	}
	return d, nil
}

// ValidateNamespace says why containerd would refuse a namespace's name.
func ValidateNamespace(name string) error {
	return identifiers.Validate(name) //nolint:wrapcheck // it says all
}

// IsKubelets says whether the kubelet looks into a namespace.
func IsKubelets(namespace string) bool { return namespace == kubeletNamespace }

// CRI is how the kubelet sees a containerd.
type CRI struct {
	Serving     bool
	Problem     string // why it does not serve
	Version     string
	Snapshotter string // empty where it does not say
	// NotReady are the conditions that are not met, each with its reason, the network's apart: it has no part in imports.
	NotReady        []string
	NetworkNotReady string
}

// CRI asks the CRI on containerd's socket.
func (i *Importer) CRI(ctx context.Context) (CRI, error) {
	if i.cri.runtime == nil {
		return CRI{Problem: errNoCRI.Error()}, nil
	}
	v, err := i.cri.runtime.Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		if err = criError("ask CRI's version", err); !errors.Is(err, errNoCRI) {
			return CRI{}, err
		}
		problem, err := i.whyNoCRI(ctx)
		return CRI{Problem: problem}, err
	}
	c := CRI{Serving: true, Version: v.GetRuntimeApiVersion()}
	st, err := i.cri.runtime.Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		return c, criError("ask CRI's status", err)
	}
	for _, cond := range st.GetStatus().GetConditions() {
		why := strings.TrimSuffix(cond.GetType()+": "+cond.GetReason(), ": ")
		switch {
		case cond.GetStatus():
		case cond.GetType() == runtimeapi.NetworkReady:
			c.NetworkNotReady = why
		case cond.GetType() == runtimeapi.RuntimeReady:
			c.NotReady = append(c.NotReady, why)
		}
	}
	c.Snapshotter, err = i.criSnapshotter(ctx)
	return c, err
}

// whyNoCRI looks for a plugin of CRI's that could not start.
func (i *Importer) whyNoCRI(ctx context.Context) (string, error) {
	resp, err := i.client.IntrospectionService().Plugins(ctx, fmt.Sprintf("type==%s", plugins.CRIServicePlugin), fmt.Sprintf("type==%s,id==cri", plugins.GRPCPlugin))
	if err != nil {
		return "", runtimeError("ask for CRI's plugins", err)
	}
	var others string
	for _, p := range resp.GetPlugins() {
		message := p.GetInitErr().GetMessage()
		switch {
		case message == "":
		case strings.Contains(message, "skip plugin"): // one that another one is missing for
			others = message
		default:
			return fmt.Sprintf("plugin %s.%s did not start: %s", p.GetType(), p.GetID(), message), nil
		}
	}
	if others != "" {
		return "its plugin did not start: " + others, nil
	}
	return "its plugin is disabled", nil
}

// Held is a name that an import published, as its newest record says.
type Held struct {
	Name     string
	Owner    string // the ImageArchive, empty for `agent import`
	Unpinned bool   // although it was to be pinned
	Lost     string // what else the name lacks, in words

	published published
}

// Held lists the names that are there for anybody of us, sorted, and says how many more there were.
func (i *Importer) Held(ctx context.Context) (held []Held, gone int, err error) {
	ctx = i.in(ctx)
	list, err := i.services.images.List(ctx)
	if err != nil {
		return nil, 0, runtimeError("list images", err)
	}
	owners := map[string][]published{} // of their newest publishing
	for _, img := range list {
		for label, value := range img.Labels {
			var r record
			if !isOwnerLabel(label) || json.Unmarshal([]byte(value), &r) != nil || !r.of(img.Name) {
				continue
			}
			all := owners[label]
			if label != importLabel && len(all) > 0 && all[0].record.Serial < r.Serial {
				all = nil
			}
			// Each run of `agent import` adds to the same label.
			if label == importLabel || len(all) == 0 || all[0].record.Serial == r.Serial {
				owners[label] = append(all, published{img, r})
			}
		}
	}
	for label, all := range owners {
		if label != importLabel {
			gone += max(all[0].record.Names-len(all), 0)
		}
		for _, p := range all {
			h := Held{Name: p.Name, Owner: p.record.Archive, published: p}
			if h.Unpinned = p.record.Pinned && p.Labels[labelPinned] != valuePinned; !h.Unpinned {
				h.Lost = p.lost()
			}
			held = append(held, h)
		}
	}
	slices.SortFunc(held, func(a, b Held) int { return strings.Compare(a.Name+" "+a.Owner, b.Name+" "+b.Owner) })
	return held, gone, nil
}

// ContentLost says of those names that have lost content or snapshots what, each image once.
func (i *Importer) ContentLost(ctx context.Context, held []Held) (losses []string, err error) {
	ctx = i.in(ctx)
	checked := map[digest.Digest]bool{}
	for _, h := range held {
		if checked[h.published.Target.Digest] {
			continue
		}
		checked[h.published.Target.Digest] = true
		lost, err := i.contentLost(ctx, h.published)
		if err != nil {
			return losses, err
		}
		if lost != "" {
			losses = append(losses, h.Name+" "+lost)
		}
	}
	return losses, nil
}

// Unseen asks CRI for names, and returns those that the kubelet would not find, or why that is not known. What lacks
// its config is left out.
func (i *Importer) Unseen(ctx context.Context, held []Held) (names []string, unknown string, err error) {
	ctx = i.in(ctx)
	ids, configs := map[string]digest.Digest{}, map[digest.Digest]digest.Digest{}
	for _, h := range held {
		target := h.published.Target
		if _, ok := configs[target.Digest]; !ok {
			m, _, err := i.manifest(ctx, target)
			if err != nil && !errdefs.IsNotFound(err) {
				return nil, "", err
			}
			configs[target.Digest] = m.Config.Digest
		}
		if config := configs[target.Digest]; config != "" {
			ids[h.Name] = config
		}
	}
	names, unknown = i.unseen(ctx, ids)
	return names, unknown, nil
}

// Leftovers are what importers have in containerd beside images.
type Leftovers struct {
	Living    int       // importers that are at work
	Stopped   int       // imports that were interrupted, or wait for their next attempt
	Ingests   int       // partial blobs of these
	Bytes     int64     // in these
	Unsettled int       // publishings that were interrupted between two names
	Oldest    time.Time // when the oldest of these leases was made
}

// Leftovers tells what living importers use from what others have left.
func (i *Importer) Leftovers(ctx context.Context) (Leftovers, error) {
	ctx = i.in(ctx)
	var all Leftovers
	before, err := i.sessionLeases(ctx, "")
	if err != nil {
		return all, err
	}
	signs, err := i.services.content.ListStatuses(ctx, fmt.Sprintf("ref~=%q", "^"+lifeRoot))
	if err != nil {
		return all, runtimeError("list ingests", err)
	}
	living := map[string]bool{}
	for _, s := range signs {
		key := strings.TrimPrefix(s.Ref, lifeRoot)
		if living[key], err = i.alive(ctx, s); err != nil {
			return all, err
		}
		if living[key] {
			all.Living++
		}
	}
	left, err := i.sessionLeases(ctx, "")
	if err != nil {
		return all, err
	}
	for _, l := range left {
		known := slices.ContainsFunc(before, func(b leases.Lease) bool { return b.ID == l.ID })
		if living[sessionKey(l.Labels[labelUID], l.ID)] || !known { // an importer that has just begun
			continue
		}
		all.Stopped++
		if all.Oldest.IsZero() || l.CreatedAt.Before(all.Oldest) {
			all.Oldest = l.CreatedAt
		}
		err := i.services.content.Walk(ctx, func(content.Info) error { all.Unsettled++; return nil }, fmt.Sprintf("labels.%q==%q", labelIntent, l.ID))
		if err != nil {
			return all, runtimeError("look for a publishing", err)
		}
	}
	ingests, err := i.services.content.ListStatuses(ctx, fmt.Sprintf("ref~=%q", "^"+ingestRoot))
	if err != nil {
		return all, runtimeError("list ingests", err)
	}
	for _, st := range ingests {
		if !slices.ContainsFunc(signs, func(s content.Status) bool {
			key := strings.TrimPrefix(s.Ref, lifeRoot)
			return living[key] && strings.HasPrefix(st.Ref, ingestPrefix(key))
		}) {
			all.Ingests++
			all.Bytes += st.Offset
		}
	}
	return all, nil
}

// alive says whether somebody holds a sign of life. The only way to know is to take it for a moment, as Recover does; a
// living importer does not notice. One that begins in this moment waits longer than it lasts.
func (i *Importer) alive(ctx context.Context, sign content.Status) (bool, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // a writer's stream ends with its context only
	w, err := i.services.content.Writer(ctx, content.WithRef(sign.Ref))
	if errdefs.IsUnavailable(err) && strings.Contains(err.Error(), "locked") {
		return true, nil
	}
	if err != nil {
		return false, runtimeError("look whether an importer lives", err)
	}
	defer w.Close()
	now, err := w.Status()
	if err != nil {
		return false, writerError("look whether an importer lives", err)
	}
	if now.StartedAt.Equal(sign.StartedAt) {
		return false, nil
	}
	// It ended in between, and what has been opened is new.
	if err := i.services.content.Abort(ctx, sign.Ref); err != nil && !errdefs.IsNotFound(err) {
		return false, runtimeError("abort ingest "+sign.Ref, err)
	}
	return false, nil
}

// Newest is the latest time that containerd has noted, with what it was noted of: a time to come says that the clock has
// been set back.
func (i *Importer) Newest(ctx context.Context) (what string, newest time.Time, err error) {
	ctx = i.in(ctx)
	later := func(name string, t time.Time) {
		if t.After(newest) {
			what, newest = name, t
		}
	}
	list, err := i.services.images.List(ctx)
	if err != nil {
		return "", newest, runtimeError("list images", err)
	}
	for _, img := range list {
		later("image "+img.Name, latest(img))
	}
	held, err := i.services.leases.List(ctx)
	if err != nil {
		return "", newest, runtimeError("list leases", err)
	}
	for _, l := range held {
		later("lease "+l.ID, l.CreatedAt)
	}
	return what, newest, nil
}

func latest(img images.Image) time.Time {
	if img.UpdatedAt.After(img.CreatedAt) {
		return img.UpdatedAt
	}
	return img.CreatedAt
}
