package importer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
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
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/tarlift/tarlift/internal/archive"
)

// unpacker applies images' layers to the snapshotter while later layers are still on their way. A nil unpacker does
// nothing.
//
// containerd's own Unpacker does the work, one for each image, several images at a time. Where it can, it also applies the
// layers of one image side by side: see stack.
type unpacker struct {
	*attempt
	platform unpack.Platform
	ctx      context.Context // of all its work
	feeding  sync.WaitGroup  // of images, into the group
	group    errgroup.Group
	begun    map[digest.Digest]bool // manifests
	counted  sync.Map               // blobs, by digest
	locks    keyedLocks             // so that images of this import do not unpack the same layer twice
	probe    func() bool            // whether layers can be applied side by side
}

// maxImages are unpacked at a time. They wait most of the time, each layer in a goroutine.
const maxImages = 4

// silent drops what containerd's Unpacker logs: its errors are returned as well.
var silent = logrus.NewEntry(&logrus.Logger{Out: io.Discard, Formatter: &logrus.TextFormatter{}, Hooks: logrus.LevelHooks{}})

// newUnpacker finds out before anything is moved that layers could not be unpacked.
func (a *attempt) newUnpacker(ctx context.Context) (*unpacker, error) {
	name, err := a.importer.servingSnapshotter(ctx)
	if err != nil {
		return nil, err
	}
	u := &unpacker{attempt: a, ctx: log.WithLogger(ctx, silent), begun: map[digest.Digest]bool{}, locks: keyedLocks{held: map[string]chan struct{}{}}}
	u.group.SetLimit(maxImages)
	u.platform = unpack.Platform{Platform: platforms.All /* the plan has chosen */, SnapshotterKey: name, Snapshotter: a.session.Snapshotter(a.importer.client.SnapshotService(name))}
	u.probe = sync.OnceValue(func() bool { return u.looks(u.ctx) })
	return u, nil
}

// begin starts to unpack those images of a plan that it has not begun yet, a few at a time. Their manifests and
// configs are in the store; a layer is waited for.
func (u *unpacker) begin(p *Plan) {
	if u == nil {
		return
	}
	u.countOthers(p)
	var todo []*rootfs
	for _, fs := range p.rootfs {
		if !u.begun[fs.manifest.Digest] {
			u.begun[fs.manifest.Digest] = true
			todo = append(todo, fs)
		}
	}
	u.feeding.Go(func() {
		for _, fs := range todo {
			u.group.Go(func() error {
				if err := u.image(fs); err != nil {
					u.fail(fs, err)
				}
				return nil
			})
		}
	})
}

// wait returns when nothing is being unpacked any more: after all images, or soon when the import has failed.
func (u *unpacker) wait() {
	if u == nil {
		return
	}
	u.feeding.Wait()
	_ = u.group.Wait() // what fails has cancelled the session
}

// fail ends the import.
func (u *unpacker) fail(fs *rootfs, err error) {
	u.cancel(fmt.Errorf("image %q: %w", fs.name, unpackError(err)))
}

// image unpacks one image.
func (u *unpacker) image(fs *rootfs) error {
	platform, options := u.platform, []unpack.UnpackerOpt{unpack.WithDuplicationSuppressor(&u.locks)}
	apply, store := applier{unpacker: u, fs: fs}, u.content
	if u.sideBySide(fs) {
		fail := func(err error) { u.fail(fs, err) }
		apply.stack, store = newStack(platform.Snapshotter, fs.diffIDs, fail), labeller{store, fail}
		platform.Snapshotter, platform.SnapshotterCapabilities = apply.stack, []string{snapshots.RebaseCap}
		// It is what asks for unpacking side by side. The bound is the applier's: a layer that is waited for takes
		// nobody's place.
		options = append(options, unpack.WithUnpackLimiter(semaphore.NewWeighted(archive.MaxLayers)))
	}
	platform.Applier = apply
	options = append(options, unpack.WithUnpackPlatform(platform))
	containerds, err := unpack.NewUnpacker(u.ctx, store, options...)
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
		return nil, u.session.Ready(ctx, d.Digest)
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

// sideBySide says whether an image's layers are applied side by side: where more than one is missing, and it can be done.
func (u *unpacker) sideBySide(fs *rootfs) bool {
	n := len(fs.diffIDs)
	if n < 2 || u.name() != overlayfs {
		return false
	}
	_, err := u.platform.Snapshotter.Stat(u.ctx, identity.ChainID(slices.Clone(fs.diffIDs[:n-1])).String())
	return errdefs.IsNotFound(err) && u.probe()
}

// applier applies the layers of one image with containerd, as many at a time as all imports together may. It implements
// diff.Applier.
type applier struct {
	*unpacker
	fs    *rootfs
	stack *stack // nil when they are applied in order
}

// applyError is what applying a layer failed with, without what the Unpacker says about it: that names a directory
// which is another each time.
type applyError struct{ error }

func (e *applyError) Unwrap() error { return e.error }

// Apply applies a layer. What fails here ends the import at once: side by side, the Unpacker would wait for the layers
// that are still to come before it says so.
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
	layer, early := a.stack.early(mounts)
	if !early {
		return a.applyTo(ctx, d, mounts, opts...)
	}
	if !a.stack.ordered.Load() {
		applied, err := a.applyTo(ctx, d, snared(directory(mounts)), opts...)
		if err == nil || !touched(err) {
			return applied, err
		}
	}
	mounts, err := a.stack.onTop(ctx, layer)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return a.applyTo(ctx, d, mounts, opts...)
}

