// Package importer puts the images of an archive into containerd: complete, pinned and owned, or not at all.
// It is the only package of the project that knows containerd.
//
// An import goes one way, and no step reaches back:
//
//	source -> archive index -> plan -> content -> Client.Import -> verify -> unpack -> publish
//
// The plan says which images serve this node's platform, under which names, and which of their blobs are
// absent. Only absent blobs are transferred, some at a time, each written under its digest, all of them below one
// lease; those that have arrived are unpacked meanwhile. containerd's own Client.Import then assembles the images from
// the content store, but the names that it would write are held back until every image has been found complete and
// unpacked.
package importer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/importer/check"
	"github.com/tarlift/tarlift/internal/importer/cri"
	"github.com/tarlift/tarlift/internal/importer/daemon"
	"github.com/tarlift/tarlift/internal/importer/ownership"
	"github.com/tarlift/tarlift/internal/importer/plan"
	"github.com/tarlift/tarlift/internal/importer/store"
)

// The ways in which an import fails here; what is wrong with the archive or its source is said by the errors
// of those packages, which pass through wrapped.
var (
	// ErrContentIncomplete is an image that lacks a blob which neither the archive nor the store has.
	ErrContentIncomplete = plan.ErrContentIncomplete
	// ErrNoMatchingPlatform is an archive without any image for this node's platform.
	ErrNoMatchingPlatform = plan.ErrNoMatchingPlatform
	// ErrNameConflict is a name that exists with another digest and belongs to somebody else.
	ErrNameConflict = ownership.ErrNameConflict
	// ErrInsufficientDisk is containerd's file system without room for the content.
	ErrInsufficientDisk = daemon.ErrNoSpace
	// ErrRuntimeUnavailable is a containerd that does not answer.
	ErrRuntimeUnavailable = daemon.ErrUnavailable
)

// Options say which containerd to use, and for whom.
type Options struct {
	// Address is the path of containerd's socket; empty means containerd's default.
	Address string
	// Namespace of containerd that images go to; empty means k8s.io, which the kubelet uses.
	Namespace string
	// Snapshotter that layers are unpacked into; empty means CRI's, or the namespace's default where CRI does not say.
	Snapshotter string
	// Platform images are chosen for, for example linux/arm64/v8; empty means this machine's.
	Platform string
	// Concurrency is how many blobs are moved at a time, and how many layers unpacked; 0 means by the machine's
	// cores and the source.
	Concurrency uint16
	// Reserve is how much an import leaves free of the file systems that containerd writes to.
	Reserve Reserve
	// ContainerdRoot is a directory on the file system of containerd's root, for where that cannot be seen under the path
	// that containerd says. Empty: found out.
	ContainerdRoot string
	// LeaseHandOver is the age at which the lease of an import is replaced by a new one, for tests; 0 means store.DefaultHandOver.
	LeaseHandOver time.Duration
}

// Importer imports archives into one namespace of one containerd. Its methods may be called concurrently.
type Importer struct {
	client   *client.Client
	services services
	cri      cri.Client
	options  Options // with a Namespace
	platform ocispec.Platform

	applies   *semaphore.Weighted // of layers, in all imports together
	memory    *budget
	store     *store.Store
	check     check.Checker
	ownership *ownership.Ownership
}

// services are containerd's, without the wrappers that an import puts around them.
type services struct {
	content content.Store
	images  images.Store
	leases  leases.Manager

	containers containers.Store
}

// connectTimeout bounds a dial, and the pause before the next one. A containerd that runs accepts within
// milliseconds, and one that restarts is back within a second.
const connectTimeout = 3 * time.Second

// A containerd that hangs while it is connected is found by pings. gRPC servers end connections of clients that ping
// more often than every 5 minutes.
const (
	pingAfter   = 6 * time.Minute
	pingTimeout = 30 * time.Second
)

