package importer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/unpack"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/tarlift/tarlift/internal/archive"
)

// unpacker applies images' layers to the snapshotter while later layers are still on their way. A nil unpacker does
// nothing.
//
// containerd's own Unpacker does the work, one for each image: several layers at a time where the snapshotter can
// give them their parents afterwards, else in order.
type unpacker struct {
	*session
	platform unpack.Platform
	ctx      context.Context // of all its work
	cancel   context.CancelCauseFunc
	work     sync.WaitGroup
	begun    map[digest.Digest]bool // manifests
	counted  sync.Map               // layers, by digest
	locks    keyedLocks             // so that images of this import do not unpack the same layer twice
}

// silent drops what containerd's Unpacker logs: its errors are returned as well.
var silent = logrus.NewEntry(&logrus.Logger{Out: io.Discard, Formatter: &logrus.TextFormatter{}, Hooks: logrus.LevelHooks{}})

// newUnpacker finds out before anything is moved that layers could not be unpacked. The context that it returns ends
// when an image cannot be unpacked.
func (s *session) newUnpacker(ctx context.Context) (*unpacker, context.Context, error) {
	c := s.importer.client
	name, err := s.importer.snapshotterName(ctx)
	if err != nil {
		return nil, nil, err
	}
	// Only a snapshotter that there is says that it lacks a snapshot.
	if _, err := c.SnapshotService(name).Stat(ctx, "tarlift"); err != nil && !errdefs.IsNotFound(err) {
		return nil, nil, runtimeError(fmt.Sprintf("snapshotter %q", name), err)
	}
	capabilities, err := c.GetSnapshotterCapabilities(ctx, name)
	if err != nil {
		return nil, nil, runtimeError(fmt.Sprintf("ask what snapshotter %q can do", name), err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	return &unpacker{session: s, ctx: log.WithLogger(ctx, silent), cancel: cancel, begun: map[digest.Digest]bool{}, locks: keyedLocks{held: map[string]chan struct{}{}}, platform: unpack.Platform{
		Platform:                platforms.All, // the plan has chosen
		SnapshotterKey:          name,
		Snapshotter:             c.SnapshotService(name),
		SnapshotterCapabilities: capabilities,
	}}, ctx, nil
}

// begin starts to unpack those images of a plan that it has not begun yet, a few at a time. Their manifests and
// configs are in the store; a layer is waited for.
func (u *unpacker) begin(p *Plan) {
	if u == nil {
		return
	}
	var images []*rootfs
	for _, fs := range p.rootfs {
		if !u.begun[fs.manifest.Digest] {
			u.begun[fs.manifest.Digest] = true
			images = append(images, fs)
		}
	}
	u.work.Go(func() {
		var group errgroup.Group
		group.SetLimit(maxImages)
		for _, fs := range images {
			group.Go(func() error {
				if err := u.image(fs); err != nil {
					u.fail(fs, err)
				}
				return nil
			})
		}
		_ = group.Wait() // the errors have been told
	})
}

// maxImages are unpacked at a time. They wait most of the time, each layer in a goroutine.
const maxImages = 4

// image unpacks one image.
func (u *unpacker) image(fs *rootfs) error {
	options := []unpack.UnpackerOpt{
		unpack.WithUnpackPlatform(u.platformOf(fs)), unpack.WithDuplicationSuppressor(&u.locks),
	}
	if slices.Contains(u.platform.SnapshotterCapabilities, snapshots.RebaseCap) {
		// It is what asks for unpacking side by side. The bound is the applier's: a layer that is waited for takes
		// nobody's place.
		options = append(options, unpack.WithUnpackLimiter(semaphore.NewWeighted(archive.MaxLayers)))
	}
	containerds, err := unpack.NewUnpacker(u.ctx, u.services.content, options...)
	if err != nil {
		return err //nolint:wrapcheck // begin says of which image
	}
	handler := containerds.Unpack(images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		switch d.Digest {
		case fs.manifest.Digest:
			return append([]ocispec.Descriptor{fs.config}, fs.layers...), nil
		case fs.config.Digest:
			return nil, nil
		}
		return nil, u.arrivals.wait(ctx, d.Digest)
	}))
	for _, d := range []ocispec.Descriptor{fs.manifest, fs.config} {
		if _, err := handler.Handle(u.ctx, d); err != nil {
			return err //nolint:wrapcheck // as above
		}
	}
	if _, err := containerds.Wait(); err != nil {
		return err //nolint:wrapcheck // as above
	}
	for _, d := range fs.layers {
		u.count(d) // also what was there
	}
	return nil
}

// platformOf is containerd's way to unpack one image.
func (u *unpacker) platformOf(fs *rootfs) unpack.Platform {
	p := u.platform
	p.Applier = applier{u, fs}
	return p
}

// applier applies the layers of one image with containerd, as many at a time as all imports together may. It implements
// diff.Applier.
//
// What fails here ends the whole import: the Unpacker would wait for the rest of the layers before it says so.
type applier struct {
	*unpacker
	fs *rootfs
}

