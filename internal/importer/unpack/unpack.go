// Package unpack applies images' layers to a snapshotter while later layers are still on their way.
//
// containerd's own Unpacker does the work, one for each image, several images at a time. Where it can, this package also
// lets it apply the layers of one image in parallel: see probeMounts.
//
//	u := unpack.New(ctx, unpack.Options{…, Ready: ready.Wait, Fail: cancel})
//	u.Start(images, blobs)
//	… // write blobs, and ready.Add each
//	u.Wait()
package unpack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	core "github.com/containerd/containerd/v2/core/unpack"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/importer/daemon"
)

// Image is what is unpacked of an image.
type Image struct {
	Name             string // for errors
	Manifest, Config ocispec.Descriptor
	Layers           []ocispec.Descriptor
	DiffIDs          []digest.Digest // of Layers, in their order
}

// Options say with what an Unpacker works. All are required.
type Options struct {
	Content         content.Store
	Applier         diff.Applier // containerd's diff service
	Snapshotter     snapshots.Snapshotter
	SnapshotterName string
	// Capabilities asks containerd for those of a snapshotter, by name.
	Capabilities func(context.Context, string) ([]string, error)
	// Applies bounds how many layers are applied at a time, in all imports that share it.
	Applies *semaphore.Weighted
	// Writing counts the layers that are being applied now.
	Writing *atomic.Int32
	// Ready waits until a layer's blob is in Content.
	Ready func(context.Context, digest.Digest) error
	// Progress is called with the size in bytes of each blob that is dealt with, once for each digest.
	Progress func(int64)
	// Fail is called with what went wrong, perhaps several times. It has to cancel the context of New, or Wait may not return.
	Fail func(error)
}

// Unpacker unpacks the images of one import. A nil Unpacker does nothing.
type Unpacker struct {
	Options
	ctx      context.Context // of all its work
	feeding  sync.WaitGroup  // of images, into the group
	group    errgroup.Group
	started  sync.Map    // manifests, by digest
	counted  sync.Map    // blobs, by digest
	locks    keyedLocks  // so that images of this import do not unpack the same layer twice
	parallel func() bool // whether layers can be applied in parallel
}

// maxImages are unpacked at a time. They wait most of the time, each layer in a goroutine.
const maxImages = 4

// silent drops what containerd's Unpacker logs: its errors are returned as well.
var silent = logrus.NewEntry(&logrus.Logger{Out: io.Discard, Formatter: &logrus.TextFormatter{}, Hooks: logrus.LevelHooks{}})

// New makes an Unpacker whose work ends with ctx.
//
// Its locks are its own. One that imports shared would make each wait for the slowest: containerd's Unpacker holds the lock
// of a layer while it waits for the blob. When two imports unpack the same layer, one snapshot stays.
func New(ctx context.Context, o Options) *Unpacker {
	u := &Unpacker{Options: o, ctx: log.WithLogger(ctx, silent)}
	u.group.SetLimit(maxImages)
	u.parallel = sync.OnceValue(func() bool { return u.supportsRebase(u.ctx) })
	return u
}

// Start starts to unpack those images that it has not started yet, a few at a time. Their manifests and configs are in
// the store; a layer is waited for. Of blobs, which are all that the images need, those that are no layers count as
// dealt with.
func (u *Unpacker) Start(all []*Image, blobs []ocispec.Descriptor) {
	if u == nil {
		return
	}
	for _, b := range blobs {
		if !images.IsLayerType(b.MediaType) {
			u.count(b)
		}
	}
	u.feeding.Go(func() {
		for _, img := range all {
			if _, again := u.started.LoadOrStore(img.Manifest.Digest, true); !again {
				u.group.Go(func() error { return u.fail(img, u.image(img)) })
			}
		}
	})
}

// Wait returns when nothing is being unpacked any more: after all images, or soon after Fail was called.
func (u *Unpacker) Wait() {
	if u == nil {
		return
	}
	u.feeding.Wait()
	_ = u.group.Wait() // what fails is passed to Fail
}

// fail ends the import when something went wrong.
func (u *Unpacker) fail(img *Image, err error) error {
	if err != nil {
		u.Fail(fmt.Errorf("image %q: %w", img.Name, unpackError(err)))
	}
	return err
}

// image unpacks one image, in parallel where that is right.
func (u *Unpacker) image(img *Image) error {
	err := errNeedsParent
	if u.inParallel(img) {
		err = u.layers(img, true)
	}
	if errors.Is(err, errNeedsParent) {
		err = u.layers(img, false)
	}
	if err != nil {
		return err
	}
	for _, d := range img.Layers {
		u.count(d) // also what was there
	}
	return nil
}

// layers has containerd's Unpacker apply the layers of an image that are missing.
func (u *Unpacker) layers(img *Image, parallel bool) error {
	ctx, cancel := context.WithCancelCause(u.ctx)
	defer cancel(nil)
	platform := core.Platform{
		Platform:       platforms.All, // the plan has chosen
		SnapshotterKey: u.SnapshotterName, Snapshotter: u.Snapshotter, Applier: applier{u, img, parallel, cancel},
	}
	options := []core.UnpackerOpt{core.WithDuplicationSuppressor(&u.locks)}
	if parallel {
		platform.SnapshotterCapabilities = []string{snapshots.RebaseCap}
		// It is what asks for unpacking in parallel. The bound is the applier's: a layer that is waited for takes nobody's
		// place.
		options = append(options, core.WithUnpackLimiter(semaphore.NewWeighted(archive.MaxLayers)))
	}
	unpacker, err := core.NewUnpacker(ctx, u.Content, append(options, core.WithUnpackPlatform(platform))...)
	if err != nil {
		return err //nolint:wrapcheck // fail says of which image
	}
	handler := unpacker.Unpack(images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		switch d.Digest {
		case img.Manifest.Digest:
			return append([]ocispec.Descriptor{img.Config}, img.Layers...), nil
		case img.Config.Digest:
			return nil, nil
		}
		return nil, u.Ready(ctx, d.Digest)
	}))
	for _, d := range []ocispec.Descriptor{img.Manifest, img.Config} {
		if _, err := handler.Handle(ctx, d); err != nil {
			return err //nolint:wrapcheck // as above
		}
	}
	if _, err := unpacker.Wait(); err != nil {
		if cause := context.Cause(ctx); errors.Is(cause, errNeedsParent) {
			return cause //nolint:wrapcheck // the unpacker's own
		}
		return err //nolint:wrapcheck // as above
	}
	return nil
}

