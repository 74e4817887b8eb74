package importer

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/containerd/api/events"
	coreevents "github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/typeurl/v2"

	"github.com/tarlift/tarlift/internal/importer/daemon"
)

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
			if name, ok := changedName(e); ok {
				changed(name)
			}
		case err := <-failed:
			if ctx.Err() != nil {
				return nil
			}
			return daemon.Error("watch containerd's events", err)
		}
	}
}

// changedName is what Watch tells of an event, if anything.
func changedName(e *coreevents.Envelope) (string, bool) {
	event, err := typeurl.UnmarshalAny(e.Event)
	if err != nil {
		return "", false
	}
	switch event := event.(type) {
	case *events.ImageDelete:
		return event.Name, true
	case *events.ImageUpdate:
		return event.Name, true
	case *events.SnapshotRemove:
		// Layers have their chain's digest for a name. Those of containers come and go all the time.
		return "", strings.HasPrefix(event.Key, "sha256:")
	}
	return "", false
}