// New makes an importer. It does not wait for containerd: a daemon that is down shows at the first call,
// as ErrRuntimeUnavailable, and is found again when it returns.
func New(o Options) (*Importer, error) {
	platform := platforms.DefaultSpec()
	if o.Platform != "" {
		p, err := platforms.Parse(o.Platform)
		if err != nil {
			return nil, fmt.Errorf("platform %q: %w", o.Platform, err)
		}
		platform = platforms.Normalize(p)
	}
	o.Namespace, o.Address = cmp.Or(o.Namespace, cri.Namespace), cmp.Or(o.Address, defaults.DefaultAddress)
	c, err := client.New(o.Address, client.WithDefaultNamespace(o.Namespace), client.WithTimeout(connectTimeout),
		client.WithExtraDialOpts([]grpc.DialOption{grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingAfter, Timeout: pingTimeout})}))
	if err != nil {
		return nil, fmt.Errorf("connect to containerd at %q: %w: %w", o.Address, ErrRuntimeUnavailable, err)
	}
	return newImporter(c, o, platform), nil
}

func newImporter(c *client.Client, o Options, platform ocispec.Platform) *Importer {
	i := &Importer{
		client:   c,
		services: services{c.ContentStore(), c.ImageService(), c.LeasesService(), c.ContainerService()},
		cri:      cri.New(c),
		options:  o,
		platform: platform,
		applies:  semaphore.NewWeighted(int64(cmp.Or(int(o.Concurrency), coresAndOne()))),
		memory:   newBudget(),
	}
	i.connect()
	return i
}

// connect makes what works on the services.
func (i *Importer) connect() {
	i.store = store.New(i.services.content, i.services.leases, i.options.LeaseHandOver)
	i.check = check.Checker{
		Content: i.services.content, Containers: i.services.containers, Platform: i.platform,
		Snapshotter: func(name string) snapshots.Snapshotter { return i.client.SnapshotService(name) },
	}
	i.ownership = ownership.New(i.services.images, i.check, i.store.Collect)
}

// Close ends the connection.
func (i *Importer) Close() error {
	return i.client.Close() //nolint:wrapcheck // the caller only logs it
}

// Runtime describes the containerd that an importer talks to.
type Runtime struct {
	Version     string // of the daemon, for example v2.4.2
	Snapshotter string // that layers are unpacked into
	Platform    string // that images are chosen for, for example linux/amd64
}

// Runtime asks containerd who it is.
func (i *Importer) Runtime(ctx context.Context) (Runtime, error) {
	ctx = i.in(ctx)
	v, err := i.client.Version(ctx)
	if err != nil {
		return Runtime{}, daemon.Error("ask containerd's version", err)
	}
	s, err := i.snapshotterName(ctx)
	if err != nil {
		return Runtime{}, err
	}
	return Runtime{Version: v.Version, Snapshotter: s, Platform: platforms.FormatAll(i.platform)}, nil
}

// in puts a call into the importer's namespace.
func (i *Importer) in(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, i.options.Namespace)
}

// Owner is the ImageArchive that an import is made for. The zero Owner is `agent import`.
type Owner = ownership.Owner

// Deletion is what becomes of an image when its last owner goes.
type Deletion = ownership.Deletion

// What may become of an image; empty is DeletionUnpin.
const (
	DeletionRetain = ownership.Retain
	DeletionUnpin  = ownership.Unpin
	DeletionDelete = ownership.Delete
)

// Released is what became of an owner's names when its claims on them ended.
type Released = ownership.Released

// Request says what is wanted of an archive.
type Request struct {
	Owner Owner
	// Digest of the whole archive as the source gives it; forces one full read. Empty: not checked.
	Digest digest.Digest
	// IndexDigest of index.json, the root that every blob hangs on. Empty: not checked.
	IndexDigest digest.Digest
	// Selection chooses images and names them.
	Selection archive.Selection
	// Unpack the layers into the snapshotter.
	Unpack bool
	// Pin the images against the kubelet's garbage collection.
	Pin bool
	// Replace names that exist with another digest and belong to somebody else, instead of ErrNameConflict.
	Replace bool
	// Owned are names that the caller has seen published for this owner, Result.Names of earlier: those that somebody has
	// given another digest since are taken back, whatever Replace says.
	Owned []string
	// Keep the lease and what was transferred when the import fails, so that the next attempt of the same
	// owner continues there. Without it a failed import leaves nothing.
	Keep bool
	// Progress is called at most a few times a second and at each change of phase, by one goroutine at a
	// time; nil for none.
	Progress func(Progress)
}

