package importer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/importer/cri"
	"github.com/tarlift/tarlift/internal/importer/ownership"
	"github.com/tarlift/tarlift/internal/importer/store"
	"github.com/tarlift/tarlift/internal/importer/unpack"
	"github.com/tarlift/tarlift/internal/source"
)

// Import puts the selected images of an archive into containerd. When it returns without error, all of them are
// complete, unpacked if wanted, and published under all their names. Names that must not be taken are found before the first
// one is written; when it fails after that, each name is complete or as it was before, and the next Import of the same owner
// writes the rest.
//
// Errors: those of this package, of archive and of source, wrapped.
func (i *Importer) Import(ctx context.Context, src source.Blob, req Request) (Result, error) {
	ctx = i.in(ctx)
	result, err := i.importOnce(ctx, src, req)
	if errors.Is(err, store.ErrLeaseLost) && src.RandomAccess() && ctx.Err() == nil { // the clock was set forward by a day, for example
		return i.importOnce(ctx, src, req)
	}
	return result, err
}

func (i *Importer) importOnce(ctx context.Context, src source.Blob, req Request) (result Result, err error) {
	a, ctx, err := i.begin(ctx, src, req)
	if err != nil {
		return Result{}, err
	}
	defer func() { err = a.end(ctx, err) }()

	ctx = archive.WithReserve(ctx, a.memory.acquireLarge)
	opened, err := a.open(ctx)
	if err != nil {
		return Result{}, err
	}
	plan, err := i.Plan(ctx, opened, req)
	if err != nil {
		return Result{}, err
	}
	claim := claim(plan, req, a.recorded(opened))
	if _, err := i.ownership.Changes(ctx, claim); err != nil {
		return Result{}, err
	}
	for _, step := range []func(context.Context, *Plan) error{a.preflight, a.transfer, a.assemble, a.unpack, a.verify} {
		if err := step(ctx, plan); err != nil {
			return Result{}, err
		}
	}
	a.progress.phase(PhasePublishing)
	if err := i.ownership.Claim(ctx, claim); err != nil {
		return Result{}, err
	}
	result = a.result(plan, claim)
	result.Former, _ = i.ownership.ReleaseFormer(ctx, req.Owner) // what could not be done is left to Sweep
	result.NotVisible, result.CRI = i.notVisible(ctx, configs(plan))
	return result, nil
}

// attempt is one attempt at an import.
type attempt struct {
	importer    *Importer
	src         source.Blob
	req         Request
	session     *store.Session
	content     content.Store // the session's
	progress    *reporter
	memory      *share
	snapshotter string           // see snapshotterFor
	unpacker    *unpack.Unpacker // nil when nothing is to be unpacked
	cancel      context.CancelCauseFunc
	ready       unpack.ReadySet // blobs
	writing     atomic.Int32    // how much of containerd's is writing now
	watching    sync.WaitGroup
}

// begin opens a session, and starts what goes on beside the steps: the watch over the disk, and the unpacker.
func (i *Importer) begin(ctx context.Context, src source.Blob, req Request) (a *attempt, _ context.Context, err error) {
	a = &attempt{importer: i, src: src, req: req, progress: &reporter{report: req.Progress}, memory: &share{of: i.memory}}
	ctx, a.cancel = context.WithCancelCause(ctx)
	a.session, err = i.store.Open(ctx, store.Owner{UID: cmp.Or(req.Owner.UID, importUID), Spec: req.Owner.SpecHash}, store.Hooks{
		Done: a.progress.done, Skipped: a.progress.skipped, Ready: a.ready.Add, Writing: &a.writing, Failed: func(err error) { a.cancel(err) },
	})
	if err != nil {
		a.cancel(err)
		return nil, nil, err
	}
	a.content = a.session.Content()
	if a.snapshotter, err = i.snapshotterFor(ctx, req); err == nil {
		err = a.watchDisk(ctx)
	}
	if err != nil {
		return nil, nil, a.end(ctx, err)
	}
	if req.Unpack {
		a.unpacker = a.newUnpacker(ctx)
	}
	a.progress.phase(PhaseIndexing)
	return a, ctx, nil
}

