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
// containerd's own Unpacker does the work, one for each image: several layers at a time where the snapshotter can
// give them their parents afterwards, else in order.
type unpacker struct {
	*session
	platform unpack.Platform
	ctx      context.Context // of all its work
	cancel   context.CancelCauseFunc
	work     sync.WaitGroup
	begun    map[digest.Digest]bool // manifests
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
	return &unpacker{session: s, ctx: log.WithLogger(ctx, silent), cancel: cancel, begun: map[digest.Digest]bool{}, platform: unpack.Platform{
		Platform:                platforms.All, // the plan has chosen
		SnapshotterKey:          name,
		Snapshotter:             c.SnapshotService(name),
		SnapshotterCapabilities: capabilities,
		Applier:                 c.DiffService(),
		// A power cut would else leave a committed snapshot of empty files, which nothing repairs.
		ApplyOpts: []diff.ApplyOpt{diff.WithSyncFs(true)},
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
					u.cancel(fmt.Errorf("image %q: %w", fs.name, unpackError(err)))
				}
				return nil
			})
		}
		_ = group.Wait() // the errors have been told
	})
}

const (
	// maxImages are unpacked at a time. They wait for layers most of the time, and hold some memory.
	maxImages = 8
	// maxAwaited layers are waited for at a time by one image, each by a goroutine.
	maxAwaited = 4
)

// image unpacks one image.
func (u *unpacker) image(fs *rootfs) error {
	layers := &layerLocks{session: u.session, layers: map[string]ocispec.Descriptor{}}
	for k, id := range identity.ChainIDs(slices.Clone(fs.diffIDs)) {
		layers.layers[fmt.Sprintf("sn://%s/%s", u.platform.SnapshotterKey, id)] = fs.layers[k]
	}
	options := []unpack.UnpackerOpt{
		unpack.WithUnpackPlatform(u.platform), unpack.WithDuplicationSuppressor(layers),
		unpack.WithLimiter(semaphore.NewWeighted(maxAwaited)),
	}
	if slices.Contains(u.platform.SnapshotterCapabilities, snapshots.RebaseCap) {
		options = append(options, unpack.WithUnpackLimiter(u.importer.applies))
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
	_, err = containerds.Wait()
	return err //nolint:wrapcheck // as above
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
		return err
	}
	u.cancel(nil)
	return failure
}

// name is the snapshotter's.
func (u *unpacker) name() string {
	if u == nil {
		return ""
	}
	return u.platform.SnapshotterKey
}

// layerLocks keep two images from unpacking the same layer: the second finds the snapshot of the first. It implements
// containerd's unpack.KeyedLocker for one image; of its keys only those of snapshots mean something here.
//
// A snapshot is locked only when its layer has arrived, and so have those below it. What is locked is being worked on:
// an import whose source stalls holds up no other.
type layerLocks struct {
	*session
	layers map[string]ocispec.Descriptor // by key
}

func (l *layerLocks) Lock(ctx context.Context, key string) error {
	d, ok := l.layers[key]
	if !ok {
		return nil
	}
	if err := l.arrivals.wait(ctx, d.Digest); err != nil {
		return err
	}
	return l.importer.snapshotLocks.lock(ctx, key)
}

func (l *layerLocks) Unlock(key string) {
	if d, ok := l.layers[key]; ok {
		l.importer.snapshotLocks.unlock(key)
		l.progress.unpacked(d.Size)
	}
}

// keyedLocks are mutexes by name.
type keyedLocks struct {
	mu   sync.Mutex
	held map[string]chan struct{} // closed when it is let go
}

func (k *keyedLocks) lock(ctx context.Context, key string) error {
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

func (k *keyedLocks) unlock(key string) {
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
	text := err.Error()
	if strings.Contains(text, "wrong diff id") {
		return fmt.Errorf("unpack: a layer's content is not that of its diff_id: %w", archive.ErrDigestMismatch)
	}
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
