package importer

import (
	"cmp"
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/importer/cri"
	"github.com/tarlift/tarlift/internal/importer/daemon"
	"github.com/tarlift/tarlift/internal/importer/unpack"
)

// snapshotterName is the configured snapshotter, else the one that CRI uses in its namespace, else the namespace's, else
// containerd's default. A wrong one costs the first container of an image its start: CRI unpacks again then.
func (i *Importer) snapshotterName(ctx context.Context) (string, error) {
	if i.options.Snapshotter != "" {
		return i.options.Snapshotter, nil
	}
	label, err := i.client.GetLabel(ctx, defaults.DefaultSnapshotterNSLabel)
	if err != nil {
		return "", daemon.Error("ask for the default snapshotter", err)
	}
	if i.options.Namespace == cri.Namespace {
		if name, err := i.cri.Snapshotter(ctx); err == nil && name != "" {
			return name, nil
		}
	}
	return cmp.Or(label, defaults.DefaultSnapshotter), nil
}

// snapshotterFor is the name of the snapshotter that a request needs: one that is there, if layers are to be unpacked into it;
// empty if they are not and its disk is not looked at either.
func (i *Importer) snapshotterFor(ctx context.Context, req Request) (string, error) {
	if !req.Unpack && i.options.Reserve.None() {
		return "", nil
	}
	name, err := i.snapshotterName(ctx)
	if err != nil || !req.Unpack {
		return name, err
	}
	// Only one that is there says that it lacks a snapshot.
	if _, err := i.client.SnapshotService(name).Stat(ctx, "tarlift"); err != nil && !errdefs.IsNotFound(err) {
		return "", daemon.Error(fmt.Sprintf("snapshotter %q", name), err)
	}
	return name, nil
}

func (a *attempt) newUnpacker(ctx context.Context) *unpack.Unpacker {
	c := a.importer.client
	return unpack.New(ctx, unpack.Options{
		Content: a.content, Applier: c.DiffService(), Snapshotter: a.session.Snapshotter(c.SnapshotService(a.snapshotter)),
		SnapshotterName: a.snapshotter, Capabilities: c.GetSnapshotterCapabilities, Applies: a.importer.applies, Writing: &a.writing,
		Ready: a.ready.Wait, Progress: a.progress.unpacked, Fail: a.cancel,
	})
}

// startUnpack starts to unpack the images of a plan.
func (a *attempt) startUnpack(p *Plan) {
	var blobs []ocispec.Descriptor
	for _, b := range p.Blobs {
		blobs = append(blobs, b.Descriptor)
	}
	a.unpacker.Start(p.RootFS, blobs)
}

// unpack waits until all images are unpacked: that began as soon as their first layers were there.
func (a *attempt) unpack(ctx context.Context, _ *Plan) error {
	if a.unpacker == nil {
		return nil
	}
	a.progress.phase(PhaseUnpacking)
	a.unpacker.Wait()
	return context.Cause(ctx) //nolint:wrapcheck // the unpacker's
}
