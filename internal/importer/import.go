package importer

import (
	"context"
	"fmt"
	"slices"

	"github.com/tarlift/tarlift/internal/source"
)

// Import puts the selected images of an archive into containerd. When it returns without error, all of them are
// complete, unpacked if wanted, and published; when it returns an error, no name was changed.
//
// Errors: those of this package, of archive and of source, wrapped.
func (i *Importer) Import(ctx context.Context, src source.Blob, req Request) (result Result, err error) {
	ctx = i.in(ctx)
	s, ctx, err := i.begin(ctx, req)
	if err != nil {
		return Result{}, err
	}
	defer func() {
		// After a success the names stand; what could not be cleared up expires with the lease.
		if endErr := s.end(ctx, err); endErr != nil && err != nil {
			err = fmt.Errorf("%w (clear up: %v)", err, endErr) //nolint:errorlint // the first error is the reason
		}
	}()

	opened, plan, err := s.bring(ctx, src, req)
	if err != nil {
		return Result{}, err
	}
	result = s.result(src, opened, plan)
	s.progress.phase(PhasePublishing)
	names := plan.names()
	if err := s.publish(ctx, names, req, newRecord(req, src.String(), result, s.unpacker.name(), len(names))); err != nil {
		return Result{}, err
	}
	result.Former, _ = i.endFormer(ctx, req.Owner) // what could not be done is left to Sweep
	_ = s.endReplaced(ctx)                         // and this to the kubelet's garbage collection
	result.Unseen, result.CRI = i.unseen(ctx, plan.published())
	return result, nil
}

// bring makes the images complete below the session's lease, without names, and unpacks them on the way.
func (s *session) bring(ctx context.Context, src source.Blob, req Request) (a *Archive, p *Plan, err error) {
	ctx, s.cancel = context.WithCancelCause(ctx)
	endWatch, err := s.watchDisk(ctx)
	if err != nil {
		s.cancel(err)
		return nil, nil, err
	}
	defer endWatch()
	defer func() {
		if err != nil {
			s.cancel(err)
		}
		s.unpacker.wait()
		if cause := context.Cause(ctx); cause != nil {
			err = cause // the first of several failures
		}
		s.cancel(nil)
	}()
	if req.Unpack {
		if s.unpacker, err = s.newUnpacker(ctx); err != nil {
			return nil, nil, err
		}
	}
	s.follows = worthFollowing(src)
	s.progress.phase(PhaseIndexing)
	if a, err = s.open(ctx, src, req); err != nil {
		return nil, nil, err
	}
	if p, err = s.importer.Plan(ctx, a, req); err != nil {
		return nil, nil, err
	}
	if s.ownedAll, err = s.ownsAll(ctx, p, req.Owner); err != nil {
		return nil, nil, err
	}
	if err := s.refuseConflicts(ctx, p.names(), req); err != nil {
		return nil, nil, err
	}
	if err := s.preflight(ctx, p, req); err != nil {
		return nil, nil, err
	}
	if err := s.transfer(ctx, src, p); err != nil {
		return nil, nil, err
	}
	if err := s.assemble(ctx, p); err != nil {
		return nil, nil, err
	}
	if req.Unpack {
		s.progress.phase(PhaseUnpacking)
	}
	return a, p, nil
}

// result sums up what was moved.
func (s *session) result(src source.Blob, a *Archive, p *Plan) Result {
	r := Result{
		Digest: a.Digest, IndexDigest: p.IndexDigest, Size: src.Size(), Validator: src.Validator(),
		Bytes: Bytes{Read: src.BytesRead()},
	}
	for _, n := range s.written {
		r.Bytes.Written += n
	}
	for _, b := range p.Blobs {
		if _, ok := s.written[b.Digest]; !ok {
			r.Bytes.Skipped += b.Size
		}
	}
	for _, img := range p.Images {
		r.Images = append(r.Images, Image{Name: img.Name, Digest: img.Digest})
	}
	for _, n := range p.names() {
		r.Names = append(r.Names, n.Name)
	}
	slices.Sort(r.Names)
	return r
}
