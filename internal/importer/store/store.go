// Package store puts blobs into containerd's content store and keeps them there until images hold them.
//
// A [Store] is what all imports of a process share. A [Session] is one attempt at an import: what it writes lies below a
// lease of its own, so that containerd's garbage collection keeps it, and ends with that lease.
//
//	session, err := st.Open(ctx, store.Owner{UID: uid, Spec: hash}, hooks)
//	err = session.EnsureBlob(ctx, descriptor, open) // it is there when this returns
//	err = session.Close(ctx, false)                 // what no image holds is collected before this returns
package store

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tarlift/tarlift/internal/archive"
	"github.com/tarlift/tarlift/internal/importer/daemon"
	"github.com/tarlift/tarlift/internal/importer/transfer"
)

const (
	// leaseExpiry is containerd's own default for a client. Leases cannot be renewed, and writes below an expired one fail.
	leaseExpiry = 24 * time.Hour
	// DefaultHandOver is the age at which a lease is replaced. What is under way then has the other half of its time to end.
	DefaultHandOver = leaseExpiry / 2
	// cleanupTimeout bounds a step of clearing up after a failure. Deleting a lease takes milliseconds, collecting
	// many gigabytes with it some seconds, and a containerd that restarts is back within seconds.
	cleanupTimeout = 20 * time.Second

	labelUID     = "tarlift.dev/uid"
	labelSpec    = "tarlift.dev/spec"
	labelProcess = "tarlift.dev/process"
)

// ErrLeaseLost is a session whose lease has expired or was deleted: what it had written may be collected. See Session.Held.
var ErrLeaseLost = errors.New("the lease of this import is gone")

// Owner is whom a session is for.
type Owner struct {
	UID string
	// Spec identifies what is imported: a session takes over what earlier ones with the same Spec have left.
	Spec string
}

// Hooks are called by a session as it goes on; all are required.
type Hooks struct {
	Done    func(int64)         // bytes were written; negative when they turned out to be of no use
	Skipped func(int64)         // bytes of blobs that were there
	Ready   func(digest.Digest) // a blob is below the session's lease
	Writing *atomic.Int32       // how many writes are under way
	// Failed is called when containerd refuses a write: it ends reads of the source, which may be silent, and not be waited for.
	Failed func(error)
}

// Store is what the imports of a process share. Its methods may be called concurrently.
type Store struct {
	content content.Store
	leases  leases.Manager
	process string   // labels its leases
	active  sync.Map // ids of the leases that sessions of this process work below

	flightsMu sync.Mutex
	flights   map[digest.Digest]*flight // blobs that are on their way in this process, each moved by one caller

	handOver time.Duration
}

// New makes a store. A lease is replaced when it is older than handOver; 0 means DefaultHandOver.
func New(c content.Store, l leases.Manager, handOver time.Duration) *Store {
	return &Store{
		content: c, leases: l, process: rand.Text(), flights: map[digest.Digest]*flight{}, handOver: cmp.Or(handOver, DefaultHandOver),
	}
}

// Session is one attempt at an import.
type Session struct {
	store *Store
	owner Owner
	hooks Hooks

	leaseMu sync.Mutex
	lease   *lease

	mu      sync.Mutex
	refs    map[string]bool         // ingests that this session has opened
	written map[digest.Digest]int64 // blobs that it has committed, with their sizes in bytes
}

// Open begins a session. It takes over what earlier sessions of the same owner have left.
func (s *Store) Open(ctx context.Context, o Owner, hooks Hooks) (*Session, error) {
	l, err := s.adopt(ctx, o)
	if err != nil {
		return nil, err
	}
	return &Session{
		store: s, owner: o, hooks: hooks,
		lease: &lease{Lease: l}, refs: map[string]bool{}, written: map[digest.Digest]int64{},
	}, nil
}

// Written are the blobs that the session has committed, with their sizes in bytes.
func (s *Session) Written() map[digest.Digest]int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.written
}