// importUID is `agent import`'s, in place of an ImageArchive's.
const importUID = "import"

// end stops what goes on beside the steps, and clears up. A failed attempt keeps what it has for the next one where that is
// wanted, unless it fills the disk; every other one leaves nothing but what it published. It returns the first of the failures.
func (a *attempt) end(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	a.cancel(err)
	a.unpacker.Wait()
	a.watching.Wait()
	a.memory.release()
	if err != nil {
		if lost := a.session.Held(ctx); errors.Is(lost, store.ErrLeaseLost) {
			err = lost
		}
	}
	keep := err != nil && a.req.Keep && !errors.Is(err, ErrInsufficientDisk)
	// After a success the names stand; what could not be cleared up expires with the lease.
	if closeErr := a.session.Close(ctx, keep); closeErr != nil && err != nil {
		err = fmt.Errorf("%w (clear up: %v)", err, closeErr) //nolint:errorlint // the first error is the reason
	}
	return err
}

// claim is what a plan publishes: the images' names, name@digest where wanted, and their ids.
func claim(p *Plan, req Request, rec ownership.Import) ownership.Claim {
	c := ownership.Claim{Owner: req.Owner, Import: rec, Pin: req.Pin, Replace: req.Replace, Owned: req.Owned}
	seen := map[string]bool{"": true}
	add := func(name string, img PlannedImage) {
		if !seen[name] {
			seen[name] = true
			c.Names = append(c.Names, ownership.Name{Name: name, Target: img.Target})
		}
	}
	for _, img := range p.Images {
		add(img.Name, img)
	}
	for _, img := range p.Images {
		add(img.DigestReference, img)
	}
	for _, img := range p.Images {
		add(img.ID, img)
	}
	return c
}

// recorded is what is remembered of the import.
func (a *attempt) recorded(opened *Archive) ownership.Import {
	rec := ownership.Import{
		Source: a.src.String(), Validator: a.src.Validator(), Digest: opened.Digest, Index: opened.IndexDigest, Size: a.src.Size(),
	}
	if a.req.Unpack {
		rec.Snapshotter = a.snapshotter
	}
	return rec
}

// result sums up what was moved.
func (a *attempt) result(p *Plan, c ownership.Claim) Result {
	rec := c.Import
	r := Result{Digest: rec.Digest, IndexDigest: rec.Index, Size: rec.Size, Validator: rec.Validator, Bytes: Bytes{Read: a.src.BytesRead()}}
	written := a.session.Written()
	for _, b := range p.Blobs {
		if _, ok := written[b.Digest]; !ok {
			r.Bytes.Skipped += b.Size
		}
	}
	for _, n := range written {
		r.Bytes.Written += n
	}
	for _, img := range p.Images {
		r.Images = append(r.Images, Image{Name: img.Name, Digest: img.Digest})
	}
	for _, n := range c.Names {
		r.Names = append(r.Names, n.Name)
	}
	slices.Sort(r.Names)
	return r
}

// configs are the names of a plan with the ids that the CRI gives their images: the digests of their configs.
func configs(p *Plan) map[string]digest.Digest {
	ids := map[string]digest.Digest{}
	for _, img := range p.Images {
		ids[img.Name], ids[img.DigestReference], ids[img.ID] = img.Config, img.Config, img.Config
	}
	delete(ids, "") // not every image has a digest reference
	return ids
}

// notVisible asks CRI for published names. What other namespaces hold is not meant for the kubelet.
func (i *Importer) notVisible(ctx context.Context, ids map[string]digest.Digest) (names []string, unknown string) {
	if i.options.Namespace != cri.Namespace {
		return nil, ""
	}
	return i.cri.NotVisible(ctx, ids)
}