// Phase is a step of an import.
type Phase string

// The phases of an import, in their order.
const (
	PhaseIndexing     Phase = "indexing"
	PhaseTransferring Phase = "transferring"
	PhaseImporting    Phase = "importing"
	PhaseVerifying    Phase = "verifying"
	PhaseUnpacking    Phase = "unpacking"
	PhasePublishing   Phase = "publishing"
)

// Progress is how far an import is. In a stream the total is the archive's size, where that is known.
type Progress struct {
	Phase    Phase
	Done     int64 // bytes written to the content store
	Skipped  int64 // bytes of needed blobs that were present
	Total    int64 // bytes of all needed blobs, 0 while unknown
	Unpacked int64 // bytes of the needed blobs that are unpacked or need not be, as they lie in the archive
}

// Image is one name that an import published.
type Image struct {
	Name   string        `json:"name"`
	Digest digest.Digest `json:"digest"`
}

// Bytes counts what an import moved.
type Bytes struct {
	Read    int64 `json:"read"`    // taken from the source, headers included
	Written int64 `json:"written"` // committed to the content store
	Skipped int64 `json:"skipped"` // of needed blobs that were present
}

// Result is what an import did.
type Result struct {
	Images      []Image       // without the name@digest references, sorted by name
	Names       []string      // all that are published, sorted
	Former      Released      // what became of names that an earlier import of the owner published, and this one did not
	Bytes       Bytes         //
	Digest      digest.Digest // of the whole archive, when it was read in full
	IndexDigest digest.Digest // of index.json
	Size        int64         // of the archive in bytes, -1 where the source does not say
	Validator   string        // of the source, see source.Blob

	// NotVisible are published names that the CRI, and so the kubelet, does not find, sorted. The import stands all the same.
	NotVisible []string
	// CRI says why it is not known whether the kubelet finds the names; empty if it is, or if they are in another
	// namespace than its own.
	CRI string
}

// Imported says whether an owner's import was published, what it has lost since, and whether the kubelet finds it. No source is
// opened. The loss is empty while all is complete; found is false when nothing of this owner and spec is there. Names that are
// gone are not in the result.
func (i *Importer) Imported(ctx context.Context, o Owner) (result Result, loss string, found bool, err error) {
	p, err := i.ownership.Published(i.in(ctx), o)
	if err != nil || p == nil {
		return Result{}, "", false, err
	}
	r := p.Import
	result = Result{Names: p.Names, Digest: r.Digest, IndexDigest: r.Index, Size: r.Size, Validator: r.Validator}
	var held []Held
	for _, n := range p.Tags {
		result.Images = append(result.Images, Image{Name: n.Name, Digest: n.Target.Digest})
		held = append(held, Held{Name: n.Name, Target: n.Target})
	}
	if p.Lost == "" {
		result.NotVisible, result.CRI, err = i.NotVisible(ctx, held)
	}
	return result, p.Lost, true, err
}

// Repair gives names of an owner what they have lost and can get back without a source: the pin, the mark for the CRI,
// and the former target, if another of the owner's names has kept that whole. It returns how many names it wrote.
func (i *Importer) Repair(ctx context.Context, o Owner) (repaired int, err error) {
	return i.ownership.Repair(i.in(ctx), o)
}

// Sweep ends the claims on images of ImageArchives that are not wanted; see ownership.Sweep. What failed imports of theirs
// have kept goes, too.
func (i *Importer) Sweep(ctx context.Context, wanted []Owner, known func(uid string) bool) ([]Released, error) {
	ctx = i.in(ctx)
	released, err := i.ownership.Sweep(ctx, wanted, known)
	return released, errors.Join(err, i.store.Release(ctx, func(uid string) bool {
		return uid != importUID && (known == nil || known(uid)) && !slices.ContainsFunc(wanted, func(o Owner) bool { return o.UID == uid })
	}))
}

// Release drops what failed imports for an archive have kept. What no published image holds is collected before it returns.
func (i *Importer) Release(ctx context.Context, uid string) error {
	return i.store.Release(i.in(ctx), func(other string) bool { return other == uid })
}
