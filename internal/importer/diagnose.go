package importer

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/go-digest"

	"github.com/tarlift/tarlift/internal/importer/cri"
	"github.com/tarlift/tarlift/internal/importer/daemon"
	"github.com/tarlift/tarlift/internal/importer/ownership"
	"github.com/tarlift/tarlift/internal/importer/store"
)

// What is asked here changes nothing. Most of it is for `agent doctor`.

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
		return Daemon{}, daemon.Error("ask containerd's version", err)
	}
	d := Daemon{Version: v.Version, Snapshotters: map[string]string{}}
	if d.Namespaces, err = i.client.NamespaceService().List(ctx); err != nil {
		return d, daemon.Error("list namespaces", err)
	}
	resp, err := i.client.IntrospectionService().Plugins(ctx, fmt.Sprintf("type==%s", plugins.SnapshotPlugin))
	if err != nil {
		return d, daemon.Error("ask for containerd's snapshotters", err)
	}
	for _, p := range resp.GetPlugins() {
		d.Snapshotters[p.GetID()] = p.GetInitErr().GetMessage()
	}
	return d, nil
}

// CRI is what the CRI of a containerd says of itself.
type CRI = cri.Status

// CRI asks the CRI on containerd's socket.
func (i *Importer) CRI(ctx context.Context) (CRI, error) { return i.cri.Status(ctx) }

// ValidateNamespace says why containerd would refuse a namespace's name.
func ValidateNamespace(name string) error {
	return identifiers.Validate(name) //nolint:wrapcheck // it says all
}

// IsKubelets says whether the kubelet uses a namespace.
func IsKubelets(namespace string) bool { return namespace == cri.Namespace }

// Held is a name that was published, as its newest record says.
type Held = ownership.Held

// Held lists the names that are there for anybody of us, sorted, and says how many more there were.
func (i *Importer) Held(ctx context.Context) (held []Held, gone int, err error) {
	return i.ownership.Held(i.in(ctx))
}

// ContentLost says of those names that have lost content or snapshots what, each image once.
func (i *Importer) ContentLost(ctx context.Context, held []Held) (losses []string, err error) {
	return i.ownership.ContentLost(i.in(ctx), held)
}

// NotVisible asks the CRI for names, and returns those that the kubelet would not find, or why that is not known. What lacks
// its config is left out.
func (i *Importer) NotVisible(ctx context.Context, held []Held) (names []string, unknown string, err error) {
	ctx = i.in(ctx)
	ids := map[string]digest.Digest{}
	for _, h := range held {
		m, _, err := i.check.Manifest(ctx, h.Target)
		if err != nil && !errdefs.IsNotFound(err) {
			return nil, "", err
		}
		if err == nil {
			ids[h.Name] = m.Config.Digest
		}
	}
	names, unknown = i.notVisible(ctx, ids)
	return names, unknown, nil
}

// Leftovers are what imports have in containerd beside images, also those that are under way.
type Leftovers = store.Leftovers

// Leftovers finds them.
func (i *Importer) Leftovers(ctx context.Context) (Leftovers, error) {
	return i.store.Leftovers(i.in(ctx))
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
		return "", newest, daemon.Error("list images", err)
	}
	for _, img := range list {
		later("image "+img.Name, img.CreatedAt)
		later("image "+img.Name, img.UpdatedAt)
	}
	held, err := i.services.leases.List(ctx)
	if err != nil {
		return "", newest, daemon.Error("list leases", err)
	}
	for _, l := range held {
		later("lease "+l.ID, l.CreatedAt)
	}
	return what, newest, nil
}

// Watch calls changed with each name of an image that is deleted or updated, by whomever, and with "" for each snapshot
// of a layer that is removed. It returns nil when ctx ends, and an error when containerd ends the stream. What happened
// before it is connected is not reported, and blobs go without an event.
func (i *Importer) Watch(ctx context.Context, changed func(name string)) error {
	ctx, cancel := context.WithCancel(i.in(ctx))
	defer cancel()
	var filters []string
	for _, topic := range []string{"/images/delete", "/images/update", "/snapshot/remove"} {
		filters = append(filters, fmt.Sprintf("namespace==%q,topic==%q", i.options.Namespace, topic))
	}
	stream, failed := i.client.EventService().Subscribe(ctx, filters...)
	for {
		select {
		case e := <-stream:
			event, err := typeurl.UnmarshalAny(e.Event)
			if err != nil {
				continue
			}
			switch event := event.(type) {
			case *events.ImageDelete:
				changed(event.Name)
			case *events.ImageUpdate:
				changed(event.Name)
			case *events.SnapshotRemove:
				// Layers have their chain's digest for a name. Those of containers come and go all the time.
				if strings.HasPrefix(event.Key, "sha256:") {
					changed("")
				}
			}
		case err := <-failed:
			if ctx.Err() != nil {
				return nil
			}
			return daemon.Error("watch containerd's events", err)
		}
	}
}