func (a applier) Apply(ctx context.Context, d ocispec.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	applied, err := a.apply(ctx, d, mounts, opts...)
	if err != nil {
		a.fail(a.fs, err)
		return applied, err
	}
	a.count(d)
	return applied, nil
}

func (a applier) apply(ctx context.Context, d ocispec.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	if err := a.importer.applies.Acquire(ctx, 1); err != nil {
		return ocispec.Descriptor{}, err //nolint:wrapcheck // the context's
	}
	defer a.importer.applies.Release(1)
	// A power cut would else leave a committed snapshot of empty files, which nothing repairs.
	applied, err := a.importer.client.DiffService().Apply(ctx, d, mounts, append(opts, diff.WithSyncFs(true))...)
	if err != nil {
		return applied, err //nolint:wrapcheck // fail says of which image
	}
	k := slices.IndexFunc(a.fs.layers, func(l ocispec.Descriptor) bool { return l.Digest == d.Digest })
	if applied.Digest != a.fs.diffIDs[k] {
		return applied, fmt.Errorf("layer %s: its content is not that of its diff_id %.200q: %w", d.Digest, a.fs.diffIDs[k], archive.ErrDigestMismatch)
	}
	return applied, nil
}

// fail ends the import with the first error that it is told.
func (u *unpacker) fail(fs *rootfs, err error) {
	u.cancel(fmt.Errorf("image %q: %w", fs.name, unpackError(err)))
}

// wait returns when nothing is being unpacked any more: after all images, or soon when the import has failed. Of
// several failures it returns the first.
func (u *unpacker) wait(failure error) error {
	if u == nil {
		return failure
	}
	if failure != nil {
		u.cancel(failure)
	}
	u.work.Wait()
	if err := context.Cause(u.ctx); err != nil {
		return err //nolint:wrapcheck // fail says of which image
	}
	u.cancel(nil)
	return failure
}

// count makes progress of a layer that is dealt with, once.
func (u *unpacker) count(d ocispec.Descriptor) {
	if _, again := u.counted.LoadOrStore(d.Digest, true); !again {
		u.progress.unpacked(d.Size)
	}
}

// name is the snapshotter's.
func (u *unpacker) name() string {
	if u == nil {
		return ""
	}
	return u.platform.SnapshotterKey
}

// keyedLocks are mutexes by name. They implement containerd's unpack.KeyedLocker.
type keyedLocks struct {
	mu   sync.Mutex
	held map[string]chan struct{} // closed when it is let go
}

// Lock waits until nobody holds the key.
func (k *keyedLocks) Lock(ctx context.Context, key string) error {
	for {
		k.mu.Lock()
		holder, ok := k.held[key]
		if !ok {
			k.held[key] = make(chan struct{})
			k.mu.Unlock()
			return nil
		}
		k.mu.Unlock()
		select {
		case <-holder:
		case <-ctx.Done():
			return ctx.Err() //nolint:wrapcheck // the caller's own
		}
	}
}

// Unlock lets go of a key that is held.
func (k *keyedLocks) Unlock(key string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	close(k.held[key])
	delete(k.held, key)
}

// arrivals tell which blobs have come below the session's lease.
type arrivals struct {
	mu    sync.Mutex
	blobs map[digest.Digest]chan struct{} // closed when it has
}

func (a *arrivals) of(d digest.Digest) chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.blobs[d] == nil {
		a.blobs[d] = make(chan struct{})
	}
	return a.blobs[d]
}

func (a *arrivals) arrived(d digest.Digest) {
	c := a.of(d)
	a.mu.Lock()
	defer a.mu.Unlock()
	select {
	case <-c:
	default:
		close(c)
	}
}

func (a *arrivals) wait(ctx context.Context, d digest.Digest) error {
	select {
	case <-a.of(d):
		return nil
	case <-ctx.Done():
		return ctx.Err() //nolint:wrapcheck // the caller's own
	}
}

// unpackError tells a layer that is not what its image says from a containerd that could not apply it. Of such a
// layer's error only the kind is kept: the text names a temporary directory that is another each time.
func unpackError(err error) error {
	if errors.Is(err, archive.ErrDigestMismatch) {
		return fmt.Errorf("unpack: %w", err)
	}
	text := err.Error()
	for _, damage := range []string{"invalid tar header", "unexpected EOF", "gzip: invalid", "zstd: ", "magic number mismatch", "invalid input:", "failed to decompress"} {
		if strings.Contains(text, damage) {
			return fmt.Errorf("unpack: a layer is no tar archive, or a damaged one: %w", archive.ErrInvalid)
		}
	}
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("unpack: %w", context.Canceled)
	}
	if errdefs.IsInvalidArgument(err) || errdefs.IsFailedPrecondition(err) {
		return fmt.Errorf("unpack: %w: %w", archive.ErrInvalid, err)
	}
	return runtimeError("unpack", err)
}