// Close ends the session. With keep, what it has written stays for the next attempt of the same owner, until the lease
// expires, but for what that cannot go on with. Otherwise all of it that no image holds is collected before Close returns. It
// works although ctx was cancelled.
func (s *Session) Close(ctx context.Context, keep bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var failures []error
	for ref := range s.refs {
		if !keep || isPrivate(s.owner.UID, ref) {
			failures = append(failures, s.store.abort(ctx, ref))
		}
	}
	s.leaseMu.Lock()
	defer s.leaseMu.Unlock()
	if !keep {
		failures = append(failures, s.store.deleteLease(ctx, s.lease.Lease))
	}
	s.store.active.Delete(s.lease.ID)
	return errors.Join(failures...)
}

// Opener returns a blob's bytes from an offset to its end.
type Opener func(offset int64) (io.ReadCloser, error)

// EnsureBlob makes sure that a blob is in the content store, below the session's lease. Only when it is not there, open is
// called for its bytes, from where an earlier attempt stopped. Of several calls for one digest in this process only one
// moves the blob, and the others wait for it while it makes progress.
//
// Errors: archive.ErrDigestMismatch, archive.ErrTruncated, archive.ErrInvalid (longer than its descriptor says), those of
// open and of its reader, and those of package daemon.
func (s *Session) EnsureBlob(ctx context.Context, d ocispec.Descriptor, open Opener) error {
	f, err := s.store.join(ctx, d.Digest)
	if err != nil {
		return err
	}
	defer s.store.leave(f)
	ref := s.ref(d.Digest.String())
	if f.stalled {
		ref = s.privateRef(ref)
	}
	for {
		resumed, err := s.writeBlob(ctx, ref, d, f, open)
		switch {
		case err == nil:
			s.wrote(d.Digest, d.Size)
			return nil
		case errdefs.IsAlreadyExists(err):
			s.hooks.Skipped(d.Size)
			s.hooks.Ready(d.Digest)
			return nil
		case errors.Is(err, errOvertaken):
		case errors.Is(err, errLocked):
			ref = s.privateRef(ref)
		case errors.Is(err, archive.ErrDigestMismatch):
			// What is in the ingest will never match: a kill can leave bytes that were never synced, and every
			// retry would start from these.
			if abortErr := s.store.abort(ctx, ref); abortErr != nil {
				return fmt.Errorf("%w (%v)", err, abortErr) //nolint:errorlint // the first error is the reason
			}
			if !resumed {
				return err
			}
		default:
			return err
		}
	}
}

// ref names an ingest. All sessions of an owner give a blob the same, so that they go on where an earlier one has stopped.
func (s *Session) ref(name string) string { return ingestPrefix(s.owner.UID) + name }

// privateRef is one that nobody else uses.
func (s *Session) privateRef(ref string) string { return ref + "/" + rand.Text() }

// isPrivate says whether a reference of an owner's was made by privateRef: no other session goes on with that ingest.
func isPrivate(uid, ref string) bool {
	return strings.Contains(strings.TrimPrefix(ref, ingestPrefix(uid)), "/")
}

// ingestRoot is what the references of all our ingests begin with. containerd derives references only from names, so that
// one importer's partial or stalled ingest would fail or block every other's.
const ingestRoot = "tarlift/"

func ingestPrefix(uid string) string { return ingestRoot + uid + "/" }

var (
	errOvertaken = errors.New("the blob was committed by another")       // it is there, but not below the lease yet
	errLocked    = errors.New("the ingest is in use by another process") //
)

// isOthers says whether a write has ended because somebody else moves the blob, or has moved it, while the ingest was opened
// again: that is no failure. A blob that an ingest is opened for and that is there, is below the lease then.
func isOthers(err error) bool { return errdefs.IsAlreadyExists(err) || errors.Is(err, errLocked) }

