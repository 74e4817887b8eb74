package importer

import (
	"context"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/importer/unpack"
)

// newUnpacker finds out before anything is moved that layers could not be unpacked.
func (a *attempt) newUnpacker(ctx context.Context) (*unpack.Unpacker, error) {
	name, err := a.importer.servingSnapshotter(ctx)
	if err != nil {
		return nil, err
	}
	c := a.importer.client
	a.snapshotter = name
	return unpack.New(ctx, unpack.Options{
		Content: a.content, Applier: c.DiffService(), Snapshotter: a.session.Snapshotter(c.SnapshotService(name)), SnapshotterName: name,
		Capabilities: c.GetSnapshotterCapabilities, Applies: a.importer.applies, Writing: &a.writing,
		Ready: a.ready.Wait, Progress: a.progress.unpacked, Fail: a.cancel,
	}), nil
}

// startUnpack starts to unpack the images of a plan.
func (a *attempt) startUnpack(p *Plan) {
	var blobs []ocispec.Descriptor
	for _, b := range p.Blobs {
		blobs = append(blobs, b.Descriptor)
	}
	a.unpacker.Start(p.rootfs, blobs)
}

// toUnpack estimates the size of the layers that have no snapshot, in bytes.
func (i *Importer) toUnpack(ctx context.Context, p *Plan) (int64, error) {
	name, err := i.snapshotterName(ctx)
	if err != nil {
		return 0, err
	}
	return unpack.Estimate(ctx, i.client.SnapshotService(name), p.rootfs)
}