func (a applier) applyTo(ctx context.Context, d ocispec.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	if err := a.importer.applies.Acquire(ctx, 1); err != nil {
		return ocispec.Descriptor{}, err //nolint:wrapcheck // the context's
	}
	defer a.importer.applies.Release(1)
	a.writing.Add(1)
	defer a.writing.Add(-1)
	// A power cut would else leave a committed snapshot of empty files, which nothing repairs.
	applied, err := a.importer.client.DiffService().Apply(ctx, d, mounts, append(opts, diff.WithSyncFs(true))...)
	if err != nil {
		return applied, &applyError{err}
	}
	k := slices.IndexFunc(a.fs.layers, func(l ocispec.Descriptor) bool { return l.Digest == d.Digest })
	if want := a.fs.diffIDs[k]; applied.Digest != want {
		return applied, &applyError{fmt.Errorf("layer %s: its content is not that of its diff_id %.200q: %w", d.Digest, want, archive.ErrDigestMismatch)}
	}
	return applied, nil
}

// countOthers makes progress of the blobs that are no layers: nothing of them is unpacked, but they are in the total.
func (u *unpacker) countOthers(p *Plan) {
	layers := map[digest.Digest]bool{}
	for _, fs := range p.rootfs {
		for _, l := range fs.layers {
			layers[l.Digest] = true
		}
	}
	for _, b := range p.Blobs {
		if !layers[b.Digest] {
			u.count(b.Descriptor)
		}
	}
}

// count makes progress of a blob that is dealt with, once.
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

// unpackError tells a layer that is not what its image says from a containerd that could not apply it. Of a damaged
// layer's error only the kind is kept, and of others not the names that are made up each time: the text comes into a
// condition, where another one is news.
func unpackError(err error) error {
	var applying *applyError
	if errors.As(err, &applying) {
		err = applying.error
	}
	known := runtimeError("unpack", err)
	switch {
	case errors.Is(known, ErrRuntimeUnavailable), errors.Is(known, ErrInsufficientDisk):
		return known
	case errors.Is(err, archive.ErrDigestMismatch):
		return fmt.Errorf("unpack: %w", err)
	case errors.Is(err, context.Canceled), errdefs.IsCanceled(err):
		return fmt.Errorf("unpack: %w", context.Canceled)
	}
	text := madeUp.ReplaceAllString(err.Error(), "…")
	if applying == nil {
		return fmt.Errorf("unpack: %s", text)
	}
	for _, damage := range []string{"invalid tar header", "unexpected EOF", "gzip: invalid", "zstd: ", "magic number mismatch", "invalid input:", "failed to decompress"} {
		if strings.Contains(text, damage) {
			return fmt.Errorf("unpack: a layer is no tar archive, or a damaged one: %w", archive.ErrInvalid)
		}
	}
	if errdefs.IsInvalidArgument(err) || errdefs.IsFailedPrecondition(err) {
		return fmt.Errorf("unpack: %w: %s", archive.ErrInvalid, text)
	}
	return fmt.Errorf("unpack: %s", text)
}

// madeUp are names of snapshots and directories that containerd makes up.
var madeUp = regexp.MustCompile(`extract-[^ "]+|containerd-mount\d+|snapshots/\d+`)