// writeBlob opens an ingest, writes what it lacks, and commits it. It says whether the ingest had bytes before.
func (s *Session) writeBlob(ctx context.Context, ref string, d ocispec.Descriptor, f *flight, open Opener) (resumed bool, err error) {
	w, err := s.open(ctx, ref, d)
	if err != nil {
		return false, err
	}
	defer w.Close()
	if w.offset > d.Size {
		return true, fmt.Errorf("ingest of %s is longer than the blob: %w", d.Digest, archive.ErrDigestMismatch)
	}
	resumed = w.offset > 0
	s.hooks.Done(w.offset)
	defer func() {
		if isOthers(err) || errors.Is(err, errOvertaken) || errors.Is(err, archive.ErrDigestMismatch) {
			s.hooks.Done(-w.offset)
		}
	}()
	if w.offset < d.Size {
		r, err := open(w.offset)
		if err != nil {
			return resumed, fmt.Errorf("open: %w", err)
		}
		err = s.copy(ctx, w, r, d.Size-w.offset, f)
		if closeErr := r.Close(); err == nil && closeErr != nil {
			err = fmt.Errorf("close: %w", closeErr)
		}
		if err != nil {
			return resumed, err
		}
	}
	err = w.Commit(ctx, d.Size, d.Digest)
	switch {
	case errdefs.IsAlreadyExists(err):
		err = errOvertaken
	case errdefs.IsFailedPrecondition(err):
		err = fmt.Errorf("the bytes have another digest: %w", archive.ErrDigestMismatch)
	default:
		err = daemon.WriterError("commit", err)
	}
	return resumed, err
}

// WriteUnnamed stores size bytes whose digest shows at their end.
func (s *Session) WriteUnnamed(ctx context.Context, size int64, r io.Reader) (digest.Digest, error) {
	ref := s.privateRef(s.ref("unnamed")) // what an earlier attempt left may be of another member
	sum := digest.Canonical.Digester()
	_, err := s.writeBlob(ctx, ref, ocispec.Descriptor{Size: size}, &flight{}, func(int64) (io.ReadCloser, error) {
		return io.NopCloser(io.TeeReader(r, sum.Hash())), nil
	})
	switch {
	case errors.Is(err, errOvertaken):
		s.hooks.Ready(sum.Digest())
	case err != nil:
		return "", err
	default:
		s.wrote(sum.Digest(), size)
	}
	return sum.Digest(), nil
}

// wrote notes a blob that the session has committed.
func (s *Session) wrote(d digest.Digest, size int64) {
	s.mu.Lock()
	s.written[d] = size
	s.mu.Unlock()
	s.hooks.Ready(d)
}

// copy moves exactly n bytes; errors of reading are the source's, errors of writing containerd's. The source is read while
// containerd writes, and to its end: one that was changed meanwhile says so there, and its bytes must not be taken for a damaged
// archive's.
func (s *Session) copy(ctx context.Context, w *writer, r io.Reader, n int64, f *flight) error {
	s.hooks.Writing.Add(1)
	defer s.hooks.Writing.Add(-1)
	ahead := transfer.ReadAhead(io.LimitReader(r, n+1))
	defer ahead.Stop()
	for {
		piece, err := ahead.Next()
		if int64(len(piece)) > n {
			return fmt.Errorf("read: longer than its descriptor says: %w", archive.ErrInvalid)
		}
		if len(piece) > 0 {
			if _, err := w.Write(piece); err != nil { //nolint:contextcheck // w has it
				err = daemon.WriterError("write", err)
				if ctx.Err() == nil && !isOthers(err) { // else it fails because another has failed
					s.hooks.Failed(err)
				}
				return err
			}
			n -= int64(len(piece))
			s.hooks.Done(int64(len(piece)))
			f.moved.Add(int64(len(piece)))
		}
		switch {
		case err == nil:
			continue
		case n == 0 && errors.Is(err, io.EOF):
			return nil
		case ctx.Err() != nil:
			return ctx.Err() //nolint:wrapcheck // the caller's own
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			err = archive.ErrTruncated
		}
		return fmt.Errorf("read: %d bytes short: %w", n, err)
	}
}