// count makes progress of a blob that is dealt with, once.
func (u *Unpacker) count(d ocispec.Descriptor) {
	if _, again := u.counted.LoadOrStore(d.Digest, true); !again {
		u.Progress(d.Size)
	}
}

// applier applies the layers of one image with containerd, as many at a time as all imports together may. It implements
// diff.Applier.
type applier struct {
	*Unpacker
	img      *Image
	parallel bool
	cancel   context.CancelCauseFunc // of the image
}

// Apply applies a layer. What fails here ends the import at once: in parallel, containerd's Unpacker would wait for the
// layers that are still to come before it says so. A layer that needs its parent ends only what is done in parallel.
func (a applier) Apply(ctx context.Context, d ocispec.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	if a.parallel {
		mounts = probeMounts(mounts)
	}
	applied, err := a.apply(ctx, d, mounts, opts...)
	switch {
	case err == nil:
		a.count(d)
	case a.parallel && needsParent(err):
		a.cancel(errNeedsParent)
	case !errors.Is(context.Cause(ctx), errNeedsParent):
		return applied, a.fail(a.img, err)
	}
	return applied, err
}

func (a applier) apply(ctx context.Context, d ocispec.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	if err := a.Applies.Acquire(ctx, 1); err != nil {
		return ocispec.Descriptor{}, err //nolint:wrapcheck // the context's
	}
	defer a.Applies.Release(1)
	a.Writing.Add(1)
	defer a.Writing.Add(-1)
	// A power cut would else leave a committed snapshot of empty files, which nothing repairs.
	applied, err := a.Applier.Apply(ctx, d, mounts, append(opts, diff.WithSyncFs(true))...)
	if err != nil {
		return applied, &applyError{err}
	}
	k := slices.IndexFunc(a.img.Layers, func(l ocispec.Descriptor) bool { return l.Digest == d.Digest })
	if want := a.img.DiffIDs[k]; applied.Digest != want {
		err := fmt.Errorf("layer %s: its content is not that of its diff_id %.200q: %w", d.Digest, want, archive.ErrDigestMismatch)
		return applied, &applyError{err}
	}
	return applied, nil
}

// keyedLocks are mutexes by key. They implement containerd's KeyedLocker. A key is remembered for as long as they are.
type keyedLocks struct{ held sync.Map }

// Lock waits until nobody holds the key.
func (k *keyedLocks) Lock(ctx context.Context, key string) error {
	lock, _ := k.held.LoadOrStore(key, make(chan struct{}, 1))
	select {
	case lock.(chan struct{}) <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err() //nolint:wrapcheck // the caller's own
	}
}

// Unlock lets go of a key that is held.
func (k *keyedLocks) Unlock(key string) {
	lock, _ := k.held.Load(key)
	<-lock.(chan struct{})
}

// ReadySet is a set of digests that can be waited for. The zero ReadySet is empty.
type ReadySet struct{ digests sync.Map }

type latch struct {
	once  sync.Once
	ready chan struct{} // closed when it is
}

func (r *ReadySet) latch(d digest.Digest) *latch {
	l, _ := r.digests.LoadOrStore(d, &latch{ready: make(chan struct{})})
	return l.(*latch)
}

// Add says that a digest is ready. A digest may be added again.
func (r *ReadySet) Add(d digest.Digest) {
	l := r.latch(d)
	l.once.Do(func() { close(l.ready) })
}

// Wait returns when a digest is ready, or with the context's error.
func (r *ReadySet) Wait(ctx context.Context, d digest.Digest) error {
	select {
	case <-r.latch(d).ready:
		return nil
	case <-ctx.Done():
		return ctx.Err() //nolint:wrapcheck // the caller's own
	}
}

// compression is how many times larger than its blob a compressed layer is estimated to be. Layers of distributions and
// language runtimes are 2.5 to 3.5 times as large as what gzip and zstd make of them.
const compression = 3

// Estimate is how many bytes will be unpacked of the images' layers that have no snapshot yet.
func Estimate(ctx context.Context, s snapshots.Snapshotter, all []*Image) (int64, error) {
	sum, counted := int64(0), map[digest.Digest]bool{}
	for _, img := range all {
		chain := identity.ChainIDs(slices.Clone(img.DiffIDs))
		for k, id := range slices.Backward(chain) {
			if counted[id] {
				break
			}
			_, err := s.Stat(ctx, id.String())
			if err == nil {
				break
			}
			if !errdefs.IsNotFound(err) {
				return 0, daemon.Error("look for the snapshots of layers", err)
			}
			counted[id] = true
			size := img.Layers[k].Size
			if img.Layers[k].Digest.Encoded() != img.DiffIDs[k].Encoded() { // else it is not compressed
				size *= compression
			}
			sum += size
		}
	}
	return sum, nil
}
